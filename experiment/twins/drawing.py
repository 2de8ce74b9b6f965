"""Draw the twins and the captioned pictures."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from experiment import weights
from experiment.profiles import SmallClip
from experiment.progress import bar
from experiment.run import Run
from experiment.tasks import SPLITS
from experiment.twins import micro


def render(run: Run) -> None:
    """Draw the splits of every twin and write one file a task."""
    for task in bar(run.profile.tasks, "render the tasks"):
        tensors: dict[str, Tensor] = {}
        for split in SPLITS:
            count = run.profile.images(split)
            assert count is not None
            drawn = micro.render(task, split, count, **design(run, "WILD_SHARE"))
            tensors |= {f"{split}.images": drawn.images, f"{split}.labels": drawn.labels}
        weights.save(run.images(task), tensors, task=task)


def design(run: Run, name: str) -> dict[str, float]:
    """Return a constant of the twins as an argument, where the profile has another value."""
    return {key.lower(): value for key, value in run.profile.design.items() if key == name}


def caption(run: Run) -> None:
    """Draw the captioned images for the pre-training, and write them."""
    clip = run.profile.clip
    assert isinstance(clip, SmallClip)
    images, captions = micro.captioned(
        clip.captioned_images, run.seed, **design(run, "CAPTION_NOISE")
    )
    distinct = sorted(set(captions))
    rows = {caption: row for row, caption in enumerate(distinct)}
    numbers = torch.tensor([rows[caption] for caption in captions])
    tensors = {"images": images, "captions": numbers}
    weights.save(run.captioned, tensors, distinct=json.dumps(distinct))
