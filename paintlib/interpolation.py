"""The straight line between two sets of weights, w(alpha) = (1 - alpha) w_zs + alpha w_ft."""

import functools
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from paintlib import checkpoints

__all__ = ["WeightPath", "reestimate_batchnorm"]

Weights = nn.Module | Mapping[str, Tensor]
Names = str | Sequence[str]
After = Callable[[nn.Module], object]
# what `set_` writes: flat memory of the model and both ends of it; where all its tensors were
Binding = tuple[list[tuple[Tensor, Tensor, Tensor]], dict[str, int]]
CHUNK = 2**22  # numbers that are worked on at a time: 32 MiB in float64


class WeightPath:
    """The line segment between two checkpoints of one architecture, (1.1) eq-path.

    Each end is one flat vector per type, so that a point of the path is one fused `lerp`, computed
    in at least float32. Ends of half precision stay so; integer tensors are taken from the nearer
    end. Names of one memory (ties) count once.

    Args:
        start: weights at alpha = 0 (zero-shot), a module or its state dict.
        end: weights at alpha = 1 (fine-tuned), same names and shapes.
        only: globs of the names that are interpolated, as "encoder.*"; all by default.
        except_: globs of names that are not (a head): both ends may differ there, or lack them,
            and a model keeps what it has.
        after: called with the model after each `set_`, as to estimate BatchNorm anew.

    Raises:
        ValueError: the two sides differ in a name or a shape, a weight is not finite or is
            quantised, or a glob fits no name.
    """

    def __init__(self, start: Weights, end: Weights, *, only: Names = (), except_: Names = (),
                 after: After | None = None) -> None:  # fmt: skip
        sides = [s.state_dict() if isinstance(s, nn.Module) else s for s in (start, end)]
        self.after, self._chosen = after, checkpoints.chooser(only, except_, sides)
        self._begin([self._chosen(side) for side in sides])

    @classmethod
    def load(cls, start: checkpoints.Source, end: checkpoints.Source, *,
             base: checkpoints.Source | None = None,
             entry: str | tuple[str | None, str | None] | None = None,
             only: Names = (), except_: Names = (),
             after: After | None = None) -> Self:  # fmt: skip
        """Return the path between two checkpoints as they lie on disk or on the Hub.

        A side is what `paintlib.checkpoints.read` takes, or a LoRA adapter's folder as PEFT saves
        it. From a base to its adapter, alpha scales the update B A, as `rescale_adapter_scale` of
        PEFT does; of two adapters the updates are interpolated. The prefixes "module.",
        "_orig_mod." and "model." go where all names of a side carry them; of a model in `set_` too.

        Args:
            start: weights at alpha = 0.
            end: weights at alpha = 1.
            base: what the adapters add to; the other side by default.
            entry: the state dict that is meant, of both files or of each, where a file holds
                several or averaged ones (EMA), as "model_ema".
            only: as in `WeightPath`, with or without the prefixes.
            except_: as `only`.
            after: as in `WeightPath`.

        Raises:
            ValueError: as `WeightPath`, or a file is not what it should be.
            FileNotFoundError: a file is missing.
            ImportError: a side is an id of the Hub, and huggingface_hub is not installed.
        """
        path = cls.__new__(cls)
        entries = entry if isinstance(entry, tuple) else (entry, entry)
        whole, root = checkpoints.read_pair((start, end), entries, base)
        path.after, path._chosen = after, checkpoints.chooser(only, except_, whole)
        stripped = [checkpoints.strip(path._chosen(side)) for side in whole]
        prefix, sides = stripped[0][0], [side for _, side in stripped]
        del whole, stripped  # so that a file's pages are dropped once its numbers are taken
        path._begin(sides, prefix)
        # an adapter's update is float32, whatever its base is
        kinds = checkpoints.strip(path._chosen(root))[1]
        path._dtypes |= {name: kinds[name].dtype for name in path._dtypes if name in kinds}
        return path

    def _begin(self, sides: list[dict[str, Tensor]], prefix: str = "") -> None:
        """Take both ends from `sides`, which is empty afterwards."""
        self._prefix, self._ties = prefix, _ties(*sides)
        first, last = ({n: t for n, t in s.items() if n not in self._ties} for s in sides)
        sides.clear()
        _check_same_tensors(first, last)
        if odd := [name for name in first if _is_quantised(first[name], last[name])]:
            said = f"{len(odd)} tensors are quantised weights, first: {odd[0]!r}"
            remedy = "interpolate the weights that they were made from"
            raise ValueError(f"{said}, {first[odd[0]].dtype}; {remedy}")
        self._dtypes = {n: torch.promote_types(t.dtype, last[n].dtype) for n, t in first.items()}
        floats = [kind for kind in self._dtypes.values() if kind.is_floating_point]
        if not floats:
            raise ValueError("no floating point tensor on either side: nothing to interpolate")
        self.dtype = functools.reduce(torch.promote_types, floats, torch.float32)
        self._shapes: dict[torch.dtype, dict[str, torch.Size]] = {}  # of what is in a flat vector
        for name, kind in self._dtypes.items():
            held = self.dtype if kind.is_floating_point and kind.itemsize > 2 else kind
            self._shapes.setdefault(held, {})[name] = first[name].shape
        flats = []
        for side in (first, last):
            flats.append([_join([side[n] for n in s], kind) for kind, s in self._shapes.items()])
            side.clear()
        self._parts: list[tuple[Tensor, Tensor]] = list(zip(*flats, strict=True))
        self.to(self._parts[0][0].device)
        for i, title in enumerate(("start", "end")):
            for name, ends in self._ends.items():
                if not all(part.isfinite().all() for part in ends[i].view(-1).split(CHUNK)):
                    said = f"the {title} weights are not finite, first in {name!r}"
                    hint = "make them again: the file is damaged or the training diverged"
                    raise ValueError(f"{said}; {hint}")

    def to(self, device: torch.device | str) -> Self:
        """Move both ends to `device` in place and return the path."""
        self._parts = [(start.to(device), end.to(device)) for start, end in self._parts]
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        for shapes, part in zip(self._shapes.values(), self._parts, strict=True):
            starts, ends = (_views(flat, shapes) for flat in part)
            self._ends |= {name: (starts[name], ends[name]) for name in shapes}
        self._bound: weakref.WeakKeyDictionary[nn.Module, Binding] = weakref.WeakKeyDictionary()
        return self

    @property
    def _floats(self) -> list[tuple[Tensor, Tensor]]:
        return [part for part in self._parts if part[0].is_floating_point()]

    @property
    def start(self) -> Tensor:
        """The flat vector at alpha = 0; a copy in float32 where the ends are of half precision."""
        return _cat([start.to(self.dtype) for start, _ in self._floats])

    @property
    def end(self) -> Tensor:
        """The flat vector at alpha = 1, as `start`."""
        return _cat([end.to(self.dtype) for _, end in self._floats])

    def at(self, alpha: float) -> Tensor:
        """Return w(alpha) as a new flat vector, bit-exact at alpha = 0 and 1."""
        return _cat([self._write(torch.empty_like(start, dtype=self.dtype), start, end, alpha)
                     for start, end in self._floats])  # fmt: skip

    @property
    def length(self) -> float:
        """The 2-norm of w_ft - w_zs, (2.3) eq-length, summed in float64 by chunks."""
        pairs = (pair for start, end in self._floats for pair in _chunks(start, end))
        return math.hypot(*(float(torch.dist(a.double(), b.double())) for a, b in pairs))

    @cached_property
    def digests(self) -> tuple[str, str]:
        """The SHA-256 of each end: names, types, shapes and bytes, in the order of the names."""
        digests = hashlib.sha256(), hashlib.sha256()
        for name in sorted([*self._ends, *self._ties]):
            ends = self._ends[self._ties.get(name, name)]
            for digest, tensor in zip(digests, ends, strict=True):
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                digest.update(f"{name} {dtype} {tuple(tensor.shape)}\n".encode())
                for chunk in tensor.view(-1).split(CHUNK):
                    digest.update(chunk.to(dtype).cpu().numpy().data)
        return digests[0].hexdigest(), digests[1].hexdigest()

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat `vector` under the names and shapes of the checkpoints."""
        floats = {n: s.shape for n, (s, _) in self._ends.items() if s.is_floating_point()}
        views = _views(vector, floats)
        return views | {name: views[home] for name, home in self._ties.items() if home in views}

    def flatten(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the flat vector of `tensors` in the path's order; an absent tensor counts as 0."""
        out = _cat([torch.zeros_like(start, dtype=self.dtype) for start, _ in self._floats])
        # ties first: the name that they repeat has the last word
        for name, view in reversed(self.unflatten(out).items()):
            if (tensor := tensors.get(name)) is not None:
                view.copy_(tensor.detach().reshape(view.shape))
        return out

    def set_(self, model: nn.Module, alpha: float) -> nn.Module:
        """Write w(alpha) into `model` in place and return it.

        The first call re-points the model's small tensors to views of flat blocks, so that each
        later call is a pass over few of them. Training flags and gradients are left alone. The
        model is of the checkpoints' types, or of the path's. `after` is called at the end.

        Raises:
            ValueError: `alpha` is not finite, or the model does not fit the path.
        """
        with torch.inference_mode(False), torch.no_grad():
            tensors = model.state_dict(keep_vars=True)
            bound = self._bound.get(model)
            if bound is None or bound[1] != _pointers(tensors):
                bound = self._bind(tensors), _pointers(tensors)
                self._bound[model] = bound
            for out, start, end in bound[0]:
                self._write(out, start, end, alpha)
            if self.after is not None:
                self.after(model)
        return model

    def save(self, file: Path | str, alpha: float, *, metadata: Mapping[str, str] | None = None,
             model: nn.Module | None = None) -> None:  # fmt: skip
        """Write w(alpha) as a safetensors file, whole at any time, in the names and types of start.

        Of tied names the file holds one, and the others in its metadata, as
        `safetensors.torch.save_model` does; `load_model` and `WeightPath.load` fill them in.

        Args:
            file: what is written or replaced.
            alpha: the coefficient.
            metadata: strings by name for the file's header.
            model: is set to alpha and gives the values, with what the path leaves to it (`except_`)
                and what `after` makes of it. Without, the file holds what is on the path alone.

        Raises:
            ValueError: as `set_`; a value of `metadata` is no string; or `after` lacks its model.
        """
        if self.after is not None and model is None:
            raise ValueError("the path has a step after each write; give save its model=")
        ends, ties = self._ends, self._ties
        if model is not None:
            state = self._named(self.set_(model, alpha).state_dict())
            state = dict(sorted(state.items(), key=lambda item: item[0] not in self._ends))
            ties = ties | _ties(state, state)
            ends, alpha = {n: (t, t) for n, t in state.items() if n not in ties}, 0.0

        def pieces(start: Tensor, end: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
            for a, b in _chunks(start.reshape(-1), end.reshape(-1)):
                yield self._write(torch.empty_like(a, dtype=dtype), a, b, alpha)

        tensors = {}
        for name, (start, end) in ends.items():
            dtype = self._dtypes.get(name, start.dtype)
            tensors[self._prefix + name] = dtype, start.shape, pieces(start, end, dtype)
        noted = {self._prefix + name: self._prefix + home for name, home in ties.items()}
        checkpoints.write(file, tensors, {**noted, **(metadata or {})})

    def _write(self, out: Tensor, start: Tensor, end: Tensor, alpha: float) -> Tensor:
        if not math.isfinite(alpha):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        # lerp may turn -0.0 into 0.0 at an end, and a copy is cheaper there
        if alpha in (0.0, 1.0) or not start.is_floating_point():
            return out.copy_(end if alpha >= 0.5 else start)
        if start.dtype == out.dtype:  # of half precision too torch computes in float32, then rounds
            return torch.lerp(start, end, float(alpha), out=out)
        size = max(CHUNK // 16, 1)  # the cache holds a few of these
        pieces = (flat.split(size) for flat in (out, start, end))
        for piece, a, b in zip(*pieces, strict=True):
            piece.copy_(torch.lerp(a.to(self.dtype), b.to(self.dtype), float(alpha)))
        return out

    def _named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's tensors under the path's names: without a prefix that only it has."""
        if self._ends.keys() <= state.keys():
            return dict(state)
        prefix, _ = checkpoints.strip(self._chosen(state))
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def _bind(self, state: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        tensors = self._named(state)
        ours = [(self._ties.get(name, name), tensor) for name, tensor in tensors.items()]
        ours = [(home, tensor) for home, tensor in ours if home in self._ends]
        homes: dict[object, str] = {}  # of memory
        for home, tensor in ours:
            first = homes.setdefault(_memory(tensor), home)
            if first != home and not all(map(torch.equal, self._ends[first], self._ends[home])):
                said = f"{first!r} and {home!r} are one tensor in the model, but differ in the"
                raise ValueError(f"{said} checkpoints; untie them in the model")
        others = {name: t for name, t in tensors.items() if _memory(t) not in homes}
        theirs = self._chosen(others) | dict(ours)
        _check_same_tensors({name: start for name, (start, _) in self._ends.items()}, theirs)
        order = {name: i for i, name in enumerate(self._ends)}
        once = {id(tensor): (home, tensor) for home, tensor in ours}.values()
        runs: list[list[tuple[str, Tensor]]] = []
        for home, tensor in sorted(once, key=lambda target: order[target[0]]):
            start = self._ends[home][0]
            fits = tensor.dtype in (self.dtype, self._dtypes[home])
            if start.is_floating_point() and not (fits and tensor.device == start.device):
                sides = f"{tensor.dtype} on {tensor.device}, the path is {self.dtype}"
                remedy = "convert one of them (model.float(), path.to(device))"
                raise ValueError(f"{home!r} of the model is {sides} on {start.device}; {remedy}")
            last, before = runs[-1][-1] if runs else (home, tensor)
            near = order[home] == order[last] + 1 and start.dtype == self._ends[last][0].dtype
            size = tensor.numel() + sum(t.numel() for _, t in runs[-1]) if near else 0
            if near and tensor.dtype == before.dtype and size <= CHUNK:
                runs[-1].append((home, tensor))
            else:
                runs.append([(home, tensor)])
        return [_block([t for _, t in run], *self._ends[run[0][0]]) for run in runs]


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Set the running statistics of `model`'s BatchNorm layers to their averages over `batches`.

    The statistics of interpolated weights are not the interpolated statistics. Each batch counts
    the same; all other layers stay in evaluation mode or as they are, and no gradient is taken.

    Args:
        model: changed in place, but for its modes and momenta.
        batches: of images `(n, ...)`, or of pairs of images and labels; a list or a DataLoader.

    Raises:
        ValueError: `batches` is empty.
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, kind) and m.track_running_stats]
    before = [(norm, norm.training, norm.momentum) for norm in norms]
    count = 0
    try:
        with torch.no_grad():
            for count, batch in enumerate(batches if norms else (), 1):
                for norm in norms if count == 1 else ():
                    norm.reset_running_stats()
                    norm.momentum, norm.training = None, True  # None: the plain average
                model(batch if isinstance(batch, Tensor) else batch[0])
    finally:
        for norm, norm.training, norm.momentum in before:
            pass
    if norms and not count:
        raise ValueError("no batch to estimate BatchNorm from: `batches` is empty or used up")


def _join(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.empty(sum(sizes), dtype=dtype, device=tensors[0].device)
    for part, tensor in zip(flat.split(sizes), tensors, strict=True):
        part.view(tensor.shape).copy_(tensor.detach())
    return flat


def _views(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}


def _cat(flats: list[Tensor]) -> Tensor:
    return flats[0] if len(flats) == 1 else torch.cat(flats)  # which copies even one


def _chunks(start: Tensor, end: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(start.split(CHUNK), end.split(CHUNK), strict=True)


def _pointers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def _block(tensors: list[Tensor], start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the flat memory of tensors, made one where they are several, and its ends.

    Both ends are given from the first tensor on.
    """
    flat = tensors[0].detach()
    if len(tensors) > 1 or not flat.is_contiguous() or flat.is_inference():
        flat = _join(tensors, flat.dtype)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.data = part.view(tensor.shape)
    size = (flat.numel(),)
    return flat.view(-1), start.as_strided(size, (1,)), end.as_strided(size, (1,))


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

    remedy = "interpolation needs two checkpoints of one architecture"
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
    return other and (a.dtype != b.dtype or not torch.equal(a, b))
