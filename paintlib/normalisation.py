"""The scales that make the losses of two tasks comparable before they are added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["NORMALISATIONS", "Normaliser", "normaliser"]

NORMALISATIONS = ("zero_shot", "log_classes", "minmax", "none")


class Normaliser(NamedTuple):
    """An affine change of scale: a loss L becomes (L - offset) / unit."""

    offset: float
    unit: float

    def __call__(self, loss: float) -> float:
        """Return the normalised loss."""
        return (loss - self.offset) / self.unit


def normaliser(kind: str, losses: Sequence[float], classes: int) -> Normaliser:
    """Return the scale that makes two tasks' losses comparable (paper, section 3).

    Args:
        kind: `zero_shot` divides by L(0); `log_classes` by ln C, the loss of a uniform guess;
            `minmax` maps the sampled range to [0, 1]; `none` leaves nats per image.
        losses: the task's losses along the path, the first at alpha = 0.
        classes: the number C of classes.

    Raises:
        ValueError: `kind` is unknown, or the scale would be zero or not finite.

    >>> normaliser("zero_shot", [2.0, 1.0], classes=10)(1.0)
    0.5
    """
    if kind not in NORMALISATIONS:
        raise ValueError(
            f"unknown normalisation {kind!r}; choose one of {', '.join(NORMALISATIONS)}"
        )
    offset, unit = {
        "zero_shot": lambda: (0.0, losses[0]),
        "log_classes": lambda: (0.0, math.log(classes)),
        "minmax": lambda: (min(losses), max(losses) - min(losses)),
        "none": lambda: (0.0, 1.0),
    }[kind]()
    if not (math.isfinite(unit) and math.isfinite(offset) and unit > 0):
        raise ValueError(
            f"the {kind!r} normalisation has the scale {unit}: the task's loss is zero, constant "
            "or not finite along the path; choose another normalisation"
        )
    return Normaliser(float(offset), float(unit))
