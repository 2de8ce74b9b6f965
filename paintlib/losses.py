"""What a point of the path costs: the loss and accuracy of a task, its slope, and a pair's sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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

        Raises:
            ValueError: the model is in training mode, or there is no image.
            IndexError: a label is not below the number of classes.
        """
        return self.evaluate()[0]

    def evaluate(self) -> tuple[Score, NDArray[np.float64]]:
        """Return the score, and the loss of each image in the order of the batches, `(images,)`.

        They are kept in float64 on the device and leave it once.

        Raises:
            ValueError, IndexError: as `score`.
        """
        with torch.inference_mode():
            rows = [
                torch.stack(
                    [
                        F.cross_entropy(logits.double(), labels, reduction="none"),
                        (logits.argmax(1) == labels).double(),
                    ]
                )
                for logits, labels in self._forward()
            ]
        if not rows:
            raise ValueError("no image to score: `batches` is empty or a generator already used up")
        losses, correct = torch.cat(rows, dim=1).cpu().numpy()
        return Score(float(losses.mean()), float(correct.mean()), len(losses)), losses

    def value_and_slope(
        self, path: WeightPath, alpha: float, step: float = 1e-3
    ) -> tuple[float, float]:
        """Return the mean loss L and dL/dalpha at `alpha`, from two losses `step` apart around it.

        Both err by the order of step^2, and the slope by the rounding of the losses over `step`
        too; on losses in float32 the default balances the two (1e-6 and 1e-4 on the micro twins).
        It costs two losses, where a backward pass costs more than three, and it holds for weights
        that no gradient reaches, such as the running statistics of BatchNorm. The exact slope is
        <grad L, w_ft - w_zs>, see `gradient`.

        Args:
            path: the weights; w(alpha) is in the model afterwards.
            alpha: position on the path; at an end, step / 2 beyond it is looked at too.
            step: distance of the two losses, in units of alpha.

        Raises:
            ValueError: as `score`; `step` is not positive, or the model does not fit the path.
        """
        if not (math.isfinite(step) and step > 0):
            raise ValueError(f"step is {step}; it is a distance on the path, 0.001 for instance")
        below, above = alpha - step / 2, alpha + step / 2
        losses = [self._loss_at(path, position) for position in (below, above)]
        path.set_(self.model, alpha)
        return math.fsum(losses) / 2, (losses[1] - losses[0]) / (above - below)

    def gradient(self) -> dict[str, Tensor]:
        """Return the gradient of the mean loss, one tensor per parameter of `model`.

        A parameter that the logits do not depend on has a gradient of zeros.

        Raises:
            ValueError: as `score`.
        """
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        frozen = [p for p in parameters if not p.requires_grad]
        total: list[Tensor] = []
        images = 0
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            for logits, labels in self._forward():
                loss = F.cross_entropy(logits.double(), labels, reduction="sum")
                part = torch.autograd.grad(
                    loss, parameters, allow_unused=True, materialize_grads=True
                )
                if total:
                    total = [a.add_(b) for a, b in zip(total, part, strict=True)]
                else:
                    total = [p.clone() for p in part]
                images += len(labels)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if not total:
            raise ValueError("no image to score: `batches` is empty or a generator already used up")
        return {name: part / images for name, part in zip(names, total, strict=True)}

    def _loss_at(self, path: WeightPath, alpha: float) -> float:
        path.set_(self.model, alpha)
        return self.score().loss

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
        losses: the loss of each image at evaluations already paid for, alpha to one array per
            task; those made here are added.

    Raises:
        ValueError: a normalisation is unknown or impossible; tasks and classes differ in number.
    """

    path: WeightPath
    tasks: Sequence[TaskLoss]
    classes: Sequence[int]
    normalisation: str = "zero_shot"
    scores: dict[float, tuple[Score, ...]] = field(default_factory=dict)
    samples: Sequence[float] = tuple(float(a) for a in np.linspace(0.0, 1.0, 21).round(12))
    losses: dict[float, tuple[NDArray[np.float64], ...]] = field(default_factory=dict)
    forwards: int = field(default=0, init=False)  # images that went through the model here

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
            scores, losses = zip(*(task.evaluate() for task in self.tasks), strict=True)
            self.scores[alpha], self.losses[alpha] = scores, losses
            self.forwards += sum(score.images for score in scores)
        return self.scores[alpha]

    def per_image(self, alpha: float) -> tuple[NDArray[np.float64], ...] | None:
        """Return what each image adds to its task's normalised loss, an array `(images,)` per task.

        The mean of an array is the normalised loss, and its variance over the number of images is
        the squared sampling error of it: the scale is estimated from the same images, so its own
        error is carried along to first order (the delta method).

        Returns:
            None where the losses of single images are not known at `alpha`, or where the scale
            takes them (0 for `zero_shot`; all samples for `minmax`).
        """
        curve_at = {"zero_shot": [0.0], "minmax": [float(a) for a in self.samples]}
        scale_at = curve_at.get(self.normalisation, [])
        if any(float(a) not in self.losses for a in (alpha, *scale_at)):
            return None
        rows = []
        for i, (offset, unit) in enumerate(self.normalisers):
            own = self.losses[float(alpha)][i]
            offsets, units = np.full_like(own, offset), np.full_like(own, unit)  # by image
            if self.normalisation == "zero_shot":
                units = self.losses[0.0][i]
            elif self.normalisation == "minmax":
                low = min(scale_at, key=lambda a, i=i: self.scores[a][i].loss)  # type: ignore[misc]
                high = max(scale_at, key=lambda a, i=i: self.scores[a][i].loss)  # type: ignore[misc]
                offsets = self.losses[low][i]
                units = self.losses[high][i] - offsets
            # (L - o) / u, with the error of each of the three added to first order
            value = (own.mean() - offset) / unit
            rows.append((own - offsets - value * (units - unit)) / unit)
        return tuple(rows)

    def difference(self, first: float, second: float) -> tuple[float, float] | None:
        """Return J(first) - J(second) of the summed normalised loss, and its sampling error.

        Both are measured on the same images, so most of the error of either cancels.

        Returns:
            None where the losses of single images are not known at both.
        """
        a, b = self.per_image(first), self.per_image(second)
        if a is None or b is None:
            return None
        rows = [x - y for x, y in zip(a, b, strict=True)]
        return (
            math.fsum(float(row.mean()) for row in rows),
            math.sqrt(math.fsum(float(row.var()) / len(row) for row in rows)),
        )

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
