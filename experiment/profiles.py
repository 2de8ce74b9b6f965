"""What differs between the profiles: the model, the tasks, how long to train."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

SUPPORTED = ("ImageNet", "CIFAR10", "CIFAR100", "STL10")
PATCHING = (
    "Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SUN397", "SVHN", "FashionMNIST",
)  # fmt: skip
ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))  # the exhaustive search of the paper


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, linear warm-up, cosine decay to zero, clipped gradients."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
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

    `clip` is a model to pre-train, or the name of an architecture of open_clip, whose weights are
    public and whose tasks are the real data sets. `train`, `validation` and `test` are images per
    task, None for all; alpha is chosen on validation images, results are reported on test images.
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

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of all tasks, supported ones first."""
        return self.supported + self.patching

    @property
    def real(self) -> bool:
        """Say whether the tasks are the real data sets, and not their micro twins."""
        return isinstance(self.clip, str)

    def images(self, split: str) -> int | None:
        """Return how many images a task's split may hold in this profile; None for all."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def label(self, task: str) -> str:
        """Return how a task is written on pages: a twin carries a µ."""
        return task if self.real else f"µ{task}"

    def limited(self, images: int) -> Profile:
        """Return the dry run of this profile: few images a split, one template, few steps.

        Raises:
            ValueError: the profile has no dry run, or `images` is negative.
        """
        if images < 0 or (images and not self.real):
            raise ValueError(
                f"limit = {images}; it is a number of images a split, from 1, for the profile paper"
            )
        if not images:
            return self
        few: dict[str, Any] = {
            "steps": min(self.finetuning.steps, images),
            "batch_size": min(self.finetuning.batch_size, images),
            "warmup_steps": min(self.finetuning.warmup_steps, 1),
        }
        recipe = replace(self.finetuning, **few)
        splits: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), images)
        return replace(self, finetuning=recipe, limit=images, **splits)

    def only(self, tasks: Sequence[str]) -> Profile:
        """Return this profile restricted to some of its tasks; their roles stay.

        Raises:
            ValueError: a task is not of this profile, or a role is left without a task.
        """
        if unknown := sorted(set(tasks) - set(self.tasks)):
            raise ValueError(
                f"the profile {self.name!r} has no task {unknown[0]!r}; "
                f"choose from {', '.join(self.tasks)}"
            )
        supported = tuple(task for task in self.supported if task in tasks)
        patching = tuple(task for task in self.patching if task in tasks)
        if not (supported and patching):
            raise ValueError(
                f"{', '.join(tasks)} makes no pair; choose at least one supported task "
                f"({', '.join(self.supported)}) and one patching task ({', '.join(self.patching)})"
            )
        return replace(self, supported=supported, patching=patching)


_CONTEXT = 14  # the longest prompt of the twins has 13 tokens
_TWINS = Standard((0.5, 0.5, 0.5), (0.28, 0.28, 0.28))
# the constants of OpenAI's CLIP, the same in every implementation
_CLIP = Standard((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

PROFILES = {
    "smoke": Profile(
        name="smoke",
        purpose="a test of the machinery, 2 x 2 twins in about a minute",
        supported=("CIFAR10", "STL10"),
        patching=("MNIST", "SVHN"),
        clip=SmallClip(
            embed_dim=32,
            vision={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            text={"context_length": _CONTEXT, "width": 32, "heads": 2, "layers": 1},
            captioned_images=4000,
            recipe=Recipe(250, 128, learning_rate=3e-3, warmup_steps=20, betas=(0.9, 0.98)),
        ),
        pixels=_TWINS,
        finetuning=Recipe(60, 64, learning_rate=2e-3, warmup_steps=5),
        train=500,
        validation=300,
        test=300,
    ),
    "micro": Profile(
        name="micro",
        purpose="13 micro twins and 36 pairs on a laptop",
        supported=SUPPORTED,
        patching=PATCHING,
        clip=SmallClip(
            embed_dim=128,
            vision={"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
            text={"context_length": _CONTEXT, "width": 96, "heads": 3, "layers": 2},
            captioned_images=40_000,
            recipe=Recipe(900, 192, 2e-3, warmup_steps=50, weight_decay=0.05, betas=(0.9, 0.98)),
        ),
        pixels=_TWINS,
        finetuning=Recipe(190, 64, learning_rate=5e-4, warmup_steps=10),
        train=2500,
        validation=500,
        test=1000,
    ),
    "paper": Profile(
        name="paper",
        purpose="CLIP ViT-B/32 and the 13 real data sets, 36 pairs on a GPU",
        supported=SUPPORTED,
        patching=PATCHING,
        clip="ViT-B-32-quickgelu",
        pixels=_CLIP,
        # PAINT's recipe; its checkpoints are large, so they are written seldom
        finetuning=Recipe(2000, 128, learning_rate=1e-5, warmup_steps=200, checkpoint_every=500),
        batch_size=128,
    ),
}


def get(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        ValueError: there is none; the names are listed.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
