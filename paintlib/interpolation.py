"""The straight line between two sets of weights, w(alpha) = (1 - alpha) w_zs + alpha w_ft."""

import hashlib
import math
import weakref
from collections.abc import Mapping
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["WeightPath"]

Weights = nn.Module | Mapping[str, Tensor]
CHUNK = 2**22  # numbers that are copied to float64 at a time: 32 MiB


class WeightPath:
    """The line segment between two checkpoints of one architecture, (1.1) eq-path.

    Each end is one flat vector, so that a point of the path is one fused `lerp`. Floating point
    tensors are interpolated in at least float32; integer tensors are taken from the nearer end.

    Args:
        start: weights at alpha = 0 (zero-shot), a module or its state dict.
        end: weights at alpha = 1 (fine-tuned), same names and shapes.

    Raises:
        ValueError: the two sides differ in a name or a shape, or a weight is not finite.
    """

    def __init__(self, start: Weights, end: Weights) -> None:
        first, last = (s.state_dict() if isinstance(s, nn.Module) else s for s in (start, end))
        _check_same_tensors(first, last)
        self._shapes = {name: t.shape for name, t in first.items() if t.is_floating_point()}
        integers = {name: t for name, t in first.items() if name not in self._shapes}
        self._integers = {name: (t.clone(), last[name].clone()) for name, t in integers.items()}
        if not self._shapes:
            raise ValueError("no floating point tensor on either side: nothing to interpolate")
        dtypes = {side[name].dtype for side in (first, last) for name in self._shapes}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.start, self.end = (self._join(side, dtype) for side in (first, last))
        for side, vector in (("start", self.start), ("end", self.end)):
            if bad := [n for n, t in self.unflatten(vector).items() if not t.isfinite().all()]:
                hint = "make them again: the file is damaged or the training diverged"
                raise ValueError(f"the {side} weights are not finite, first in {bad[0]!r}; {hint}")
        self._bound: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()

    @property
    def length(self) -> float:
        """The 2-norm of w_ft - w_zs, (2.3) eq-length, summed in float64 by chunks."""
        chunks = zip(self.start.split(CHUNK), self.end.split(CHUNK), strict=True)
        return math.hypot(*(float(torch.dist(a.double(), b.double())) for a, b in chunks))

    @cached_property
    def digests(self) -> tuple[str, str]:
        """The SHA-256 of each end: names, types, shapes and bytes, in the order of the names."""
        digests = hashlib.sha256(), hashlib.sha256()
        start, end = self.unflatten(self.start), self.unflatten(self.end)
        pairs = {name: (start[name], end[name]) for name in start} | self._integers
        for name in sorted(pairs):
            for digest, tensor in zip(digests, pairs[name], strict=True):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.cpu().reshape(-1).numpy().data)
        return digests[0].hexdigest(), digests[1].hexdigest()

    def at(self, alpha: float) -> Tensor:
        """Return w(alpha) as a new flat vector, bit-exact at alpha = 0 and 1."""
        return self._write(torch.empty_like(self.start), alpha)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat `vector` under the names and shapes of the checkpoints."""
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        shapes = self._shapes.items()
        return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the flat vector of `tensors` in the path's order; an absent tensor counts as 0."""
        zeros = self.unflatten(torch.zeros_like(self.start))
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        return self._join({**zeros, **given}, self.start.dtype)

    def to(self, device: torch.device | str) -> Self:
        """Move both ends to `device` in place and return the path."""
        self.start, self.end = self.start.to(device), self.end.to(device)
        return self

    def set_(self, model: nn.Module, alpha: float) -> nn.Module:
        """Write w(alpha) into `model` in place and return it.

        The first call re-points the model's tensors to views of one flat buffer, so that each
        later call is one pass over it. Training flags and gradients are left alone.

        Raises:
            ValueError: `alpha` is not finite, or the model does not fit the path.
        """
        if not math.isfinite(alpha):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        with torch.inference_mode(False), torch.no_grad():
            self._write(self._buffer(model), alpha)
            tensors = model.state_dict(keep_vars=True) if self._integers else {}
            for name, (first, last) in self._integers.items():
                tensors[name].copy_(first if alpha < 0.5 else last)
        return model

    def _write(self, out: Tensor, alpha: float) -> Tensor:
        # lerp may turn -0.0 into 0.0 at an end, and a copy is cheaper there
        if alpha in (0.0, 1.0):
            return out.copy_(self.end if alpha else self.start)
        return torch.lerp(self.start, self.end, float(alpha), out=out)

    def _join(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat([tensors[name].detach().reshape(-1).to(dtype) for name in self._shapes])

    def _buffer(self, model: nn.Module) -> Tensor:
        tensors = model.state_dict(keep_vars=True)
        if (flat := self._bound.get(model)) is not None:
            views = self.unflatten(flat).items()
            if all(tensors[name].data_ptr() == view.data_ptr() for name, view in views):
                return flat
        integers = {name: first for name, (first, _) in self._integers.items()}
        _check_same_tensors({**self.unflatten(self.start), **integers}, tensors)
        ours = f"{self.start.dtype} on {self.start.device}"
        for name in self._shapes:
            if (theirs := f"{tensors[name].dtype} on {tensors[name].device}") != ours:
                remedy = "convert one of them (model.float(), path.to(device))"
                raise ValueError(f"{name!r} of the model is {theirs}, the path is {ours}; {remedy}")
        flat = torch.empty_like(self.start)
        for name, view in self.unflatten(flat).items():
            tensors[name].data = view
        self._bound[model] = flat
        return flat


def _check_same_tensors(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> None:
    def kind(tensor: Tensor) -> str:
        return f"{tuple(tensor.shape)} of {'floats' if tensor.is_floating_point() else 'integers'}"

    remedy = "interpolation needs two checkpoints of one architecture"
    if odd := sorted(first.keys() ^ last.keys()):
        raise ValueError(f"{len(odd)} tensors are on one side only, first: {odd[0]!r}; {remedy}")
    if odd := [name for name in first if kind(first[name]) != kind(last[name])]:
        sides = f"{kind(first[odd[0]])} on one side and {kind(last[odd[0]])} on the other"
        raise ValueError(f"{len(odd)} tensors differ, first: {odd[0]!r} is {sides}; {remedy}")
