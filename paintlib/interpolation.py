"""The straight line between two sets of weights, w(alpha) = (1 - alpha) w_zs + alpha w_ft."""

import hashlib
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from paintlib import checkpoints

__all__ = ["WeightPath", "reestimate_batchnorm"]

Weights = nn.Module | Mapping[str, Tensor]
Names = str | Sequence[str]
After = Callable[[nn.Module], object]
CHUNK = 2**22  # numbers that are worked on at a time: 32 MiB in float64


class _Span(NamedTuple):
    """Where numbers lie in a part of the path."""

    part: int
    begin: int
    end: int


class _Binding(NamedTuple):
    """What `set_` writes in a model; where that was; the names there of the path's integers."""

    blocks: list[tuple[Tensor, _Span]]
    pointers: dict[str, int]
    integers: dict[str, str]


class WeightPath:
    """The line segment between two checkpoints of one architecture, (1.1) eq-path.

    Each end is one flat vector, so that a point of the path is one fused `lerp`. Floating point
    tensors are interpolated in at least float32, by chunks where both ends are of half precision;
    integer tensors are taken from the nearer end. Names of one memory (ties) count once.

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
        self.after, self._globs = after, checkpoints.Globs(only, except_)
        self._begin(self._globs.chosen(*sides, strict=True))

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
        path.after, path._globs = after, checkpoints.Globs(only, except_)
        entries = entry if isinstance(entry, tuple) else (entry, entry)
        whole, root = checkpoints.read_pair((start, end), entries, base)
        sides = path._globs.chosen(*whole, strict=True)
        prefix = checkpoints.strip(sides[0])[0]
        sides = [checkpoints.strip(side)[1] for side in sides]
        del whole  # so that a file's pages are dropped once its numbers are taken
        path._begin(sides, prefix)
        if root is not None:  # an adapter's update is float32, whatever its base is
            kinds = checkpoints.strip(path._globs.chosen(root)[0])[1]
            path._dtypes |= {name: kinds[name].dtype for name in path._dtypes if name in kinds}
        return path

    def _begin(self, sides: list[dict[str, Tensor]], prefix: str = "") -> None:
        """Take both ends from `sides`, which is empty afterwards."""
        self._prefix, self._ties = prefix, _ties(*sides)
        first, last = ({n: t for n, t in s.items() if n not in self._ties} for s in sides)
        sides.clear()
        _check_same_tensors(first, last)
        _check_not_quantised(first, last)
        floats = [name for name, tensor in first.items() if tensor.is_floating_point()]
        self._integers = {n: (t.clone(), last[n].clone()) for n, t in first.items()
                          if not t.is_floating_point()}  # fmt: skip
        if not floats:
            raise ValueError("no floating point tensor on either side: nothing to interpolate")
        self._dtypes = {n: torch.promote_types(t.dtype, last[n].dtype) for n, t in first.items()}
        wide = torch.float64 in (self._dtypes[name] for name in floats)
        self.dtype = torch.float64 if wide else torch.float32
        held: dict[torch.dtype, list[str]] = {}
        for name in floats:
            half = self._dtypes[name].itemsize == 2
            held.setdefault(self._dtypes[name] if half else self.dtype, []).append(name)
        self._shapes = {name: first[name].shape for names in held.values() for name in names}
        self._spans: dict[str, _Span] = {}
        for part, names in enumerate(held.values()):
            at = [0, *itertools.accumulate(first[name].numel() for name in names)]
            spans = zip(names, at, at[1:], strict=False)
            self._spans |= {name: _Span(part, begin, end) for name, begin, end in spans}
        starts = [_join(first, names, dtype) for dtype, names in held.items()]
        del first
        ends = [_join(last, names, dtype) for dtype, names in held.items()]
        self._parts = list(zip(starts, ends, strict=True))  # both ends, all of one type
        for side, title in enumerate(("start", "end")):
            for name, span in self._spans.items():
                if not all(part.isfinite().all() for part in self._at(span)[side].split(CHUNK)):
                    said = f"the {title} weights are not finite, first in {name!r}"
                    hint = "make them again: the file is damaged or the training diverged"
                    raise ValueError(f"{said}; {hint}")
        self._bound: weakref.WeakKeyDictionary[nn.Module, _Binding] = weakref.WeakKeyDictionary()

    @property
    def start(self) -> Tensor:
        """The flat vector at alpha = 0; a copy in float32 where the ends are of half precision."""
        return self._whole(0)

    @property
    def end(self) -> Tensor:
        """The flat vector at alpha = 1; a copy in float32 where the ends are of half precision."""
        return self._whole(1)

    def _whole(self, side: int) -> Tensor:
        wide = [part[side].to(self.dtype) for part in self._parts]  # copies no float32
        return wide[0] if len(wide) == 1 else torch.cat(wide)

    def _at(self, span: _Span) -> tuple[Tensor, Tensor]:
        start, end = self._parts[span.part]
        return start[span.begin : span.end], end[span.begin : span.end]

    @property
    def length(self) -> float:
        """The 2-norm of w_ft - w_zs, (2.3) eq-length, summed in float64 by chunks."""
        chunks = (zip(a.split(CHUNK), b.split(CHUNK), strict=True) for a, b in self._parts)
        pairs = itertools.chain.from_iterable(chunks)
        return math.hypot(*(float(torch.dist(a.double(), b.double())) for a, b in pairs))

    @cached_property
    def digests(self) -> tuple[str, str]:
        """The SHA-256 of each end: names, types, shapes and bytes, in the order of the names."""
        digests = hashlib.sha256(), hashlib.sha256()
        for name in sorted([*self._shapes, *self._integers, *self._ties]):
            home = self._ties.get(name, name)
            pair = self._at(self._spans[home]) if home in self._spans else self._integers[home]
            for digest, tensor in zip(digests, pair, strict=True):
                dtype = self.dtype if home in self._spans else tensor.dtype
                shape = tuple(self._shapes.get(home, tensor.shape))
                digest.update(f"{name} {dtype} {shape}\n".encode())
                for chunk in tensor.reshape(-1).split(CHUNK):
                    digest.update(chunk.to(dtype).cpu().numpy().data)
        return digests[0].hexdigest(), digests[1].hexdigest()

    def at(self, alpha: float) -> Tensor:
        """Return w(alpha) as a new flat vector, bit-exact at alpha = 0 and 1."""
        sizes = [len(start) for start, _ in self._parts]
        out = torch.empty(sum(sizes), dtype=self.dtype, device=self._parts[0][0].device)
        for flat, (start, end) in zip(out.split(sizes), self._parts, strict=True):
            self._write(flat, start, end, alpha)
        return out

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat `vector` under the names and shapes of the checkpoints."""
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        shapes = self._shapes.items()
        views = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        return views | {name: views[home] for name, home in self._ties.items() if home in views}

    def flatten(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the flat vector of `tensors` in the path's order; an absent tensor counts as 0."""
        device = self._parts[0][0].device
        total = sum(shape.numel() for shape in self._shapes.values())
        out = torch.zeros(total, dtype=self.dtype, device=device)
        views = self.unflatten(out)
        for name in [*self._ties, *self._shapes]:  # a tied name speaks where the first is absent
            if name in views and (tensor := tensors.get(name)) is not None:
                views[name].copy_(tensor.detach().reshape(views[name].shape))
        return out

    def to(self, device: torch.device | str) -> Self:
        """Move both ends to `device` in place and return the path."""
        for i, (start, end) in enumerate(self._parts):
            self._parts[i] = start.to(device), end.to(device)
        return self

    def set_(self, model: nn.Module, alpha: float) -> nn.Module:
        """Write w(alpha) into `model` in place and return it.

        The first call re-points the model's small tensors to views of flat blocks, so that each
        later call is a pass over few of them. Training flags and gradients are left alone. The
        model is of the checkpoints' types, or of the path's. `after` is called at the end.

        Raises:
            ValueError: `alpha` is not finite, or the model does not fit the path.
        """
        if not math.isfinite(alpha):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        with torch.inference_mode(False), torch.no_grad():
            tensors = model.state_dict(keep_vars=True)
            bound = self._bound.get(model)
            if bound is None or any(
                name not in tensors or tensors[name].data_ptr() != pointer
                for name, pointer in bound.pointers.items()
            ):
                self._bound[model] = bound = self._bind(tensors)
            for flat, span in bound.blocks:
                self._write(flat, *self._at(span), alpha)
            for name, home in bound.integers.items():
                tensors[name].copy_(self._integers[home][alpha >= 0.5])
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
        if not math.isfinite(alpha):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        if self.after is not None and model is None:
            raise ValueError("the path has a step after each write; give save its model=")
        tensors: dict[str, Tensor] = {}
        ties = dict(self._ties)
        if model is not None:
            state = self.set_(model, alpha).state_dict()
            ours = sorted(self._named(state).items(), key=lambda item: item[0] not in self._dtypes)
            ties |= _ties(dict(ours), dict(ours))
            tensors = {name: tensor for name, tensor in ours if name not in ties}
        shapes = {name: pair[0].shape for name, pair in self._integers.items()} | self._shapes
        kinds = {name: (dtype, shapes[name]) for name, dtype in self._dtypes.items()}
        kinds |= {n: (self._dtypes.get(n, t.dtype), t.shape) for n, t in tensors.items()}

        def chunks(name: str) -> Iterator[Tensor]:
            name = name.removeprefix(self._prefix)
            dtype = kinds[name][0]
            if name in tensors:
                yield from (c.to(dtype) for c in tensors[name].reshape(-1).split(CHUNK))
            elif name in self._integers:
                yield self._integers[name][alpha >= 0.5].reshape(-1).to(dtype)
            else:
                ends = (end.split(CHUNK) for end in self._at(self._spans[name]))
                for start, end in zip(*ends, strict=True):
                    yield self._write(torch.empty_like(start, dtype=dtype), start, end, alpha)

        names = {self._prefix + name: kind for name, kind in kinds.items()}
        noted = {self._prefix + name: self._prefix + home for name, home in ties.items()}
        checkpoints.write(file, names, chunks, {**noted, **(metadata or {})})

    def _write(self, out: Tensor, start: Tensor, end: Tensor, alpha: float) -> Tensor:
        # lerp may turn -0.0 into 0.0 at an end, and a copy is cheaper there
        if alpha in (0.0, 1.0):
            return out.copy_(end if alpha else start)
        if start.dtype == out.dtype:  # of half precision too torch computes in float32, then rounds
            return torch.lerp(start, end, float(alpha), out=out)
        size = max(CHUNK // 16, 1)  # the cache holds a few of these
        pieces = (flat.split(size) for flat in (out, start, end))
        for piece, a, b in zip(*pieces, strict=True):
            piece.copy_(torch.lerp(a.to(self.dtype), b.to(self.dtype), float(alpha)))
        return out

    def _named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's tensors under the path's names: without a prefix that only it has."""
        if all(home in state for home in self._dtypes):
            return dict(state)
        prefix, _ = checkpoints.strip(self._globs.chosen(state)[0])
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def _bind(self, state: Mapping[str, Tensor]) -> _Binding:
        tensors = self._named(state)
        names = dict(zip(tensors, state, strict=True))
        theirs: dict[str, Tensor] = {}
        homes: dict[object, str] = {}  # of memory
        targets: list[tuple[str, str, Tensor]] = []
        integers: dict[str, str] = {}
        for name in sorted(tensors, key=lambda n: self._ties.get(n, n) not in self._dtypes):
            home, tensor = self._ties.get(name, name), tensors[name]
            memory = _memory(tensor)
            fresh, first = memory not in homes, homes.setdefault(memory, home)
            if home in self._dtypes:
                theirs.setdefault(home, tensor)
                if first != home and not self._same(first, home):
                    said = f"{first!r} and {home!r} are one tensor in the model, but differ in the"
                    raise ValueError(f"{said} checkpoints; untie them in the model")
                if home in self._integers:
                    integers[names[name]] = home
                elif fresh:
                    targets.append((home, names[name], tensor))
            elif fresh and self._globs.chosen({name: tensor})[0]:
                theirs[name] = tensor
        ours = {n: self._at(s)[0].view(self._shapes[n]) for n, s in self._spans.items()}
        _check_same_tensors(ours | {n: first for n, (first, _) in self._integers.items()}, theirs)
        runs: list[list[tuple[_Span, Tensor]]] = []
        for home, name, tensor in sorted(targets, key=lambda target: self._spans[target[0]]):
            span, device = self._spans[home], self._parts[0][0].device
            if tensor.dtype not in (self.dtype, self._dtypes[home]) or tensor.device != device:
                sides = f"{tensor.dtype} on {tensor.device}, the path is {self.dtype} on {device}"
                remedy = "convert one of them (model.float(), path.to(device))"
                raise ValueError(f"{name!r} of the model is {sides}; {remedy}")
            if runs and _follows(span, tensor, runs[-1]):
                runs[-1].append((span, tensor))
            else:
                runs.append([(span, tensor)])
        blocks = [_block(run) for run in runs]  # which moves the tensors
        pointers = {name: tensor.data_ptr() for _, name, tensor in targets}
        return _Binding(blocks, pointers, integers)

    def _same(self, one: str, other: str) -> bool:
        ends = (self._integers.get(n) or self._at(self._spans[n]) for n in (one, other))
        return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


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
            for batch in batches if norms else ():
                for norm in norms if count == 0 else ():
                    norm.reset_running_stats()
                    norm.momentum, norm.training = None, True  # None: the plain average
                model(batch if isinstance(batch, Tensor) else batch[0])
                count += 1
    finally:
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum
    if norms and not count:
        raise ValueError("no batch to estimate BatchNorm from: `batches` is empty or used up")


def _join(tensors: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> Tensor:
    sizes = [tensors[name].numel() for name in names]
    flat = torch.empty(sum(sizes), dtype=dtype, device=tensors[names[0]].device)
    for name, part in zip(names, flat.split(sizes), strict=True):
        part.view(tensors[name].shape).copy_(tensors[name].detach())
    return flat


def _follows(span: _Span, tensor: Tensor, run: Sequence[tuple[_Span, Tensor]]) -> bool:
    (first, _), (last, before) = run[0], run[-1]
    near = span.part == last.part and span.begin == last.end and tensor.dtype == before.dtype
    return near and span.end - first.begin <= CHUNK


def _block(run: Sequence[tuple[_Span, Tensor]]) -> tuple[Tensor, _Span]:
    """Return the flat memory of a run of a model's tensors, made one where they are several."""
    span = _Span(run[0][0].part, run[0][0].begin, run[-1][0].end)
    tensor = run[0][1]
    if len(run) == 1 and tensor.is_contiguous() and not tensor.is_inference():
        return tensor.detach().view(-1), span
    flat = torch.empty(span.end - span.begin, dtype=tensor.dtype, device=tensor.device)
    for (_, tensor), part in zip(run, flat.split([t.numel() for _, t in run]), strict=True):
        tensor.data = part.view(tensor.shape)
    return flat, span


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
    for side, other in ((first, last), (last, first)):
        homes: dict[object, str] = {}
        for name in sorted(side, key=lambda name: (name not in other, name not in first)):
            home = homes.setdefault(_memory(side[name]), name)
            home, root = ties.get(home, home), ties.get(name, name)
            if home == root or home not in other:
                continue
            a, b = other.get(name), other[home]
            if a is None or (a.dtype == b.dtype and torch.equal(a, b)):
                ties |= {n: home for n, h in ties.items() if h == root} | {root: home}
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


def _check_not_quantised(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> None:
    def nonsense(name: str) -> bool:
        a, b = first[name], last[name]
        if a.is_floating_point() or a.numel() < 2:
            return a.is_floating_point() and 1 in (a.itemsize, b.itemsize)
        # what counts, indexes or masks is int64 or bool, or the same at both ends
        odd = a.dtype not in (torch.int64, torch.bool)
        return odd and (a.dtype != b.dtype or not torch.equal(a, b))

    if odd := [name for name in first if nonsense(name)]:
        said = f"{len(odd)} tensors are quantised weights, first: {odd[0]!r}, {first[odd[0]].dtype}"
        raise ValueError(f"{said}; interpolate the weights that they were made from")
