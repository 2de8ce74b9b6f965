"""Tensors on disk: safetensors that say what they hold, written whole and read whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from paintlib.files import replacing

if TYPE_CHECKING:  # torch takes seconds to import, and `metadata` does without
    from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], **metadata: object) -> str:
    """Write tensors as safetensors, whole or not at all, and return their digest.

    Args:
        path: the file; its folder is made.
        tensors: name to tensor; copied to the CPU.
        metadata: kept as strings in the file's header, beside the SHA-256 digest of the tensors.
    """
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {name: str(value) for name, value in metadata.items()} | {"digest": digest(flat)}
    with replacing(path) as part:
        save_file(flat, part, metadata=header)
    return header["digest"]


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save` wrote: the tensors and the metadata.

    Raises:
        ValueError: the file is missing, truncated or altered; it is named, and nothing half read
            is returned.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if metadata.get("digest") != digest(tensors):
        raise ValueError(
            f"{path} does not hold what was written to it; "
            "delete it and run the command again to rebuild it"
        )
    return tensors, metadata


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata of what `save` wrote, without its tensors and without torch.

    Raises:
        ValueError: the file is missing or no safetensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `tensors`, in order of name."""
    import torch

    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read as safetensors ({error}); "
        "delete it and run the command again to rebuild it"
    )
