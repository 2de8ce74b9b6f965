"""What a point of the path costs: the loss and the accuracy of a task, its slope and gradient."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paintlib.interpolation import WeightPath
from paintlib.objective import ImageScores, Score

__all__ = ["TaskLoss"]


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
        return self.evaluate().score

    def evaluate(self) -> ImageScores:
        """Return what each image costs, in the order of the batches; errors as `score`."""
        losses, correct = [], []
        with torch.inference_mode():
            for logits, labels in self._forward():
                each = F.cross_entropy(logits.double(), labels, reduction="none")
                # the logits have no more digits, and float32 takes half the room in a store
                losses.append(each.to(torch.promote_types(logits.dtype, torch.float32)).double())
                correct.append(logits.argmax(1) == labels)
            return ImageScores(torch.cat(losses).cpu().numpy(), torch.cat(correct).cpu().numpy())

    def value_and_slope(self, path: WeightPath, alpha: float,
                        step: float = 1e-3) -> tuple[float, float]:  # fmt: skip
        """Return the mean loss L and dL/dalpha at `alpha`, from two losses `step` apart around it.

        Both err by the order of step^2, the slope also by the rounding of the losses over `step`:
        in float32 the default balances the two. It costs less than a backward pass, and sees what
        no `gradient` reaches, as the running statistics of BatchNorm. It leaves w(alpha) in the
        model. Errors are those of `score` and `path`.
        """
        if not (math.isfinite(step) and step > 0):
            raise ValueError(f"step is {step}; it is a distance on the path, 0.001 for instance")
        below, above = alpha - step / 2, alpha + step / 2
        losses = []
        for position in (below, above):
            path.set_(self.model, position)
            losses.append(self.score().loss)
        path.set_(self.model, alpha)
        return math.fsum(losses) / 2, (losses[1] - losses[0]) / (above - below)

    def gradient(self) -> dict[str, Tensor]:
        """Return the mean loss's gradient by parameter, 0 if it has no say; errors as `score`."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        frozen = [p for p in parameters if not p.requires_grad]
        total: list[Tensor] = []
        images = 0
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            for logits, labels in self._forward():
                loss = F.cross_entropy(logits.double(), labels, reduction="sum")
                part = torch.autograd.grad(loss, parameters, materialize_grads=True)
                total = [a + b for a, b in zip(total, part, strict=True)] if total else list(part)
                images += len(labels)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        return {name: part / images for name, part in zip(names, total, strict=True)}

    def _forward(self) -> Iterable[tuple[Tensor, Tensor]]:
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() before scoring it")
        logits, empty = self.logits or self.model, True
        for images, labels in self.batches:
            yield logits(images), labels
            empty = False
        if empty:
            raise ValueError("no image to score: `batches` is empty or a generator already used up")
