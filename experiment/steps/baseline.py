"""Score a supported task at the zero-shot weights, where all paths begin, once for all of them."""

from __future__ import annotations

import json

import torch

from experiment import weights
from experiment.run import Run
from experiment.session import Session


def baseline(run: Run, supported: str) -> None:
    """Write a supported task's losses and their gradient: only its direction differs by path."""
    session = Session(run)
    visual = session.tower()
    validation, test = (
        session.losses(visual, [supported], split)[supported] for split in ("validation", "test")
    )
    images = validation.evaluate()
    gradient = validation.gradient()
    weights.save(
        run.baseline(supported),
        {
            "losses": torch.from_numpy(images.losses),
            "correct": torch.from_numpy(images.correct),
            **{f"gradient.{name}": part for name, part in gradient.items()},
        },
        task=supported,
        test=json.dumps(test.score()),
        parent=weights.metadata(run.zero_shot)["digest"],
    )
