"""The scales that make the losses of two tasks comparable before they are added."""

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
    """Return the scale of a task's losses, N in (1.3) eq-objective.

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
        raise ValueError(f"unknown normalisation {kind!r}; choose from {', '.join(NORMALISATIONS)}")
    if kind == "log_classes" and classes == 1:
        raise ValueError("'log_classes' needs the number of classes, which one's own loss does not "
                         "tell; choose another")  # fmt: skip
    if classes < 1:
        raise ValueError(f"classes = {classes}; a task has one or more")
    low, high = min(losses), max(losses)
    units = {"zero_shot": losses[0], "log_classes": math.log(classes), "minmax": high - low}
    scale = Normaliser(float(low if kind == "minmax" else 0.0), float(units.get(kind, 1.0)))
    if not (math.isfinite(scale.unit) and math.isfinite(scale.offset) and scale.unit > 0):
        cause = "the task's loss is zero, constant or not finite along the path; choose another"
        raise ValueError(f"the {kind!r} normalisation has the scale {scale.unit}: {cause}")
    return scale
