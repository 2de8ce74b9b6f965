"""The straight line between two sets of weights, w(alpha) = (1 - alpha) w_zs + alpha w_ft."""

import functools
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from paintlib import checkpoints

__all__ = ["WeightPath", "reestimate_batchnorm"]

Weights = nn.Module | Mapping[str, Tensor]
Names = str | Sequence[str]
After = Callable[[nn.Module], object]
Block = tuple[Tensor, Tensor, Tensor]  # both ends and a model's memory
CHUNK = 2**22  # numbers that are worked on at a time: 32 MiB in float64


class WeightPath:
    """The line segment between two checkpoints of one architecture, (1.1) eq-path.

    Each end is one flat vector per type, so that a point of the path is one fused `lerp`, computed
    in at least float32. Ends of half precision stay so; integer tensors are taken from the nearer
    end. Names of one memory (ties) count once.

    Args:
        start, end: weights at alpha = 0 (zero-shot) and 1 (fine-tuned), modules or state dicts.
        only: globs of the names that are interpolated, as "encoder.*"; all by default.
        except_: globs of names that are not (a head): ends may differ there, a model keeps its own.
        after: called with the model after each `set_`, as to estimate BatchNorm anew.

    Raises:
        ValueError: the two sides differ in a name or a shape, a weight is not finite or is
            quantised, or a glob fits no name.
    """

    def __init__(self, start: Weights, end: Weights, *, only: Names = (), except_: Names = (),
                 after: After | None = None) -> None:  # fmt: skip
        sides = [dict(s.state_dict() if isinstance(s, nn.Module) else s) for s in (start, end)]
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
        a side carry them; of a model in `set_` too. The rest is as in `WeightPath`.

        Raises:
            ValueError: as `WeightPath`, or a file is not what it should be.
            FileNotFoundError: a file is missing.
            ImportError: a side is an id of the Hub, and huggingface_hub is not installed.
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
        first, last = map(chosen, sides)
        sides.clear()
        if bare:
            (self._prefix, first), (_, last) = checkpoints.strip(first), checkpoints.strip(last)
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
        held: dict[torch.dtype, dict[str, torch.Size]] = {}  # in a flat vector each
        for name, kind in self._dtypes.items():
            wide = kind.is_floating_point and kind.itemsize > 2
            held.setdefault(self.dtype if wide else kind, {})[name] = first[name].shape
        flats = []
        for side in (first, last):
            flats.append([_join([side[n] for n in names], kind) for kind, names in held.items()])
            side.clear()
        self._shapes, self._parts = list(held.values()), list(zip(*flats, strict=True))
        self.to(self._parts[0][0].device)
        for i, title in enumerate(("start", "end")):
            for name, ends in self._ends.items():
                if not all(part.isfinite().all() for part in ends[i].view(-1).split(CHUNK)):
                    said = f"the {title} weights are not finite, first in {name!r}; make them again"
                    raise ValueError(f"{said}: the file is damaged or the training diverged")

    def to(self, device: torch.device | str) -> Self:
        """Move both ends to `device` in place and return the path."""
        self._parts = [(start.to(device), end.to(device)) for start, end in self._parts]
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        for shapes, part in zip(self._shapes, self._parts, strict=True):
            starts, ends = (_views(flat, shapes) for flat in part)
            self._ends |= {name: (starts[name], ends[name]) for name in shapes}
        self._floats = [part for part in self._parts if part[0].is_floating_point()]
        # what `set_` writes of a model, and where its tensors were then
        self._bound: weakref.WeakKeyDictionary[nn.Module, tuple[list[Block], dict[str, int]]]
        self._bound = weakref.WeakKeyDictionary()
        return self

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
        pairs = self._ends.items()
        views = _views(vector, {n: s.shape for n, (s, _) in pairs if s.is_floating_point()})
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

        The first call re-points the model's small tensors to views of flat blocks: later calls pass
        over few. Modes and gradients stay. The model is of the checkpoints' types or the path's.

        Raises:
            ValueError: `alpha` is not finite, or the model does not fit the path.
        """
        with torch.inference_mode(False), torch.no_grad():
            tensors = model.state_dict(keep_vars=True)
            blocks, pointers = self._bound.get(model, ([], None))
            if pointers != _pointers(tensors):
                blocks = self._bind(tensors)  # which moves tensors
                self._bound[model] = blocks, _pointers(tensors)
            for start, end, out in blocks:
                self._write(out, start, end, alpha)
            if self.after is not None:
                self.after(model)
        return model

    def save(self, file: Path | str, alpha: float, *, metadata: Mapping[str, str] | None = None,
             model: nn.Module | None = None) -> None:  # fmt: skip
        """Write w(alpha) as a safetensors file, whole at any time, in the names and types of start.

        Of tied names the file holds one, and the others in its `metadata` (strings by name), as
        `safetensors.torch.save_model` does; `load_model` and `WeightPath.load` fill them in. A
        `model` is set to alpha and gives the values, what `after` makes of them, and what the path
        leaves to it (`except_`); without, the file holds what is on the path alone.

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
        for piece, a, b in _chunks(out, start, end, size=CHUNK // 16):  # the cache holds a few
            piece.copy_(torch.lerp(a.to(self.dtype), b.to(self.dtype), float(alpha)))
        return out

    def _named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's tensors under the path's names: without a prefix that only it has."""
        if self._ends.keys() <= state.keys():
            return dict(state)
        prefix, _ = checkpoints.strip(self._chosen(state))
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def _bind(self, state: Mapping[str, Tensor]) -> list[Block]:
        tensors = self._named(state)
        homes: dict[object, str] = {}  # of memory
        theirs: dict[str, Tensor] = {}
        targets: dict[str, dict[int, Tensor]] = {name: {} for name in self._ends}
        for name, tensor in tensors.items():
            if (home := self._ties.get(name, name)) in self._ends:
                first = homes.setdefault(_memory(tensor), home)
                if first != home and not all(map(torch.equal, self._ends[first], self._ends[home])):
                    said = f"{first!r} and {home!r} are one tensor in the model, but differ in the"
                    raise ValueError(f"{said} checkpoints; untie them in the model")
                theirs[home] = targets[first][id(tensor)] = tensor
        others = {name: t for name, t in tensors.items() if _memory(t) not in homes}
        ours = {name: start for name, (start, _) in self._ends.items()}
        _check_same_tensors(ours, theirs | self._chosen(others))
        runs: list[list[Block]] = []
        for name, (start, end) in self._ends.items():
            for tensor in targets[name].values():
                fits = tensor.dtype in (self.dtype, self._dtypes[name])
                if start.is_floating_point() and not (fits and tensor.device == start.device):
                    sides = f"{tensor.dtype} on {tensor.device}, the path is {self.dtype}"
                    remedy = (
                        f"on {start.device}; convert one of them (model.float(), path.to(device))"
                    )
                    raise ValueError(f"{name!r} of the model is {sides} {remedy}")
                if not (runs and _follows(runs[-1], start, tensor)):
                    runs.append([])
                runs[-1].append((start, end, tensor))
        return [_block(run) for run in runs]


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Set the running statistics of `model`'s BatchNorm layers to their averages over `batches`.

    Each batch counts the same; all other layers stay in evaluation mode or as they are.

    `batches` are of images `(n, ...)`, or of pairs of images and labels: a list or a DataLoader.
    `model` is changed in place, but for its modes and momenta.

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
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum
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


def _chunks(*flats: Tensor, size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(flat.split(size or CHUNK) for flat in flats), strict=True)


def _pointers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def _follows(run: list[Block], start: Tensor, tensor: Tensor) -> bool:
    (first, _, other), size = run[0], sum(part.numel() for part, _, _ in run)
    alike = (start.dtype, tensor.dtype) == (first.dtype, other.dtype)
    apart = start.storage_offset() - first.storage_offset()
    return alike and bool(apart == size <= CHUNK - start.numel())


def _block(run: list[Block]) -> Block:
    """Return as one what follows upon each other; where it is several, the model's is moved."""
    start, end, tensor = run[0]
    flat = tensor.detach()
    if len(run) > 1 or not flat.is_contiguous() or flat.is_inference():
        tensors = [tensor for _, _, tensor in run]
        flat = _join(tensors, flat.dtype)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.data = part.view(tensor.shape)
    flat = flat.view(-1)
    return start.as_strided(flat.shape, (1,)), end.as_strided(flat.shape, (1,)), flat


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
    return other and not (a.dtype == b.dtype and torch.equal(a, b))
