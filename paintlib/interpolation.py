"""The straight line between two sets of weights, w(alpha) = (1 - alpha) w_zs + alpha w_ft."""

import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from paintlib import checkpoints

__all__ = ["WeightPath", "reestimate_batchnorm"]

Weights = nn.Module | Mapping[str, Tensor]
Names = str | Sequence[str]
After = Callable[[nn.Module], object]
CHUNK = 2**22  # numbers that are worked on at a time: 32 MiB in float64


class WeightPath:
    """The line segment between two checkpoints of one architecture, (1.1) eq-path.

    The path keeps copies of both ends. A point between them is computed in at least float32; ends
    of half precision stay so; integer tensors are taken from the nearer end. Names of one memory
    (ties) count once.

    Args:
        start: weights at alpha = 0 (zero-shot), a module or a state dict.
        end: weights at alpha = 1 (fine-tuned), likewise.
        only: globs of the names that are interpolated, as "encoder.*"; all by default.
        except_: globs of names that are not (a head): ends may differ there, a model keeps its own.
        after: called with the model after each `set_`, as to estimate BatchNorm anew.

    Raises:
        ValueError: the two sides differ in a name or a shape, a weight is not finite or is
            quantised, or a glob fits no name.
    """

    def __init__(self, start: Weights, end: Weights, *, only: Names = (), except_: Names = (),
                 after: After | None = None) -> None:  # fmt: skip
        sides = [checkpoints.read(side) for side in (start, end)]
        self._begin(sides, checkpoints.chooser(only, except_, sides), after)

    @classmethod
    def load(cls, start: checkpoints.Source, end: checkpoints.Source, *,
             base: checkpoints.Source | None = None,
             entry: str | tuple[str | None, str | None] | None = None,
             only: Names = (), except_: Names = (),
             after: After | None = None) -> Self:  # fmt: skip
        """Return the path between two checkpoints as they lie on disk or on the Hub.

        A side is what `paintlib.checkpoints.read` takes, or a LoRA adapter's folder as PEFT saves
        it. From a base to its adapter, alpha scales the update B A, as `rescale_adapter_scale` of
        PEFT does; of two adapters of one `base` the updates are interpolated. `entry` names the
        state dict that is meant, of both files or of each, where a file holds several or averaged
        ones ("model_ema"). The prefixes "module.", "_orig_mod." and "model." go where all names of
        a side carry them; of a model in `set_` too. The rest is as in `WeightPath`, errors are also
        those of `read`.
        """
        path = cls.__new__(cls)
        entries = entry if isinstance(entry, tuple) else (entry, entry)
        sides, root = checkpoints.read_pair((start, end), entries, base)
        path._begin(sides, checkpoints.chooser(only, except_, sides), after, bare=True)
        # an adapter's update is float32, whatever its base is
        kinds = checkpoints.strip(path._chosen(root))[1]
        path._dtypes |= {name: kinds[name].dtype for name in path._dtypes if name in kinds}
        return path

    def _begin(self, sides: list[dict[str, Tensor]], chosen: checkpoints.Chooser,
               after: After | None, *, bare: bool = False) -> None:  # fmt: skip
        """Take both ends from `sides`, which is empty afterwards: a file's pages may go."""
        self.after, self._chosen, self._prefix = after, chosen, ""
        names, (first, last) = [*sides[0]], map(chosen, sides)
        sides.clear()
        if bare:
            both = first.keys() & last.keys()  # a head that one side ties, and lacks, has no prefix
            bare_sides = (checkpoints.strip(side, both) for side in (first, last))
            (self._prefix, first), (_, last) = bare_sides
        self._names = {name.removeprefix(self._prefix): name for name in names}  # as start has them
        self._ties = _ties(first, last)
        first, last = ({n: t for n, t in s.items() if n not in self._ties} for s in (first, last))
        _check_same_tensors(first, last)
        if odd := [f"{n!r}, {t.dtype}" for n, t in first.items() if _is_quantised(t, last[n])]:
            said = f"{len(odd)} tensors are quantised weights, first: {odd[0]}"
            raise ValueError(f"{said}; interpolate the weights that they were made from")
        self._dtypes = {n: torch.promote_types(t.dtype, last[n].dtype) for n, t in first.items()}
        floats = [kind for kind in self._dtypes.values() if kind.is_floating_point]
        if not floats:
            raise ValueError("no floating point tensor on either side: nothing to interpolate")
        self.dtype = functools.reduce(torch.promote_types, floats, torch.float32)
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        for name, kind in self._dtypes.items():
            held = self.dtype if kind.is_floating_point and kind.itemsize > 2 else kind
            ends = [side.pop(name).detach().to(held, copy=True) for side in (first, last)]
            for title, end in zip(("start", "end"), ends, strict=True):
                # without a mask of its size
                checked = end.numel() and kind.is_floating_point  # of integers all are
                if checked and not torch.stack(end.aminmax()).isfinite().all():
                    said = f"the {title} weights are not finite, first in {name!r}; make them again"
                    cause = "the file is damaged or the training diverged"
                    raise ValueError(f"{said}, {cause}; or leave out what is no weight by except_")
            self._ends[name] = ends[0], ends[1]
        self.to(self._ends[name][0].device)

    def to(self, device: torch.device | str) -> Self:
        """Move both ends to `device` in place and return the path."""
        self._ends = {name: (a.to(device), b.to(device)) for name, (a, b) in self._ends.items()}
        self._floats = {n: ends for n, ends in self._ends.items() if ends[0].is_floating_point()}
        return self

    @property
    def start(self) -> Tensor:
        """The weights at alpha = 0 as a new flat vector, of at least float32."""
        return self.at(0.0)

    @property
    def end(self) -> Tensor:
        """The weights at alpha = 1, as `start`."""
        return self.at(1.0)

    def at(self, alpha: float) -> Tensor:
        """Return w(alpha) as a new flat vector, bit-exact at alpha = 0 and 1."""
        new = functools.partial(torch.empty_like, dtype=self.dtype)
        points = {n: self._write(new(a), a, b, alpha) for n, (a, b) in self._floats.items()}
        return self.flatten(points)

    @property
    def length(self) -> float:
        """The 2-norm of w_ft - w_zs, (2.3) eq-length, summed in float64 by chunks."""
        pairs = (pair for start, end in self._floats.values() for pair in _chunks(start, end))
        return math.hypot(*(float(torch.dist(a.double(), b.double())) for a, b in pairs))

    @functools.cached_property
    def digests(self) -> tuple[str, str]:
        """The SHA-256 of each end, over names, types, shapes and bytes in order of the names."""
        digests = hashlib.sha256(), hashlib.sha256()
        for name in sorted([*self._ends, *self._ties]):
            ends = self._ends[self._ties.get(name, name)]
            for digest, tensor in zip(digests, ends, strict=True):
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                digest.update(f"{name} {dtype} {tuple(tensor.shape)}\n".encode())
                for (chunk,) in _chunks(tensor):
                    digest.update(chunk.to(dtype).cpu().numpy().data)
        return digests[0].hexdigest(), digests[1].hexdigest()

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat `vector` under the names and shapes of the checkpoints."""
        shapes = {name: start.shape for name, (start, _) in self._floats.items()}
        parts = vector.split([shape.numel() for shape in shapes.values()])
        views = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
        return views | {name: views[home] for name, home in self._ties.items() if home in views}

    @torch.no_grad()
    def flatten(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the flat vector of `tensors` in the path's order; an absent tensor counts as 0."""
        given = {self._ties.get(n, n): t for n, t in tensors.items() if t is not None}
        parts = []
        for name, (start, _) in self._floats.items():
            part = given[name] if name in given else torch.zeros_like(start)
            parts.append(part.to(start.device, self.dtype).reshape(start.numel()))
        return torch.cat(parts)

    def set_(self, model: nn.Module, alpha: float) -> nn.Module:
        """Write w(alpha) into `model` in place and return it.

        Modes and gradients stay. The model is of the checkpoints' types or the path's: ValueError
        if it does not fit, or `alpha` is not finite.
        """
        tensors = self._targets(model)
        with torch.inference_mode():  # which alone may write into a model that was made in it
            for name, tensor in tensors.items():
                self._write(tensor.detach(), *self._ends[self._ties.get(name, name)], alpha)
        if self.after is not None:
            with torch.no_grad():
                self.after(model)
        return model

    def add_(self, model: nn.Module, share: float) -> nn.Module:
        """Add `share` of w_ft - w_zs to the weights of `model` in place; errors as `set_`."""
        tensors = {_memory(t): (name, t) for name, t in self._targets(model).items()}  # ties once
        with torch.inference_mode():
            for name, tensor in tensors.values():
                start, end = self._ends[self._ties.get(name, name)]
                if start.is_floating_point():
                    wide = tensor.detach().to(self.dtype)  # rounds half precision once
                    tensor.detach().copy_(wide.add_(end, alpha=share).sub_(start, alpha=share))
        return model

    def save(self, file: Path | str, alpha: float, *, metadata: Mapping[str, str] | None = None,
             model: nn.Module | None = None) -> None:  # fmt: skip
        """Write w(alpha) as a safetensors file, whole at any time, in the names and types of start.

        Of tied names the file holds one, and the others in its `metadata` (strings by name), as
        `safetensors.torch.save_model` does; `load_model` and `WeightPath.load` fill them in. A
        `model` is set to alpha and gives the values, what `after` makes of them, and what the path
        leaves to it (`except_`); without, the file holds what is on the path alone. ValueError as
        in `set_`, and if a value of `metadata` is no string or `after` lacks its model.
        """
        if self.after is not None and model is None:
            raise ValueError("the path has a step after each write; give save its model=")
        ends, ties, names = self._ends, self._ties, self._names
        if model is not None:
            theirs = checkpoints.tensors(self.set_(model, alpha).state_dict())
            state = self._named(theirs)
            pairs = [*zip(theirs, state, strict=True)]
            own = next(old.removesuffix(new) for old, new in pairs if new in self._ends)
            # what start lacks is named as the model does, but for the wrappers that differ
            inside_out = [prefix.split(".")[::-1] for prefix in (self._prefix, own)]
            both = ".".join(os.path.commonprefix(inside_out)[::-1])  # noqa: RUF071
            more, less = self._prefix.removesuffix(both), own.removesuffix(both)
            names = {new: more + old.removeprefix(less) for old, new in pairs} | names
            state = dict(sorted(state.items(), key=lambda item: item[0] not in self._ends))
            ties = ties | _ties(state, state)
            ends, alpha = {n: (t, t) for n, t in state.items() if n not in ties}, 0.0
        homes = {names[name]: name for name in ends}
        kinds = {home: (self._dtypes.get(name, ends[name][0].dtype), ends[name][0].shape)
                 for home, name in homes.items()}  # fmt: skip

        def values(home: str) -> Tensor:
            start, end = ends[homes[home]]
            return self._write(torch.empty_like(start, dtype=kinds[home][0]), start, end, alpha)

        noted = {names.get(n, n): names[home] for n, home in ties.items()}
        checkpoints.write(file, kinds, values, {**noted, **(metadata or {})})

    def kept_share(self, alpha: float) -> float:
        """Return the share of w(alpha) - w_zs that rounding to the types of `save` leaves."""
        kept = whole = 0.0
        for name in [n for n in self._floats if self._dtypes[n].itemsize < self.dtype.itemsize]:
            for start, end in _chunks(*self._floats[name]):
                here = self._write(torch.empty_like(start, dtype=self.dtype), start, end, alpha)
                step = here - start.to(self.dtype)
                left = here.to(self._dtypes[name]).to(self.dtype) - start.to(self.dtype)
                kept += float(torch.vdot(left.double(), step.double()))
                whole += float(torch.vdot(step.double(), step.double()))
        return kept / whole if whole else 1.0

    def _write(self, out: Tensor, start: Tensor, end: Tensor, alpha: float) -> Tensor:
        if not math.isfinite(alpha):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        # lerp may turn -0.0 into 0.0 at an end, and a copy is cheaper there
        if alpha in (0.0, 1.0) or not start.is_floating_point():
            return out.copy_(end if alpha >= 0.5 else start)
        if start.dtype == out.dtype:  # of half precision too torch computes in float32, then rounds
            return torch.lerp(start, end, float(alpha), out=out)
        return out.copy_(torch.lerp(start.to(self.dtype), end.to(self.dtype), float(alpha)))

    def _named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's tensors under the path's names: without a prefix that these lack."""
        if self._ends.keys() <= state.keys():
            return dict(state)
        as_start = {self._names[name] for name in self._ends} & state.keys()
        prefix, tensors = checkpoints.strip(state, as_start or self._chosen(state))
        return self._named(tensors) if prefix else tensors

    def _targets(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of `model` that the path writes, once they are known to fit."""
        tensors = self._named(checkpoints.tensors(model.state_dict(keep_vars=True)))
        targets = {n: tensor for n, tensor in tensors.items() if self._ties.get(n, n) in self._ends}
        theirs = {self._ties.get(name, name): tensor for name, tensor in targets.items()}
        held = (t for t in (*model.parameters(), *model.buffers()) if t.layout is torch.strided)
        own = {t.untyped_storage().data_ptr() for t in held}
        if odd := [n for n, t in theirs.items() if t.untyped_storage().data_ptr() not in own]:
            said = f"{odd[0]!r} in the state_dict() of the model is a copy"
            raise ValueError(f"{said}, and writing there changes nothing; remove the hook it is of")
        homes: dict[object, str] = {}  # of memory
        for home, tensor in theirs.items():
            first = homes.setdefault(_memory(tensor), home)
            if first != home and not all(map(torch.equal, self._ends[first], self._ends[home])):
                said = f"{first!r} and {home!r} are one tensor in the model, but differ in the"
                raise ValueError(f"{said} checkpoints; untie them in the model")
        others = {name: t for name, t in tensors.items() if _memory(t) not in homes}
        ours = {name: start for name, (start, _) in self._ends.items()}
        _check_same_tensors(ours, theirs | self._chosen(others))
        for name, tensor in theirs.items():
            start = ours[name]
            fits = tensor.dtype in (self.dtype, self._dtypes[name])
            if start.is_floating_point() and not (fits and tensor.device == start.device):
                sides = f"{tensor.dtype} on {tensor.device}, the path is {self.dtype}"
                remedy = f"on {start.device}; convert one: model.to({self.dtype}), path.to(device)"
                raise ValueError(f"{name!r} of the model is {sides} {remedy}")
        return targets


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of `model`'s BatchNorm layers to their averages over `batches`.

    Each batch counts the same: images `(n, ...)`, a pair of images and labels, or a dict of what
    the model is called with. `model` is changed in place, but for its modes and momenta. ValueError
    if there is no batch, or no such layer.
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, kind) and m.track_running_stats]
    if not norms:
        raise ValueError("the model has no BatchNorm with running statistics; leave this step out")
    count = 0
    with torch.no_grad(), contextlib.ExitStack() as undo:
        for count, batch in enumerate(batches, 1):
            for norm in norms if count == 1 else ():
                undo.callback(vars(norm).update, training=norm.training, momentum=norm.momentum)
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True  # None: the plain average
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch if isinstance(batch, Tensor) else batch[0])
    if not count:
        raise ValueError("no batch to estimate BatchNorm from: `batches` is empty or used up")


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.reshape(-1).split(CHUNK) for tensor in tensors), strict=True)


def _memory(tensor: Tensor) -> object:
    if not tensor.numel() or not tensor.data_ptr():
        return object()
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _ties(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> dict[str, str]:
    """Return each name that says again what another says on both sides, and the other.

    One side must hold both in one memory; the other may, hold equal ones, or lack one of them, as
    a safetensors file does.
    """
    ties: dict[str, str] = {}
    order = sorted({**first, **last}, key=lambda name: (name not in last) + (name not in first))
    for side, other in ((first, last), (last, first)):
        homes: dict[object, str] = {}
        for name in [name for name in order if name in side]:
            home = homes.setdefault(_memory(side[name]), ties.get(name, name))
            if name in (home, *ties) or home not in other:
                continue
            a, b = other.get(name), other[home]
            if a is None or (a.dtype == b.dtype and torch.equal(a, b)):
                ties[name] = home
    return ties


def _check_same_tensors(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> None:
    def kind(tensor: Tensor) -> str:
        return f"{tuple(tensor.shape)} of {'floats' if tensor.is_floating_point() else 'integers'}"

    remedy = (
        "interpolation needs two checkpoints of one architecture, and a model of it; leave out "
        "what others lack by except_, or name what all have by only"
    )
    if odd := sorted(first.keys() ^ last.keys()):
        raise ValueError(f"{len(odd)} tensors are on one side only, first: {odd[0]!r}; {remedy}")
    if odd := [name for name in first if kind(first[name]) != kind(last[name])]:
        sides = f"{kind(first[odd[0]])} on one side and {kind(last[odd[0]])} on the other"
        raise ValueError(f"{len(odd)} tensors differ, first: {odd[0]!r} is {sides}; {remedy}")


def _is_quantised(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        return 1 in (a.itemsize, b.itemsize)
    # what counts, indexes or masks is int64 or bool, single, or the same at both ends
    other = a.dtype not in (torch.int64, torch.bool) and a.numel() > 1
    return other and not (a.dtype == b.dtype and torch.equal(a, b))
