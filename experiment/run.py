"""One run of a profile: what was chosen, and where each of its files is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import weights
from experiment.profiles import Profile, get


@dataclass(frozen=True)
class Run:
    """One profile at one seed. A property that ends in no verb is a file or a folder of it.

    `experiment.steps` writes these files, all of them below `folder` but for the cache.

    Attributes:
        profile: what is run.
        seed: seed of the initial weights and the batches.
        root: the folder of the project.
        finetuned: where fine-tuned weights come from: `own` (made by the run), `hub` (public ones),
            or a folder that holds them.
    """

    profile: Profile
    seed: int
    root: Path = Path()
    finetuned: str = "own"

    @classmethod
    def of(
        cls,
        profile: str,
        seed: int = 0,
        root: Path | str = "",
        *,
        limit: int = 0,
        tasks: str = "",
        finetuned: str = "own",
    ) -> Run:
        """Return the run of a profile's name.

        Args:
            profile: `smoke`, `micro` or `paper`.
            seed: counts from 0.
            root: the folder of the project.
            limit: images a split of a dry run; 0 for none.
            tasks: names separated by commas; all of the profile by default.
            finetuned: `own`, `hub` or a folder, see `Run.finetuned`.

        Raises:
            ValueError: the profile or a task is unknown, the seed negative, or an option does not
                fit the profile.
        """
        if seed < 0:
            raise ValueError(f"seed = {seed}; a seed counts from 0")
        finetuned = finetuned or "own"
        chosen = get(profile).limited(limit)
        if tasks:
            chosen = chosen.only([name.strip() for name in tasks.split(",")])
        if finetuned != "own" and not chosen.real:
            raise ValueError(
                f"finetuned = {finetuned!r}: the profile {profile!r} fine-tunes its own weights; "
                "public ones exist for the profile paper"
            )
        return cls(chosen, seed, Path(root), finetuned)

    @property
    def source(self) -> str:
        """Return where fine-tuned weights come from, in a word: `own`, `hub` or `given`."""
        return self.finetuned if self.finetuned in ("own", "hub") else "given"

    @property
    def name(self) -> str:
        """Return the run's folder name, `micro` or `paper-hub-limit4-seed1` for instance."""
        choices = (
            (self.source, self.source != "own"),
            (f"limit{self.profile.limit}", self.profile.limit),
            (f"seed{self.seed}", self.seed),
        )
        return "-".join([self.profile.name, *(text for text, given in choices if given)])

    @property
    def folder(self) -> Path:
        return self.root / "artifacts" / self.name

    @property
    def results(self) -> Path:
        """The numbers behind every page; a page of the run's book finds them as one of `book/`."""
        return self.folder / "results" / self.name

    @property
    def book(self) -> Path:
        return self.folder / "book"

    @property
    def cache(self) -> Path:
        """Decoded images, which all runs share."""
        return self.root / "artifacts" / "cache"

    def images(self, task: str) -> Path:
        """The splits of a task: twins themselves, or where real ones are cached."""
        kind = "json" if self.profile.real else "safetensors"
        return self.folder / "tasks" / f"{self._task(task)}.{kind}"

    def source_of(self, task: str) -> Path:
        """What changes when a real data set is not the one that was decoded."""
        return self.folder / "tasks" / f"{self._task(task)}.source"

    @property
    def captioned(self) -> Path:
        """The captioned images that a small CLIP is pre-trained on."""
        return self.folder / "captioned.safetensors"

    @property
    def zero_shot(self) -> Path:
        """The image tower before patching."""
        return self.folder / "zero_shot.safetensors"

    @property
    def text_tower(self) -> Path:
        """The rest of a public CLIP."""
        return self.folder / "text_tower.safetensors"

    def head(self, task: str) -> Path:
        """The zero-shot head of a task."""
        return self.folder / "heads" / f"{self._task(task)}.safetensors"

    def fine_tuned(self, patching: str) -> Path:
        return self.folder / "fine_tuned" / f"{self._task(patching)}.safetensors"

    def baseline(self, task: str) -> Path:
        """A supported task's losses and gradient at the zero-shot weights."""
        return self.folder / "baseline" / f"{self._task(task)}.safetensors"

    def evaluations(self, patching: str) -> Path:
        """All evaluations along the path to a task's fine-tuned weights, a `paintlib.Store`."""
        return self.results / "evaluations" / f"{self._task(patching)}.npz"

    def predictions(self, patching: str) -> Path:
        """What the shown images are taken for along the path to a task."""
        return self.results / "predictions" / f"{self._task(patching)}.json"

    def pair(self, supported: str, patching: str) -> Path:
        return self.results / "pairs" / f"{supported}-{patching}.json"

    @property
    def choices(self) -> dict[str, Any]:
        """Return what identifies the run and is quoted on every page."""
        return {
            "profile": self.profile.name,
            "seed": self.seed,
            "limit": self.profile.limit,
            "weights": weights.metadata(self.zero_shot)["weights"],
            "finetuned": self.source,
        }

    def _task(self, task: str) -> str:
        if task not in self.profile.tasks:
            raise ValueError(
                f"the profile {self.profile.name!r} has no task {task!r}; "
                f"choose one of {', '.join(self.profile.tasks)}"
            )
        return task
