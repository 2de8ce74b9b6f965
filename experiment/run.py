"""One run of a profile: what was chosen, and where each of its files is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Self

from experiment import weights
from experiment.profiles import Profile, get, refuse_unknown

OF_NO_RUN = ("seeds", "your_checkpoints")  # pages: every book shows those of the reference
CHOSEN_ON = {  # the images that alpha is chosen on, and what pages say of them
    "validation": "",
    "halves": "α chosen on one half of the test images, reported on the other, both ways averaged; "
    "what pages call validation images are all test images",
    "test": "α chosen on the test images it is reported on, as by PAINT's released code, so test "
    "numbers are optimistic; what pages call validation images are these",
}
VARIANTS = {  # other readings of the data sets
    "cifar100-spaces": "CIFAR100's class names have spaces, where PAINT's have underscores",
    "gtsrb-tracks": "GTSRB's validation images are of other tracks than its training images",
}


def how(choices: Mapping[str, Any]) -> list[str]:
    """Say what sets a run apart from one on all images that chooses on validation images."""
    sample = choices.get("sample")
    said = [f"a sample of {sample} images a split, classes balanced"] if sample else []
    said += [text for name, text in VARIANTS.items() if name in choices.get("variants", "")]
    chosen = choices.get("choose_on")
    return [*said, CHOSEN_ON[chosen]] if chosen else said


def _each(kind: str, suffix: str) -> Callable[["Run", str], Path]:
    """Return the method that gives a file of each task; {} is the name of the run."""

    def file(run: "Run", task: str) -> Path:
        run.profile.check([task])
        return run.folder / kind.format(run.name) / f"{task}.{suffix}"

    return file


def _parts(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Run:
    """One profile at one seed; a property without a docstring is the file or folder of that name.

    All files are below `folder` but the cache of decoded images, which all runs share.
    """

    profile: Profile
    seed: int  # of the initial weights and the batches
    root: Path = Path()  # the folder of the project
    finetuned: str = "own"  # whose fine-tuned weights: own, hub (public ones), or a folder of them
    choose_on: str = ""  # the images that alpha is chosen on: one of CHOSEN_ON, or the default
    variants: str = ""  # of VARIANTS, "A,B" in their order
    accept: tuple[str, ...] = ()  # tasks whose deviations are known and accepted

    @classmethod
    def of(cls, profile: str, seed: int = 0, root: Path = Path(), *, limit: int = 0,
           sample: int = 0, tasks: str = "", finetuned: str = "own", choose_on: str = "",
           variants: str = "", accept: str = "") -> Self:  # fmt: skip
        """Return the run of a profile's name; `tasks`, `variants` and `accept` are lists, "A,B"."""
        if seed < 0:
            raise ValueError(f"seed = {seed}; a seed counts from 0")
        if limit and sample:
            raise ValueError(f"limit = {limit} and sample = {sample}; a dry run is no sample")
        finetuned, accepted = finetuned or "own", tuple(_parts(accept))
        chosen = get(profile).limited(limit).sampled(sample)
        refuse_unknown(accepted, chosen.tasks, f"accept = {accept!r}: no task")
        chosen = chosen.only(_parts(tasks)) if tasks else chosen
        if finetuned != "own" and not chosen.real:
            raise ValueError(
                f"finetuned = {finetuned!r}: the profile {profile!r} fine-tunes its own weights; "
                "public ones exist for the profile paper"
            )
        refuse_unknown({choose_on} - {""}, CHOSEN_ON, "choose_on =")
        if choose_on == "validation" and finetuned == "hub":
            raise ValueError(
                "the public fine-tuned weights were trained on the validation images too, so alpha "
                "would come out too large; leave CHOOSE_ON out to choose on one half of the test "
                "images and report on the other, or fine-tune yourself"
            )
        refuse_unknown(other := sorted({*_parts(variants)}), VARIANTS, "variants: no")
        return cls(chosen, seed, root, finetuned, choose_on, ",".join(other), accepted)

    @property
    def chosen_on(self) -> str:
        """Return the images that alpha is chosen on: by default some that no weights have seen."""
        return self.choose_on or ("halves" if self.source == "hub" else "validation")

    @property
    def choosing(self) -> str:
        return "validation" if self.chosen_on == "validation" else "test"

    @property
    def source(self) -> str:
        """Return whose the fine-tuned weights are: `own`, `hub` or `given`."""
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
        return _each("tasks", "json" if self.profile.real else "safetensors")(self, task)

    source_of = _each("tasks", "source")  # changed where a real data set is not the one decoded
    head = _each("heads", "safetensors")
    fine_tuned = _each("fine_tuned", "safetensors")
    baseline = _each("baseline", "safetensors")
    noise = _each("noise", "json")
    evaluations = _each("results/{}/evaluations", "npz")
    predictions = _each("results/{}/predictions", "json")
    evidence = _each("results/{}/evidence", "json")
    samples = _each("results/{}/samples", "json")

    @property
    def captioned(self) -> Path:
        return self.folder / "captioned.safetensors"

    @property
    def zero_shot(self) -> Path:
        return self.folder / "zero_shot.safetensors"

    @property
    def text_tower(self) -> Path:
        return self.folder / "text_tower.safetensors"

    def given(self, patching: str) -> list[str]:
        """Return the fine-tuned weights of a task that the user gave, if there is such a file."""
        files = [Path(self.finetuned, f"{patching}.{suffix}") for suffix in ("safetensors", "pt")]
        return [str(file) for file in files if file.is_file()][:1]

    def verified(self, kind: str, *tasks: str) -> list[Path]:
        """Return the files that say an accuracy is as published; twins have none."""
        return [_each(f"verified/{kind}", "json")(self, t) for t in tasks if self.profile.real]

    def joint(self, number: int, suffix: str) -> Path:
        """The searches of one of the profile's trios, or their evaluations."""
        return self.results / "joint" / f"{number}.{suffix}"

    def pair(self, supported: str, patching: str) -> Path:
        return self.results / "pairs" / f"{supported}-{patching}.json"
