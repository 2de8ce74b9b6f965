"""Checkpoints as they lie on disk: read in every common form, LoRA adapters merged, written."""

import fnmatch
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paintlib.files import replacing

__all__ = ["chooser", "locate", "merged", "read", "read_pair", "strip", "tensors", "write"]

Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]
Chooser = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
OTHERS = "optim|sched|scaler|_extra_state$"  # dicts of a checkpoint that hold no weights
WRAPPERS = re.compile(r"^((module|_orig_mod|model)\.)+")  # DataParallel, compile, Lightning
KINDS = ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin", "*.pt", "*.pth",
         "*.ckpt")  # fmt: skip
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
         torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
         torch.bool: "BOOL", torch.complex64: "C64"}  # fmt: skip
FACTORS = {"B.weight": "A.weight", "embedding_B": "embedding_A", "B.bias": "A.weight"}


def read(source: Source, entry: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, of a file as memory mapped where it can be.

    A source is a module, a state dict, a dict that holds one beside others (of an optimizer, ...),
    a file (.safetensors, .pt, .pth, .bin, .ckpt), an index.json of shards, a folder with one of
    these, or an id of the Hub, `owner/name` or `owner/name@tag`. Where there are several, or one
    of averaged weights (EMA), `entry` names the dict that is meant; `a.b` is `b` inside `a`.

    ValueError if no or several state dicts are there, or a file is damaged or not to be trusted;
    FileNotFoundError; ImportError if it is an id, and huggingface_hub is not installed.
    """
    if isinstance(source, nn.Module):
        return tensors(source.state_dict())
    if isinstance(source, Mapping):
        return _state(source, entry, "the dict")
    path = locate(source)
    if not path.name.endswith(".index.json"):
        return _read_file(path, entry)
    try:
        places = json.loads(path.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no index of shards; fetch it again") from error
    shards = {name: _read_file(path.parent / name, None) for name in sorted({*places.values()})}
    if lost := [name for name, file in places.items() if name not in shards[file]]:
        said = f"{len(lost)} tensors of {path} are not in their shards, first: {lost[0]!r}"
        raise ValueError(f"{said} in {places[lost[0]]}; fetch the shards again")
    return {name: shards[file][name] for name, file in places.items()}


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the file of weights that a path or an id of the Hub means; errors as `read`."""
    path = Path(source)
    if not path.exists():
        path = _fetch(os.fspath(source))
    if not path.is_dir():
        return path
    for kind in KINDS:
        found = sorted(path.glob(kind))
        plain = [f for f in found if f.name in ("model.safetensors", "pytorch_model.bin")]
        found = plain or found
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(f"{path} holds {len(found)} files of weights: {names}; name one")
        if found:
            return found[0]
    raise FileNotFoundError(f"{path} holds no weights; looked for {', '.join(KINDS)}")


def _fetch(name: str) -> Path:
    repository, _, revision = name.partition("@")
    like_a_file = any(Path(name).match(kind) for kind in KINDS) or Path(name).parent.exists()
    if like_a_file or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository):
        raise FileNotFoundError(f"{name} is not there")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        said = f"{name!r} is no file here; as an id of the Hub it needs"
        raise ImportError(f"{said} `pip install huggingface_hub`") from error
    for kind in ("*.safetensors", "*.bin"):
        patterns = [kind, "*.json"]
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
        if any(Path(folder).glob(kind)):
            break
    return Path(folder)


def _read_file(path: Path, entry: str | None) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; fetch it, or the whole folder, again")
    if path.suffix != ".safetensors":
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of TorchScript
                content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # bytes that are no checkpoint fail in many ways
            raise ValueError(f"{path} {_why(path, error)}") from error
        return _state(content, entry, str(path))
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            ties = file.metadata() or {}
    except SafetensorError as error:
        said = f"{path} cannot be read as safetensors ({error})"
        raise ValueError(f"{said}; fetch it again") from error
    # safetensors.torch.save_model notes so which names it dropped
    dropped = {name: kept for name, kept in ties.items() if kept in tensors}
    return {**{name: tensors[kept] for name, kept in dropped.items()}, **tensors}


def _why(path: Path, error: Exception) -> str:
    """Return why a file that torch refuses is no state dict, and the remedy."""
    if "TorchScript" in str(error):
        remedy = f"torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), 'weights.pt')"
        return f"is TorchScript, a program; if you trust it, keep its weights alone: {remedy}"
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"holds more than tensors{f' ({found[1]})' if found else ''}, and none of it was run; "
            "if you trust it, load it with the code that made it and save its state dict: "
            f"torch.save(model.state_dict(), {path.name!r})"
        )
    first = str(error).strip().partition("\n")[0]
    return f"cannot be read as a checkpoint ({type(error).__name__}: {first}); fetch it again"


def _state(content: Any, entry: str | None, where: str) -> dict[str, Tensor]:
    states = _states(content) if isinstance(content, Mapping) else {}
    # single numbers beside weights are metrics, of callbacks for instance
    whole = {name: state for name, state in states.items()
             if any(t.numel() > 1 and t.is_floating_point() for t in state.values())}  # fmt: skip
    states = whole or states
    if not states:
        raise ValueError(f"{where} holds no state dict: no floating point tensor under a name")
    if [*states] == [""]:  # a plain state dict leaves nothing to choose
        return states[""]
    first, names = next(iter(states)), ", ".join(name or "'' (its top)" for name in states)
    if entry is not None and entry not in states:
        raise ValueError(f"{where} has no state dict {entry!r}; it has {names}")
    if entry is None and (len(states) > 1 or re.search("ema|swa|averag", first, re.IGNORECASE)):
        what = f"{len(states)} state dicts" if len(states) > 1 else "averaged weights alone"
        raise ValueError(f"{where} holds {what}: {names}; choose by entry={first!r}")
    return states[first if entry is None else entry]


def _states(content: Mapping[Any, Any], name: str = "") -> dict[str, dict[str, Tensor]]:
    """Return each dict of floating point tensors in `content`, but what is of an optimizer."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in named.items():
        if isinstance(value, Mapping) and not re.search(OTHERS, key, re.IGNORECASE):
            found |= _states(value, f"{name}.{key}" if name else key)
    own = tensors(named)
    own.pop("n_averaged", None)  # a count, of torch's AveragedModel
    return found | ({name: own} if any(t.is_floating_point() for t in own.values()) else {})


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict without what modules keep beside them (extra states)."""
    if packed := [name for name in state if "_packed_params" in name]:
        said = f"{packed[0]!r} is a quantised layer"
        raise ValueError(f"{said}; interpolate the weights that it was made from")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def strip(tensors: Mapping[str, Tensor], of: Iterable[str] = ()) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of wrappers that all names (`of`, if any) carry, and the tensors without.

    >>> strip({"module.model.a": torch.ones(1), "module.model.b": torch.ones(1)})[0]
    'module.model.'
    """
    common = os.path.commonprefix([*of] or [*tensors])  # noqa: RUF071
    prefix = common.removesuffix(WRAPPERS.sub("", common))
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return (prefix, bare) if len(bare) == len(tensors) else ("", dict(tensors))


def chooser(only: str | Sequence[str], except_: str | Sequence[str],
            sides: Sequence[Mapping[str, Tensor]]) -> Chooser:  # fmt: skip
    """Return what picks the tensors that fit one of `only`, if there is any, and none of `except_`.

    A name is matched as it is, and without the prefixes of wrappers; each glob must fit in `sides`.
    """
    wanted, unwanted = ([p] if isinstance(p, str) else [*p] for p in (only, except_))
    names = {name for side in sides for name in side}
    for glob in wanted + unwanted:
        if not any(_fits(name, [glob]) for name in names):
            raise ValueError(f"no name fits {glob!r}; one is {min(names, default='')!r}")
    return lambda tensors: {n: tensor for n, tensor in tensors.items()
                            if _fits(n, wanted or "*") and not _fits(n, unwanted)}  # fmt: skip


def _fits(name: str, globs: Sequence[str]) -> bool:
    both = (name, WRAPPERS.sub("", name))
    return any(fnmatch.fnmatchcase(n, glob) for glob in globs for n in both)


def read_pair(
    sides: Sequence[Source], entries: Sequence[str | None], base: Source | None
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Return the tensors of two sides, adapters merged into their base; and the base, or {}."""
    files = [_adapter(side) for side in sides]
    whole = [{} if file else read(side, entry)
             for file, side, entry in zip(files, sides, entries, strict=True)]  # fmt: skip
    if not any(files):
        return whole, {}
    if all(files) and base is None:
        raise ValueError(f"{files[0]} and {files[1]} are adapters; name what they add to by base=")
    root = whole[0] or whole[1] if base is None else read(base)
    return [merged(root, f) if f else side for f, side in zip(files, whole, strict=True)], root


def _adapter(source: Source) -> Path | None:
    """Return the file of a LoRA adapter's weights, if `source` is one as PEFT saves it."""
    if isinstance(source, nn.Module | Mapping):
        return None
    path = locate(source)
    named = path.name.startswith("adapter_")
    return path if named and path.with_name("adapter_config.json").exists() else None


def merged(base: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return `base` with the update of a LoRA adapter, W + s B A, in at least float32.

    What the adapter holds as a whole (`modules_to_save`, biases) replaces that of the base.
    """
    config = json.loads((file.parent / "adapter_config.json").read_text("utf-8"))
    variants = {"use_dora": "DoRA", "alora_invocation_tokens": "aLoRA"}
    kind = next((v for k, v in variants.items() if config.get(k)), config.get("peft_type"))
    start = config.get("init_lora_weights", True)
    if kind != "LORA" or start not in (True, False, None, "gaussian", "eva", "orthogonal"):
        what = f"type {kind}" if kind != "LORA" else f"LoRA begun by {start!r}, with a base its own"
        raise ValueError(f"{file} is an adapter of {what}; merge it with PEFT")
    found = dict(base)
    parts = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): t
             for name, t in read(file).items()}  # fmt: skip
    for name, part in parts.items():
        module, _, kind = name.rpartition(".lora_")
        if module and kind in FACTORS.values():
            continue
        factor = parts.get(f"{module}.lora_{FACTORS.get(kind)}", part)
        grouped = kind == "B.weight" and part[0].numel() != len(factor)  # a convolution
        plain = not module or (kind in FACTORS and factor is not part and not grouped)
        if not plain or "trainable_tokens" in name:
            raise ValueError(f"{name!r} of {file} is not of a plain LoRA; merge it with PEFT")
        target = f"{module}.{'bias' if kind == 'B.bias' else 'weight'}" if module else name
        homes = [n for n in found if n == target] or [
            n for n in found if target.endswith(f".{n}") or n.endswith(f".{target}")
        ]  # some files leave out the name of the whole model
        if len(homes) != 1:
            said = f"{name!r} of {file} has {len(homes)} places in its base"
            raise ValueError(f"{said}; is it the base that the adapter was trained on?")
        weight = old = found[homes[0]]
        if module:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            factor, part = factor.to(dtype), part.to(dtype)
            if kind != "B.bias":
                part = part.flatten(1) @ factor.flatten(1)
            old = weight.flatten(1) if weight.ndim > 2 else weight  # of a convolution
            if kind == "B.weight" and weight.ndim == 2 and part.shape[0] == part.shape[1]:
                turned = config.get("fan_in_fan_out")  # of the layer that PEFT came to last
                if not turned and _has_conv1d(base):
                    said = f"{name!r} of {file} is square, and may be of a Linear or a Conv1D"
                    raise ValueError(f"{said}; merge it with PEFT")
            else:
                turned = kind == "embedding_B" or part.shape != old.shape
            part = part.T if turned and kind != "B.bias" else part
            part = part * _scale(config, module, len(factor))
        if part.shape != old.shape:
            shapes = f"{tuple(part.shape)} of {file} does not fit {tuple(old.shape)} of the base"
            raise ValueError(f"{name!r}: {shapes}; leave it out by except_, or merge it with PEFT")
        found[homes[0]] = (old + part).view(weight.shape) if module else part
    return found


def _has_conv1d(base: Mapping[str, Tensor]) -> bool:
    """Return whether a layer keeps its weight as (in, out), as Conv1D of transformers does."""
    pairs = ((base.get(f"{n.removesuffix('weight')}bias"), t) for n, t in base.items())
    shapes = ((bias.numel(), *t.shape) for bias, t in pairs if bias is not None and t.ndim == 2)
    return any(first != last == count for count, first, last in shapes)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    patterns = (config.get("alpha_pattern") or {}).items()
    own = [float(a) for key, a in patterns if re.fullmatch(rf"(.*\.)?({key})", module)]
    alpha = own[0] if own else float(config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write(file: Path | str, kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]],
          values: Callable[[str], Tensor], metadata: Mapping[str, str]) -> None:  # fmt: skip
    """Write a safetensors file, atomically: by name its types and shapes, and one of its `values`.

    No more than one is in memory at a time.
    """
    if odd := [key for key, text in metadata.items() if not isinstance(text, str)]:
        raise ValueError(f"metadata[{odd[0]!r}] is no string; give str(...) or json.dumps(...)")
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))  # all are aligned
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        dtype, shape = kinds[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": [*shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(file) as part, part.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            # no name for it: it is gone before the next is made
            out.write(values(name).cpu().reshape(-1).view(torch.uint8).numpy().data)
