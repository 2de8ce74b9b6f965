"""What a point of the path costs: the loss and the accuracy of a task, its slope and gradient."""

import contextlib
import dataclasses
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paintlib.interpolation import WeightPath
from paintlib.objective import SAME_IMAGES, ImageScores, Score

__all__ = ["TaskLoss"]

IGNORED = -100  # the label of what has none, as everywhere in torch
SHOWN = 256  # numbers of an example that go into a digest, evenly spread
TWICE = 32  # images that are scored twice, or those of a batch: batches may be of one image
NO_LABEL = f"no image to score: all labels of `batches` are {IGNORED}"
PER_EXAMPLE = "return one value per example, (n,): the mean over its labels, none over the batch"


class _Part(NamedTuple):
    """Of a batch: costs and hits `(n,)`, which of them count, who they are, and the precision."""

    losses: Tensor
    hits: Tensor
    kept: Tensor
    leaves: dict[str, Tensor]
    dtype: torch.dtype
    classes: int = 0


@dataclasses.dataclass(frozen=True)
class TaskLoss:
    """The loss of one task as a function of the weights that `model` holds now.

    By default it is the cross-entropy, one value per example: the mean over those of its labels
    that are not -100. An example without any is left out.

    Args:
        model: the module whose weights move along the path; all of it in evaluation mode.
        batches: pairs of images `(n, ...)` and integer labels `(n,)`, or `(n, t, ...)` for tokens
            and pixels; with `loss`, of any form. Iterated anew at each call, in the same order:
            a list or a DataLoader that does not shuffle, not a generator.
        logits: maps images to logits `(n, classes)`, or `(n, classes, t, ...)`, through `model`;
            `model` itself by default.
        loss: `loss(model, batch)` is what each example of a batch costs, `(n,)`; of right or wrong
            (0 or 1) it may be evaluated, but has no slope, and so no sampling error of alpha.
        correct: `correct(model, batch)` is which of them are right, `(n,)`, of bool or fractions.
            A `loss` without it has the accuracy nan.
    """

    model: nn.Module
    batches: Iterable[Any]
    logits: Callable[[Any], Tensor] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    correct: Callable[[nn.Module, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.correct and not self.loss) or (self.loss and self.logits):
            raise ValueError("give logits, or a loss and perhaps correct: they replace each other")

    def score(self) -> Score:
        """Return the mean loss and the accuracy at the model's present weights.

        ValueError if a module is in training mode, there is no image, or batches, outputs or values
        are not as described above; IndexError if a label is neither a class nor -100.
        """
        return self.evaluate().score

    def evaluate(self, least: float = math.inf) -> ImageScores:
        """Return what each image costs, in the order of the batches; errors as `score`.

        After the batch that ends the first `least` images it stops.
        """
        if not len((images := self._evaluate(least)).losses):
            raise ValueError(NO_LABEL)
        return images

    def _evaluate(self, least: float = math.inf) -> ImageScores:
        parts, kinds = [], {torch.float64}

        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                kinds.add(output.dtype)  # a head in float32 may hide what came before it

        with torch.inference_mode(), contextlib.ExitStack() as first:
            for module in self.model.modules():
                first.enter_context(module.register_forward_hook(see))
            if "torch._dynamo" in sys.modules:  # what is compiled calls no hook
                first.enter_context(torch.compiler.set_stance("force_eager"))
            for part in self._forward():
                first.close()  # one batch tells
                kinds.add(part.dtype)
                parts.append(part)
                if least < math.inf and sum(int(part.kept.sum()) for part in parts) >= least:
                    break
            kept = torch.cat([part.kept for part in parts])
            columns = (part.losses for part in parts), (part.hits for part in parts)
            losses, hits = (torch.cat(list(c))[kept].cpu().numpy() for c in columns)
        eps = max(torch.finfo(kind).eps for kind in kinds)
        return ImageScores(losses, hits, _digest([part.leaves for part in parts]), eps)

    def repeat(self, scores: ImageScores) -> None:
        """Score the first 32 images, or the first batch, once more: they cost what `scores` says.

        The two may differ by rounding, which the kernels of a GPU need not repeat. What differs
        by more is shuffled, augmented or dropped anew, and raises ValueError.
        """
        again = self._evaluate(TWICE).losses
        with np.errstate(invalid="ignore"):  # a loss that is not finite is told with its alpha
            apart = np.abs(again - scores.losses[: len(again)])
        if np.linalg.norm(apart) > math.sqrt(scores.eps) * np.linalg.norm(again):
            worst = int(apart.argmax())
            seen = f"image {worst} costs {scores.losses[worst]:.6g}, then {again[worst]:.6g}"
            raise ValueError(f"what is scored twice at the same weights differs: {seen}; "
                             f"{SAME_IMAGES}")  # fmt: skip

    def confirm(self, kept: ImageScores, where: object) -> None:
        """Score the task where `kept`, read from `where`, was scored; ValueError if that differs.

        Rounding may differ, as on another device; images, their order and the precision may not.
        """
        now = self.evaluate()
        same = len(now.losses) == len(kept.losses) and kept.digest in ("", now.digest)
        close = same and np.allclose(kept.losses, now.losses, 0.02, 1e-3, equal_nan=True)
        if not close or abs(now.eps - kept.eps) > 1e-4:  # float32 and finer are not told apart
            what = "has other losses at alpha = 0: data, model or precision changed"
            raise ValueError(f"{where} {what}; delete it, or give another file")

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
        total: list[Tensor] = []
        images = 0
        with contextlib.ExitStack() as undo:
            for parameter in parameters:
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)
            for part in self._forward():
                own = torch.autograd.grad(part.losses.sum(), parameters, materialize_grads=True)
                total = [a + b for a, b in zip(total, own, strict=True)] if total else list(own)
                images += int(part.kept.sum())
        if not images:
            raise ValueError(NO_LABEL)
        return {name: part / images for name, part in zip(names, total, strict=True)}

    def _forward(self) -> Iterator[_Part]:
        if training := [name for name, module in self.model.named_modules() if module.training]:
            which = f"{len(training)} modules, first: {training[0] or 'the model itself'}"
            remedy = "call model.eval() before scoring it"
            raise ValueError(f"the model is in training mode ({which}); {remedy}")
        torch.clear_autocast_cache()  # it may hold the weights of another alpha
        score, labelled = self._own if self.loss else self._cross_entropy, []
        for number, batch in enumerate(self.batches):
            part = score(number, batch)
            labelled.append((part.leaves.get("labels", part.hits), part.classes))
            # what has been computed has no more digits, and float32 takes half the room in a store
            losses = part.losses.to(torch.promote_types(part.dtype, torch.float32))
            yield part._replace(losses=losses.double())
        if not labelled:
            raise ValueError("no image to score: `batches` is empty or a generator already used up")
        for number, (labels, classes) in enumerate(labelled):  # one wait for the device, at the end
            if classes and (wrong := outside(labels, classes)).any():
                said = f"batch {number}: label {int(labels[wrong][0])} is out of bounds"
                remedy = f"labels are 0 to {classes - 1}, or {IGNORED} for what has none"
                raise IndexError(f"{said} for {classes} classes; {remedy}")

    def _cross_entropy(self, number: int, batch: Any) -> _Part:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not (pair and isinstance(batch[1], Tensor)):
            remedy = "give loss=lambda model, batch: ..., with one value per example"
            raise ValueError(f"batch {number} is no pair (images, labels) of tensors but "
                             f"{_said(batch)}; {remedy}")  # fmt: skip
        images, labels = batch
        logits = (self.logits or self.model)(images)
        if not isinstance(logits, Tensor):
            remedy = "give logits=lambda images: model(images).logits, or a loss"
            raise ValueError(f"batch {number}: the model returns {_said(logits)}; {remedy}")
        fits = logits.ndim > 1 and labels.shape == logits.shape[:1] + logits.shape[2:]
        if not fits or labels.is_floating_point():
            remedy = "logits are (n, classes, ...), labels integers of that shape without axis 1"
            raise ValueError(f"batch {number}: labels are {_said(labels)}, "
                             f"logits {_said(logits)}; {remedy}")  # fmt: skip
        classes = logits.shape[1]
        known = labels.long().masked_fill(outside(labels, classes), IGNORED)  # refused at the end
        each = F.cross_entropy(logits.double(), known, reduction="none", ignore_index=IGNORED)
        hits, kept = logits.argmax(1) == labels, known != IGNORED
        if labels.ndim > 1:
            count = kept.flatten(1).sum(1)
            each, hits = (x.flatten(1).sum(1).double() / count.clamp(min=1) for x in (each, hits))
            kept = count > 0
        return _Part(each, hits, kept, {"labels": labels}, logits.dtype, classes)

    def _own(self, number: int, batch: Any) -> _Part:
        parts = dict(leaves(batch))
        sizes = {len(leaf) for leaf in parts.values() if leaf.ndim}
        numbers = {1, *(leaf.numel() for leaf in parts.values())}
        columns: list[Tensor] = []
        for name, call in (("loss", self.loss), ("correct", self.correct)):
            values = call(self.model, batch) if call else columns[0].double() * math.nan
            fits = isinstance(values, Tensor) and values.ndim == 1
            # tensors that agree on a length tell the number of examples; one value is a mean, as
            # many as a tensor has numbers are flattened
            odd = fits and sizes and len(values) not in sizes
            if not fits or (odd and (len(sizes) == 1 or len(values) in numbers)):
                of = f" of {min(sizes)} examples" if len(sizes) == 1 else ""
                said = f"{name} gives {_said(values)} for batch {number}{of}"
                raise ValueError(f"{said}; {PER_EXAMPLE}")
            columns.append(values)
        losses, hits = columns
        losses = losses if losses.is_floating_point() else losses.double()  # right or wrong
        hits = hits if hits.dtype == torch.bool else hits.double()
        integers = {name: leaf for name, leaf in parts.items() if not leaf.is_floating_point()}
        shown = {}  # a few numbers of each example, on the host, so that the batch itself can go
        for name, leaf in (integers or parts).items():
            flat = leaf.reshape(len(leaf) if leaf.ndim else 1, math.prod(leaf.shape[1:]))
            shown[name] = flat[:, :: max(1, flat.shape[1] // SHOWN)].cpu().clone()
        return _Part(losses, hits, torch.ones_like(losses, dtype=torch.bool), shown, losses.dtype)


def _said(value: Any) -> str:
    shape = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return shape or f"a {type(value).__name__}"


def outside(labels: Tensor, classes: int) -> Tensor:
    """Return which labels are no class."""
    labels = labels.long()  # a byte holds no -100
    return ((labels < 0) | (labels >= classes)) & (labels != IGNORED)


def leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors within a batch of any form, and its other values as numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        if value.layout is torch.strided and not (value.is_nested or value.is_complex()):
            yield name, value
    elif isinstance(value, (str, bytes, int, float)):
        digest = hashlib.blake2b(repr(value).encode(), digest_size=7).digest()
        yield name, torch.tensor(int.from_bytes(digest, "little"))
    elif depth < 4:
        inner = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
        inner = inner if isinstance(inner, Mapping) else getattr(value, "__dict__", {})
        for key, part in inner.items():
            yield from leaves(part, f"{name}.{key}", depth + 1)


def _digest(batches: list[dict[str, Tensor]]) -> str:
    """Return a digest of what the examples are, in their order, of whatever batching; or ""."""
    digest = hashlib.blake2b(digest_size=8)
    names = dict.fromkeys(name for leaves in batches for name in leaves)
    for name in names:
        digest.update(name.encode())
        for leaf in (leaves[name] for leaves in batches if name in leaves):
            values = leaf.double() if leaf.is_floating_point() else leaf.long()
            digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest() if names else ""
