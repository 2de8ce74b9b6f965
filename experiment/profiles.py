"""What differs between the profiles: the model, the tasks, how long to train."""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

SUPPORTED = ("ImageNet", "CIFAR10", "CIFAR100", "STL10")
PATCHING = (
    "Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SUN397", "SVHN", "FashionMNIST",
)  # fmt: skip
TRIOS = (("CIFAR10", "MNIST", "GTSRB"), ("STL10", "SVHN", "EuroSAT"))  # to keep, and two to patch
MAP = tuple(i / 4 for i in range(5))  # of each coefficient, for the map of the loss
EPOCHS = 76  # the most that PAINT's recipe takes, on DTD
ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))  # the exhaustive search of the paper


def refuse_unknown(said: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that are not among those `known`; `what` begins the message."""
    if odd := sorted({*said} - {*known}):
        raise ValueError(f"{what} {odd[0]!r}; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, cosine decay to zero, gradients of norm 1 at most."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.1
    beta2: float = 0.999  # of AdamW, whose first beta is 0.9
    checkpoint_every: int = 100

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`, which counts from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


class Standard(NamedTuple):
    """The pixels a model was trained with: mean and standard deviation of each channel, in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class SmallClip:
    """A CLIP that a run pre-trains itself; towers as fields of open_clip's configurations."""

    embed_dim: int
    vision: Mapping[str, Any]
    text: Mapping[str, Any]  # but the vocabulary size
    captioned_images: int
    recipe: Recipe


@dataclass(frozen=True)
class Profile:
    """One size of the experiment.

    `clip` is a model to pre-train, or the name of an architecture of open_clip with public weights,
    whose tasks are the real data sets. `train`, `validation` and `test` are images per task.
    """

    name: str
    purpose: str  # one line for people
    supported: tuple[str, ...]
    patching: tuple[str, ...]
    clip: SmallClip | str
    pixels: Standard
    finetuning: Recipe
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    batch_size: int = 100  # images per forward pass when scoring
    limit: int = 0  # images a split of a dry run; 0 for the experiment itself
    sample: int = 0  # images a split of the experiment on a sample; 0 for all
    design: Mapping[str, float] = field(default_factory=dict)  # of the twins, where it is another

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.supported + self.patching

    @property
    def trios(self) -> list[tuple[str, ...]]:
        """Return the tasks of each joint map: one to keep, two to patch; none without two.

        Nor on real data sets, where the two maps would cost half of what all curves do.
        """
        if self.real:
            return []
        few = [(self.supported[0], *self.patching[:2])] if len(self.patching) > 1 else []
        return [trio for trio in TRIOS if {*trio} <= {*self.tasks}] or few

    @property
    def real(self) -> bool:
        return isinstance(self.clip, str)  # the tasks are no twins

    def images(self, split: str) -> int | None:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def label(self, task: str) -> str:
        return task if self.real else f"µ{task}"  # as on pages

    def limited(self, images: int) -> Self:
        """Return the dry run of this profile: few images a split, one template, few steps."""
        return self._of(images, "limit", steps=images, warmup_steps=1)

    def sampled(self, images: int) -> Self:
        """Return this profile on a balanced sample, each image seen no more often than by PAINT."""
        steps = EPOCHS * images // min(self.finetuning.batch_size, images or 1)
        return self._of(images, "sample", steps=steps, warmup_steps=steps // 10)

    def _of(self, images: int, field: str, **most: int) -> Self:
        if not images:
            return self
        if images < 2 or not self.real:  # one image has no sampling error
            what = "it is a number of images a split, from 2, for the profile paper"
            raise ValueError(f"{field} = {images}; {what}")
        few = {key: min(getattr(self.finetuning, key), n)
               for key, n in (most | {"batch_size": images}).items()}  # fmt: skip
        splits: dict[str, Any] = dict.fromkeys(("train", "validation", "test", field), images)
        return replace(self, finetuning=replace(self.finetuning, **few), **splits)

    def check(self, tasks: Iterable[str]) -> None:
        refuse_unknown(tasks, self.tasks, f"the profile {self.name!r} has no task")

    def only(self, tasks: Sequence[str]) -> Self:
        """Return this profile restricted to some of its tasks; their roles stay."""
        self.check(tasks)
        supported = tuple(task for task in self.supported if task in tasks)
        patching = tuple(task for task in self.patching if task in tasks)
        if not (supported and patching):
            raise ValueError(
                f"{', '.join(tasks)} makes no pair; choose at least one supported task "
                f"({', '.join(self.supported)}) and one patching task ({', '.join(self.patching)})"
            )
        return replace(self, supported=supported, patching=patching)


def _profile(name: str, like: str = "", **own: Any) -> Profile:
    said = _TABLE.get(like, {}) | own
    clip, roles = said["clip"], {"supported": SUPPORTED, "patching": PATCHING}
    if not isinstance(clip, str):
        clip = SmallClip(**clip | {"recipe": Recipe(**clip["recipe"])})
    made = {"clip": clip, "finetuning": Recipe(**said["finetuning"])}
    made["pixels"] = Standard(*(tuple(said["pixels"][key]) for key in Standard._fields))
    made |= {role: tuple(said.get(role, usual)) for role, usual in roles.items()}
    return Profile(name=name, **said | made)


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PROFILES = {name: _profile(name, **said) for name, said in _TABLE.items()}


def get(name: str) -> Profile:
    """Return the profile called `name`."""
    refuse_unknown([name], PROFILES, "unknown profile")
    return PROFILES[name]
