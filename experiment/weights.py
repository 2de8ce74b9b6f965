"""Tensors on disk: safetensors that say what they hold, written whole and read whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from paintlib.files import replacing

if TYPE_CHECKING:  # torch takes seconds to import, and `metadata` does without
    from torch import Tensor

_REMEDY = "delete it and run the command again to rebuild it"


def save(path: Path, tensors: Mapping[str, Tensor], **metadata: object) -> str:
    """Write tensors, with metadata as strings beside their digest; return the digest."""
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {name: str(value) for name, value in metadata.items()} | {"digest": digest(flat)}
    with replacing(path) as part:
        try:
            save_file(flat, part, metadata=header)
        except SafetensorError as error:  # of the disk, most often
            raise OSError(f"{path} cannot be written: {error}") from error
    return header["digest"]


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata; a missing, truncated or altered file is a ValueError."""
    with _opened(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if metadata.get("digest") != digest(tensors):
        raise ValueError(f"{path} does not hold what was written to it; {_REMEDY}")
    return tensors, metadata


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata without the tensors and without torch; errors as `load`."""
    with _opened(path, "numpy") as file:
        return dict(file.metadata() or {})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `tensors`, in order of name."""
    import torch

    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); {_REMEDY}") from error
