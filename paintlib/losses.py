"""What a point of the path costs: the loss and accuracy of a task, its slope, and a pair's sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paintlib.interpolation import WeightPath

NORMALISATIONS = ("zero_shot", "log_classes", "minmax", "none")


class Score(NamedTuple):
    """Mean cross-entropy (nats per image), top-1 accuracy (fraction) and number of images."""

    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class TaskLoss:
    """The cross-entropy of one task as a function of the weights that `model` holds now.

    Args:
        model: the module whose weights move along the path; in evaluation mode.
        batches: pairs of images `(n, ...)` and int64 labels `(n,)`; iterated anew at each call,
            so a list or a DataLoader, not a generator.
        logits: maps images to logits `(n, classes)` through `model`; `model` itself by default.
    """

    model: nn.Module
    batches: Iterable[tuple[Tensor, Tensor]]
    logits: Callable[[Tensor], Tensor] | None = None

    def score(self) -> Score:
        """Return the mean loss and the accuracy at the model's present weights.

        Sums are kept in float64 on the device and leave it once.

        Raises:
            ValueError: the model is in training mode, or there is no image.
            IndexError: a label is not below the number of classes.
        """
        with torch.inference_mode():
            total: Tensor | None = None
            images = 0
            for logits, labels in self._forward():
                row = torch.stack(
                    [
                        F.cross_entropy(logits.double(), labels, reduction="sum"),
                        (logits.argmax(1) == labels).sum().double(),
                    ]
                )
                total = row if total is None else total + row
                images += len(labels)
        if total is None:
            raise ValueError("no image to score: `batches` is empty or a generator already used up")
        loss, correct = total.tolist()
        return Score(loss / images, correct / images, images)

    def gradient(self) -> dict[str, Tensor]:
        """Return the gradient of the mean loss, one tensor per parameter of `model` that it uses.

        Raises:
            ValueError: as `score`.
        """
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        frozen = [p for p in parameters if not p.requires_grad]
        total: list[Tensor] | None = None
        images = 0
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            for logits, labels in self._forward():
                loss = F.cross_entropy(logits.double(), labels, reduction="sum")
                part = torch.autograd.grad(
                    loss, parameters, allow_unused=True, materialize_grads=True
                )
                total = (
                    [a.add_(b) for a, b in zip(total, part, strict=True)]
                    if total
                    else [p.clone() for p in part]
                )
                images += len(labels)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if total is None:
            raise ValueError("no image to score: `batches` is empty or a generator already used up")
        return {name: part / images for name, part in zip(names, total, strict=True)}

    def slope(self, path: WeightPath) -> float:
        """Return dL/dalpha along `path` at the present weights: <grad L, w_ft - w_zs>, in float64.

        Raises:
            ValueError: as `score`; or a buffer (BatchNorm's running statistics, say) changes along
                the path, so that the loss depends on alpha beyond the parameters.
        """
        parameters = dict(self.model.named_parameters())
        displacement = path.unflatten(path.end.double() - path.start.double())
        for name, part in displacement.items():
            if name not in parameters and bool(part.any()):
                raise ValueError(
                    f"the buffer {name!r} changes along the path, so the slope by gradients would "
                    "be wrong; use finite differences of the loss instead"
                )
        gradient = self.gradient()
        return math.fsum(
            float((gradient[name].double() * displacement[name]).sum()) for name in gradient
        )

    def _forward(self) -> Iterable[tuple[Tensor, Tensor]]:
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() before scoring it")
        logits = self.logits or self.model
        for images, labels in self.batches:
            yield logits(images), labels


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


@dataclass
class PairObjective:
    """The objective of the paper: normalised losses of a supported and a patching task at alpha.

    Calling it writes w(alpha) into the model and returns one normalised loss per task, whose sum
    is to be minimised. Raw scores are memoised in `scores`, so a visited alpha costs nothing, and
    evaluations made elsewhere can be put in.

    Args:
        path: the weights.
        tasks: one `TaskLoss` per task (any number works; the paper has two), on one model.
        classes: number of classes per task.
        normalisation: one of `NORMALISATIONS`.
        scores: evaluations already paid for, alpha to one `Score` per task.
        samples: the alphas whose losses set the scale of `minmax`; the other kinds need only 0.

    Raises:
        ValueError: a normalisation is unknown or impossible; tasks and classes differ in number.
    """

    path: WeightPath
    tasks: Sequence[TaskLoss]
    classes: Sequence[int]
    normalisation: str = "zero_shot"
    scores: dict[float, tuple[Score, ...]] = field(default_factory=dict)
    samples: Sequence[float] = tuple(float(a) for a in np.linspace(0.0, 1.0, 21).round(12))

    def __post_init__(self) -> None:
        if len(self.tasks) != len(self.classes):
            raise ValueError(f"{len(self.tasks)} tasks but {len(self.classes)} class counts")
        if len({id(task.model) for task in self.tasks}) != 1:
            raise ValueError("the tasks must share one model: the one the path writes into")
        alphas = self.samples if self.normalisation == "minmax" else (0.0,)
        curves = zip(*(self.score(alpha) for alpha in alphas), strict=True)
        self.normalisers = tuple(
            normaliser(self.normalisation, [s.loss for s in curve], classes)
            for curve, classes in zip(curves, self.classes, strict=True)
        )

    def score(self, alpha: float) -> tuple[Score, ...]:
        """Return the raw score of each task at `alpha`, evaluating it on the first visit only."""
        alpha = float(alpha)
        if alpha not in self.scores:
            self.path.set_(self.tasks[0].model, alpha)
            self.scores[alpha] = tuple(task.score() for task in self.tasks)
        return self.scores[alpha]

    def __call__(self, alpha: float) -> tuple[float, ...]:
        """Return the normalised loss of each task at `alpha`.

        Raises:
            ValueError: a loss is not finite there.
        """
        losses = [score.loss for score in self.score(alpha)]
        if not all(map(math.isfinite, losses)):
            raise ValueError(f"the loss at alpha = {alpha} is not finite: {losses}")
        return tuple(n(loss) for n, loss in zip(self.normalisers, losses, strict=True))


def known_scores(
    alphas: Sequence[float], curves: Sequence[Mapping[str, Sequence[float]]]
) -> dict[float, tuple[Score, ...]]:
    """Return sampled curves in the form `PairObjective.scores` takes.

    Args:
        alphas: n positions on the path.
        curves: per task, `loss` and `accuracy` of length n and `images`, as in a results file.
    """
    return {
        float(alpha): tuple(
            Score(curve["loss"][i], curve["accuracy"][i], int(curve["images"]))  # type: ignore[call-overload]
            for curve in curves
        )
        for i, alpha in enumerate(alphas)
    }
