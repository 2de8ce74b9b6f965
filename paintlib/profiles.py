"""What differs between the profiles: the model, the tasks, how long to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paintlib.tasks import micro
from paintlib.training import Recipe

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))  # the exhaustive search of the paper


@dataclass(frozen=True)
class Profile:
    """One size of the experiment.

    Attributes:
        name: `smoke` or `micro`.
        purpose: one line for people.
        supported: tasks whose quality is to be kept.
        patching: tasks to be fixed, each paired with every supported one.
        embed_dim: width of CLIP's joint embedding.
        vision: fields of `open_clip.CLIPVisionCfg`.
        text: fields of `open_clip.CLIPTextCfg` but the vocabulary size.
        captioned_images: size of the pre-training set.
        pretraining: recipe of the pre-training.
        finetuning: recipe of each fine-tuning.
        train_images: images to fine-tune on, per task.
        validation_images: images on which alpha is chosen, per task.
        test_images: images on which results are reported, per task.
        batch_size: images per forward pass when scoring.
    """

    name: str
    purpose: str
    supported: tuple[str, ...]
    patching: tuple[str, ...]
    embed_dim: int
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    captioned_images: int
    pretraining: Recipe
    finetuning: Recipe
    train_images: int
    validation_images: int
    test_images: int
    batch_size: int = 100

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of all tasks, supported ones first."""
        return self.supported + self.patching

    def images(self, split: str) -> int:
        """Return how many images a task's split holds in this profile."""
        return {
            "train": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }[split]


_CONTEXT = 14  # the longest prompt has 13 tokens

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            purpose="a test of the machinery, 2 x 2 twins in about a minute",
            supported=("CIFAR10", "STL10"),
            patching=("MNIST", "SVHN"),
            embed_dim=32,
            vision={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            text={"context_length": _CONTEXT, "width": 32, "heads": 2, "layers": 1},
            captioned_images=4000,
            pretraining=Recipe(
                steps=250, batch_size=128, learning_rate=3e-3, warmup_steps=20, betas=(0.9, 0.98)
            ),
            finetuning=Recipe(steps=60, batch_size=64, learning_rate=2e-3, warmup_steps=5),
            train_images=500,
            validation_images=300,
            test_images=300,
        ),
        Profile(
            name="micro",
            purpose="13 micro twins and 36 pairs on a laptop",
            supported=micro.SUPPORTED,
            patching=micro.PATCHING,
            embed_dim=128,
            vision={"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
            text={"context_length": _CONTEXT, "width": 96, "heads": 3, "layers": 2},
            captioned_images=40_000,
            pretraining=Recipe(
                steps=900,
                batch_size=192,
                learning_rate=2e-3,
                warmup_steps=50,
                weight_decay=0.05,
                betas=(0.9, 0.98),
            ),
            finetuning=Recipe(steps=190, batch_size=64, learning_rate=5e-4, warmup_steps=10),
            train_images=2500,
            validation_images=500,
            test_images=1000,
        ),
    )
}


def get(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        ValueError: there is none; the names are listed.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def run_name(profile: str, seed: int) -> str:
    """Return the folder name of a run: the profile, and the seed unless it is 0."""
    get(profile)
    if seed < 0:
        raise ValueError(f"seed = {seed}; a seed counts from 0")
    return profile if seed == 0 else f"{profile}-seed{seed}"
