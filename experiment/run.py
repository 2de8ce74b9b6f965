"""One run of a profile: what was chosen, and where each of its files is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from experiment import weights
from experiment.profiles import Profile, get

CHOOSE_ON = ("validation", "halves", "test")
OF_NO_RUN = ("seeds", "your_checkpoints")  # pages: every book shows those of the reference
VARIANTS = ("cifar100-spaces", "gtsrb-tracks")  # other readings of the data sets


@dataclass(frozen=True)
class Run:
    """One profile at one seed; a property without a docstring is the file or folder of that name.

    All files are below `folder` but the cache of decoded images, which all runs share.
    """

    profile: Profile
    seed: int  # of the initial weights and the batches
    root: Path = Path()  # the folder of the project
    finetuned: str = "own"  # whose fine-tuned weights: own, hub (public ones), or a folder of them
    choose_on: str = ""  # the images that alpha is chosen on: one of CHOOSE_ON, or the default
    variants: str = ""  # of VARIANTS, "A,B" in their order
    accept: tuple[str, ...] = ()  # tasks whose deviations are known and accepted

    @classmethod
    def of(cls, profile: str, seed: int = 0, root: Path = Path(), *, limit: int = 0,
           sample: int = 0, tasks: str = "", finetuned: str = "own", choose_on: str = "",
           variants: str = "", accept: str = "") -> Run:  # fmt: skip
        """Return the run of a profile's name: a dry run with `limit`, a sample with `sample`.

        `tasks` are some of the profile's, "A,B", and so are those to `accept`.
        """
        if seed < 0:
            raise ValueError(f"seed = {seed}; a seed counts from 0")
        if limit and sample:
            raise ValueError(f"limit = {limit} and sample = {sample}; a dry run is no sample")
        finetuned = finetuned or "own"
        chosen = get(profile).limited(limit).sampled(sample)
        accepted = tuple(name.strip() for name in accept.split(",") if name.strip())
        if unknown := sorted(set(accepted) - set(chosen.tasks)):
            known = ", ".join(chosen.tasks)
            raise ValueError(f"accept = {accept!r}: no task {unknown[0]!r}; choose from {known}")
        if tasks:
            chosen = chosen.only([name.strip() for name in tasks.split(",")])
        if finetuned != "own" and not chosen.real:
            raise ValueError(
                f"finetuned = {finetuned!r}: the profile {profile!r} fine-tunes its own weights; "
                "public ones exist for the profile paper"
            )
        if choose_on and choose_on not in CHOOSE_ON:
            raise ValueError(f"choose_on = {choose_on!r}; choose one of {', '.join(CHOOSE_ON)}")
        if choose_on == "validation" and finetuned == "hub":
            raise ValueError(
                "the public fine-tuned weights were trained on the validation images too, so alpha "
                "would come out too large; leave CHOOSE_ON out to choose on one half of the test "
                "images and report on the other, or fine-tune yourself"
            )
        other = sorted({name.strip() for name in variants.split(",") if name.strip()})
        if odd := [name for name in other if name not in VARIANTS]:
            raise ValueError(f"variants: no {odd[0]!r}; choose from {', '.join(VARIANTS)}")
        return cls(chosen, seed, root, finetuned, choose_on, ",".join(other), accepted)

    @property
    def chosen_on(self) -> str:
        """Return the images that alpha is chosen on: by default some that no weights have seen."""
        return self.choose_on or ("halves" if self.source == "hub" else "validation")

    @property
    def choosing(self) -> str:
        """Return the split of the images that alpha is chosen on."""
        return "validation" if self.chosen_on == "validation" else "test"

    @property
    def source(self) -> str:
        """Return where fine-tuned weights come from, in a word: `own`, `hub` or `given`."""
        return self.finetuned if self.finetuned in ("own", "hub") else "given"

    @property
    def name(self) -> str:
        """Return the run's folder name, `micro` or `paper-hub-limit4-seed1` for instance."""
        parts = [self.profile.name]
        parts += [self.source] if self.source != "own" else []
        parts += [f"limit{self.profile.limit}"] if self.profile.limit else []
        parts += [f"images{self.profile.sample}"] if self.profile.sample else []
        parts += [self.variants.replace(",", "-")] if self.variants else []
        usual = replace(self, choose_on="").chosen_on
        parts += [f"on-{self.chosen_on}"] if self.chosen_on != usual else []
        return "-".join(parts + ([f"seed{self.seed}"] if self.seed else []))

    @property
    def choices(self) -> dict[str, Any]:
        """Return what identifies the run and is quoted on every page."""
        return {
            "profile": self.profile.name,
            "seed": self.seed,
            "limit": self.profile.limit,
            "weights": weights.metadata(self.zero_shot)["weights"],
            "finetuned": self.source,
            **self.unusual,
        }

    @property
    def unusual(self) -> dict[str, Any]:
        """Return what sets the run apart from one on all images that chooses on validation ones."""
        said = {"sample": self.profile.sample, "variants": self.variants}
        said |= {"choose_on": self.chosen_on} if self.choosing == "test" else {}
        return {name: value for name, value in said.items() if value}

    @property
    def options(self) -> str:
        """Return the options of `python -m experiment` that name this run."""
        options = {"seed": self.seed, "limit": self.profile.limit, "sample": self.profile.sample,
                   "choose-on": self.choose_on, "finetuned": self.finetuned,
                   "variants": self.variants}  # fmt: skip
        said = [f"--{name} {quote(str(value))}" for name, value in options.items() if value]
        return " ".join([f"--profile {self.profile.name}", *said])

    @property
    def folder(self) -> Path:
        return self.root / "artifacts" / self.name

    @property
    def cache(self) -> Path:
        return self.root / "artifacts" / "cache"

    @property
    def results(self) -> Path:
        """Where a page of the run's book finds them as one of the project's `book/` does."""
        return self.folder / "results" / self.name

    @property
    def book(self) -> Path:
        return self.folder / "book"

    def images(self, task: str) -> Path:
        """The splits of a task: twins themselves, or where real ones are cached."""
        return self._file("tasks", task, "json" if self.profile.real else "safetensors")

    def source_of(self, task: str) -> Path:
        """What changes when a real data set is not the one that was decoded."""
        return self._file("tasks", task, "source")

    @property
    def captioned(self) -> Path:
        return self.folder / "captioned.safetensors"

    @property
    def zero_shot(self) -> Path:
        return self.folder / "zero_shot.safetensors"

    @property
    def text_tower(self) -> Path:
        return self.folder / "text_tower.safetensors"

    def head(self, task: str) -> Path:
        return self._file("heads", task, "safetensors")

    def fine_tuned(self, patching: str) -> Path:
        return self._file("fine_tuned", patching, "safetensors")

    def given(self, patching: str) -> list[str]:
        """Return the fine-tuned weights of a task that the user gave, if there is such a file."""
        files = [Path(self.finetuned, f"{patching}.{suffix}") for suffix in ("safetensors", "pt")]
        return [str(file) for file in files if file.is_file()][:1]

    def verified(self, kind: str, *tasks: str) -> list[Path]:
        """Return the files that say an accuracy is as published; twins have none."""
        return [self._file(f"verified/{kind}", t, "json") for t in tasks if self.profile.real]

    def baseline(self, task: str) -> Path:
        return self._file("baseline", task, "safetensors")

    def evaluations(self, patching: str) -> Path:
        return self._file(f"results/{self.name}/evaluations", patching, "npz")

    def predictions(self, patching: str) -> Path:
        return self._file(f"results/{self.name}/predictions", patching, "json")

    def evidence(self, patching: str) -> Path:
        return self._file(f"results/{self.name}/evidence", patching, "json")

    def samples(self, patching: str) -> Path:
        return self._file(f"results/{self.name}/samples", patching, "json")

    def joint(self, number: int, suffix: str) -> Path:
        """The searches of one of the profile's trios, or their evaluations."""
        return self.results / "joint" / f"{number}.{suffix}"

    def noise(self, patching: str) -> Path:
        return self._file("noise", patching, "json")

    def pair(self, supported: str, patching: str) -> Path:
        return self.results / "pairs" / f"{supported}-{patching}.json"

    def _file(self, kind: str, task: str, suffix: str) -> Path:
        if task not in self.profile.tasks:
            raise ValueError(
                f"the profile {self.profile.name!r} has no task {task!r}; "
                f"choose one of {', '.join(self.profile.tasks)}"
            )
        return self.folder / kind / f"{task}.{suffix}"
