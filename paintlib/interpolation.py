"""The straight line between two sets of weights, w(alpha) = (1 - alpha) w_zs + alpha w_ft."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

__all__ = ["WeightPath"]

CHUNK = 2**22  # numbers that are copied to float64 at a time: 32 MiB


class WeightPath:
    """The line segment between two checkpoints of one architecture (paper, section 2).

    Both ends are kept as one flat vector each, so that a point of the path is one fused
    `lerp` over contiguous memory. Floating point tensors are interpolated in at least float32;
    integer tensors (step counters and the like) are taken from the nearer end.

    Args:
        start: weights at alpha = 0 (zero-shot), a module or its state dict.
        end: weights at alpha = 1 (fine-tuned), same names and shapes.

    Raises:
        ValueError: the two sides differ in a name or a shape, or a weight is not finite.
    """

    def __init__(
        self, start: nn.Module | Mapping[str, Tensor], end: nn.Module | Mapping[str, Tensor]
    ) -> None:
        first, last = _state(start), _state(end)
        _check_same_tensors(first, last)
        floating = [name for name, tensor in first.items() if tensor.is_floating_point()]
        if not floating:
            raise ValueError("no floating point tensor on either side: nothing to interpolate")
        self._shapes = {name: first[name].shape for name in floating}
        self._integers = {
            name: (first[name].clone(), last[name].clone())
            for name in first
            if name not in self._shapes
        }
        dtypes = {side[name].dtype for side in (first, last) for name in floating}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.start = _flatten(first, floating, dtype)
        self.end = _flatten(last, floating, dtype)
        for side, vector in (("start", self.start), ("end", self.end)):
            if not torch.isfinite(vector).all():
                name = next(n for n, t in self.unflatten(vector).items() if not t.isfinite().all())
                raise ValueError(
                    f"the {side} weights are not finite, first in {name!r}: "
                    "that checkpoint is damaged or its training diverged; make it again"
                )
        self._bound: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()

    @property
    def length(self) -> float:
        """Return the 2-norm of w_ft - w_zs, summed in float64 on the device, by chunks."""
        chunks = zip(self.start.split(CHUNK), self.end.split(CHUNK), strict=True)
        return math.hypot(*(float(torch.dist(a.double(), b.double())) for a, b in chunks))

    @cached_property
    def digests(self) -> tuple[str, str]:
        """Return the SHA-256 of each end: names, shapes and bytes, in the order of the names."""
        start, end = hashlib.sha256(), hashlib.sha256()
        sides = self.unflatten(self.start), self.unflatten(self.end)
        pairs = {name: (sides[0][name], sides[1][name]) for name in self._shapes} | self._integers
        for name in sorted(pairs):
            for digest, tensor in zip((start, end), pairs[name], strict=True):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.cpu().reshape(-1).numpy().data)
        return start.hexdigest(), end.hexdigest()

    def at(self, alpha: float) -> Tensor:
        """Return w(alpha) as a new flat vector, bit-exact at alpha = 0 and 1."""
        return self._write(torch.empty_like(self.start), alpha)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat `vector` under the names and shapes of the checkpoints."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = vector.split(sizes)
        return {
            name: part.view(self._shapes[name])
            for name, part in zip(self._shapes, parts, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the flat vector of `tensors` in the path's order; an absent tensor counts as 0."""
        zeros = self.unflatten(torch.zeros_like(self.start))
        given = {k: v for k, v in tensors.items() if v is not None}
        return _flatten({**zeros, **given}, list(self._shapes), self.start.dtype)

    def to(self, device: torch.device | str) -> WeightPath:
        """Move both ends to `device` in place and return the path."""
        self.start, self.end = self.start.to(device), self.end.to(device)
        return self

    def set_(self, model: nn.Module, alpha: float) -> nn.Module:
        """Write w(alpha) into `model` in place and return it.

        The first call re-points the model's tensors to views of one flat buffer, so that each
        later call is one pass over the weights. Training flags and gradients are left alone.

        Args:
            model: a module with the names and shapes of the two ends, on the path's device.
            alpha: position on the path; 0 and 1 give the ends bit for bit.

        Raises:
            ValueError: `alpha` is not finite, or the model does not fit the path.
        """
        if not torch.isfinite(torch.tensor(alpha)):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        with torch.inference_mode(False), torch.no_grad():
            self._write(self._buffer(model), alpha)
            if self._integers:
                tensors = model.state_dict(keep_vars=True)
                for name, (first, last) in self._integers.items():
                    tensors[name].copy_(first if alpha < 0.5 else last)
        return model

    def _write(self, out: Tensor, alpha: float) -> Tensor:
        # lerp may turn -0.0 into 0.0 at an end, and a copy is cheaper there
        if alpha == 0.0:
            return out.copy_(self.start)
        if alpha == 1.0:
            return out.copy_(self.end)
        return torch.lerp(self.start, self.end, float(alpha), out=out)

    def _buffer(self, model: nn.Module) -> Tensor:
        tensors = model.state_dict(keep_vars=True)
        flat = self._bound.get(model)
        if flat is not None and all(
            tensors[name].data_ptr() == view.data_ptr()
            for name, view in self.unflatten(flat).items()
        ):
            return flat
        _check_same_tensors(self._reference(), tensors)
        for name in self._shapes:
            tensor = tensors[name]
            if tensor.dtype != self.start.dtype or tensor.device != self.start.device:
                raise ValueError(
                    f"{name!r} of the model is {tensor.dtype} on {tensor.device}, the path is "
                    f"{self.start.dtype} on {self.start.device}; convert one of them first "
                    "(model.float(), path.to(device))"
                )
        flat = torch.empty_like(self.start)
        for name, view in self.unflatten(flat).items():
            tensors[name].data = view
        self._bound[model] = flat
        return flat

    def _reference(self) -> dict[str, Tensor]:
        return {**self.unflatten(self.start), **{k: v for k, (v, _) in self._integers.items()}}


def _state(side: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = side.state_dict() if isinstance(side, nn.Module) else side
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _flatten(tensors: Mapping[str, Tensor], names: list[str], dtype: torch.dtype) -> Tensor:
    return torch.cat([tensors[name].detach().reshape(-1).to(dtype) for name in names])


def _check_same_tensors(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> None:
    if missing := sorted(first.keys() ^ last.keys()):
        raise ValueError(
            f"{len(missing)} tensors are on one side only, first: {missing[0]!r}; "
            "interpolation needs two checkpoints of one architecture"
        )
    different = [name for name in first if first[name].shape != last[name].shape]
    if different:
        name = different[0]
        raise ValueError(
            f"{len(different)} tensors differ in shape, first: {name!r} is "
            f"{tuple(first[name].shape)} on one side and {tuple(last[name].shape)} on the other; "
            "interpolation needs two checkpoints of one architecture"
        )
    kinds = [n for n in first if first[n].is_floating_point() != last[n].is_floating_point()]
    if kinds:
        raise ValueError(
            f"{kinds[0]!r} is {first[kinds[0]].dtype} on one side and {last[kinds[0]].dtype} on "
            "the other; interpolation needs two checkpoints of one architecture"
        )
