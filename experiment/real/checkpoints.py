"""Public CLIP weights, brought into the form that paintlib interpolates.

That form is the state dict of open_clip's image tower, `model.visual.state_dict()`, in fp32.
A file of weights does not say which activation it was trained with: OpenAI's CLIP, and all that
was fine-tuned from it, needs an architecture whose name ends in "-quickgelu".
"""

from __future__ import annotations

import difflib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiment.profiles import PATCHING

if TYPE_CHECKING:
    from open_clip import CLIP

_SLUGS = {"Cars": "stanford-cars", "FashionMNIST": "fashion_mnist"}
HUB = {
    task: (f"tanganke/clip-vit-base-patch32_{_SLUGS.get(task, task.lower())}", "model.safetensors")
    for task in PATCHING
}
"""Fine-tuned ViT-B/32 of each patching task on the Hugging Face Hub: repository and file."""

_TASKS = ", ".join(sorted(HUB))

_FORMATS = (
    "understood are state dicts of transformers' CLIPVisionModel, CLIPVisionModelWithProjection "
    "and CLIPModel, and of open_clip's CLIP or its image tower, as .safetensors or .pt; load the "
    "checkpoint where it was made and save `model.visual.state_dict()` of the same architecture"
)

_RENAMED = (  # transformers to open_clip, in this order
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.class_embedding", "class_embedding"),
    ("pre_layrnorm.", "ln_pre."),
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm", "ln_"),
    ("self_attn.", "attn."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def pretrained_clip(name: str = "ViT-B-32-quickgelu", weights: str = "openai") -> CLIP:
    """Build a CLIP of open_clip in fp32 and eval mode, with both towers.

    Args:
        name: architecture, one of `open_clip.list_models()` without foreign towers.
        weights: a tag of open_clip, downloaded once to its cache; the path of a state dict of
            the whole CLIP, .safetensors or .pt; or "random", drawn from torch's generator.

    Raises:
        ValueError: unknown architecture or weights, weights made with another activation, or a
            file that does not hold this architecture.
        RuntimeError: the download failed.
    """
    import open_clip  # takes seconds to import

    names = open_clip.list_models()
    if name not in names:
        raise ValueError(f"unknown architecture {name!r}; {_closest(name, names)}")
    config = open_clip.get_model_config(name)
    if not config.keys() <= {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} or any(
        "_model_name" in key for tower in ("vision_cfg", "text_cfg") for key in config[tower]
    ):
        raise ValueError(
            f"{name!r} takes a tower from another library; "
            "use a CLIP of open_clip's own, such as 'ViT-B-32-quickgelu'"
        )
    if weights == "random":
        return open_clip.CLIP(**config).eval()

    path = _weights_file(name, bool(config.get("quick_gelu")), weights)
    with torch.device("meta"):  # a random initialisation takes seconds
        model = open_clip.CLIP(**config)
    whole = "give `model.state_dict()` of a whole CLIP of open_clip, as .safetensors or .pt"
    _, state = _below("visual.conv1.weight", _read(path), path, whole)
    state = _conform(state, model.state_dict(), path, f"is it {name}? {whole}")
    model.load_state_dict(state, assign=True)
    if model.attn_mask is not None:  # the one tensor that state dicts leave out
        mask = torch.full((model.context_length,) * 2, float("-inf")).triu_(1)
        model.register_buffer("attn_mask", mask, persistent=False)
    return model.eval()


def import_image_tower(path: Path, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read an image tower that transformers, open_clip or PAINT's code has saved.

    Text tower, logit scale and integer buffers are left out. transformers' CLIPVisionModel has
    no projection: the reference's is taken, which fine-tuning that class leaves unchanged.

    Args:
        path: a state dict, as .safetensors or as a .pt that `torch.load` reads weights-only;
            nothing in the file is ever executed.
        reference: the zero-shot image tower, `model.visual.state_dict()`.

    Returns:
        Tensors in fp32 with the names, the order and the shapes of `reference`; none shares
        memory with it.

    Raises:
        ValueError: the file cannot be read, is no such tower, or holds a NaN or an infinity.
    """
    path = Path(path)
    state = _read(path)
    if any(name.endswith("embeddings.class_embedding") for name in state):
        prefix, tower = _below("embeddings.class_embedding", state, path, _FORMATS)
        tower = _renamed(tower)
        projection = state.get(f"{prefix.removesuffix('vision_model.')}visual_projection.weight")
        if projection is not None:
            tower["proj"] = projection.T if projection.ndim == 2 else projection
        elif "proj" in reference:
            tower["proj"] = reference["proj"]
    else:
        _, tower = _below("conv1.weight", state, path, _FORMATS)
    return _conform(tower, reference, path, _FORMATS)


def hub_checkpoint(task: str) -> Path:
    """Return the fine-tuned checkpoint of a patching task, downloaded once to the Hub's cache.

    A machine without network reads that cache at once where `HF_HUB_OFFLINE=1` is set.

    Raises:
        ValueError: there is none for `task`.
        RuntimeError: the download failed.
    """
    import huggingface_hub

    if task not in HUB:
        raise ValueError(f"no fine-tuned checkpoint of {task!r} is known; valid: {_TASKS}")
    repository, file = HUB[task]
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # the errors of the Hub's client share no base class
        raise RuntimeError(
            f"cannot download {file} of {repository} ({_first_line(error)}); the same command "
            f"resumes once there is a network, or pass FINETUNED=FOLDER with {task}.safetensors "
            "and the other tasks' files in it"
        ) from error


def local_checkpoint(folder: Path, task: str) -> Path:
    """Return the checkpoint of `task` in `folder`: TASK.safetensors, or else TASK.pt.

    Raises:
        ValueError: there is neither.
    """
    folder = Path(folder)
    for path in (folder / f"{task}.safetensors", folder / f"{task}.pt"):
        if path.is_file():
            return path
    expected = f"TASK.safetensors or TASK.pt for each TASK of {_TASKS}"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; it should hold {expected}")
    found = sorted(entry.name for entry in folder.iterdir())
    raise ValueError(
        f"{folder} holds neither {task}.safetensors nor {task}.pt but {len(found)} entries: "
        f"{', '.join(found[:20]) or 'it is empty'}; expected are {expected}"
    )


def _closest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=5, cutoff=0.5)
    return f"closest: {', '.join(close)}" if close else f"valid: {', '.join(valid) or 'none'}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _weights_file(name: str, quick_gelu: bool, weights: str) -> Path:
    """Return the file that `weights` names for an architecture, downloaded if it is a tag."""
    from open_clip import pretrained

    tag = pretrained.get_pretrained_cfg(name, weights)
    if not tag:
        if not Path(weights).is_file():
            tags = pretrained.list_pretrained_tags_by_model(name)
            raise ValueError(
                f"weights {weights!r} are no file, and no tag of {name}; {_closest(weights, tags)}"
            )
        return Path(weights)
    if bool(tag.get("quick_gelu")) != quick_gelu:
        made, has = ("GELU", "QuickGELU") if quick_gelu else ("QuickGELU", "GELU")
        other = name.removesuffix("-quickgelu") if quick_gelu else f"{name}-quickgelu"
        raise ValueError(
            f"the weights {weights!r} were trained with {made} but {name!r} computes {has}; "
            f"use {other!r}"
        )
    try:
        return Path(pretrained.download_pretrained(tag))
    except Exception as error:  # of three clients, which share no base class
        raise RuntimeError(
            f"cannot download the weights {weights!r} of {name} ({_first_line(error)}); run this "
            "where there is a network, and pass the path of the file instead of the tag:\n"
            "  import open_clip, safetensors.torch\n"
            f"  model = open_clip.create_model({name!r}, pretrained={weights!r})\n"
            "  safetensors.torch.save_file(model.state_dict(), 'clip.safetensors')"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict without executing anything the file holds."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as safetensors ({_first_line(error)}); fetch it again"
            ) from error
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is TorchScript, a program rather than weights; if you trust it, convert it:\n"
            "  import safetensors.torch, torch\n"
            f"  state = torch.jit.load({path.name!r}, map_location='cpu').state_dict()\n"
            "  state = {name: tensor.contiguous() for name, tensor in state.items()}\n"
            f"  safetensors.torch.save_file(state, {path.stem + '.safetensors'!r})"
        )
    try:
        with warnings.catch_warnings():  # of other pickle protocols, which load or are refused
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} is no state dict that can be read without running code"
            f"{f' ({found[1]})' if found else ''}, and none was run; if it is a pickled model "
            "that you trust, load it with the code that made it and save its weights: "
            f"torch.save(model.state_dict(), {path.name!r})"
        ) from error
    except Exception as error:  # bytes that are no checkpoint fail in many ways
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({_first_line(error)}); fetch it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # open_clip's own training checkpoints
    tensors = state.items() if isinstance(state, dict) else ()
    return {name: value for name, value in tensors if isinstance(value, Tensor)}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _below(
    anchor: str, state: Mapping[str, Tensor], path: Path, remedy: str
) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of `anchor`, which an image tower has once, and what has this prefix."""
    found = [
        name.removesuffix(anchor)
        for name in state
        if f".{name}".endswith(f".{anchor}") and not re.search(r"\blayer\d", name)  # of a ResNet
    ]
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} image towers, told by {anchor!r}, among {len(state)} "
            f"tensors, first: {min(state, default='none')!r}; {remedy}"
        )
    [prefix] = found
    return prefix, {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _renamed(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' image tower under open_clip's names, query, key and value stacked."""
    result = {}
    for name, tensor in tower.items():
        for old, new in _RENAMED:
            name = name.replace(old, new)
        result[name] = tensor
    for query in [name for name in result if ".attn.q_proj." in name]:
        parts = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        # parts that are absent or unequal stay, and are refused as unexpected
        if len({result[part].shape if part in result else None for part in parts}) == 1:
            stacked = torch.cat([result.pop(part) for part in parts])
            result[query.replace(".q_proj.", ".in_proj_")] = stacked
    return result


def _conform(
    tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], path: Path, remedy: str
) -> dict[str, Tensor]:
    """Return fp32 copies of `tensors` in the order of `reference`, or refuse what differs."""
    tensors = {n: t for n, t in tensors.items() if t.is_floating_point() or n in reference}
    common = sorted(tensors.keys() & reference.keys())
    groups = {
        "missing": sorted(reference.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - reference.keys()),
        "mis-shaped": [n for n in common if tensors[n].shape != reference[n].shape],
    }
    problems = [f"{len(g)} {kind}, first: {g[0]!r}" for kind, g in groups.items() if g]
    for name in groups["mis-shaped"][:1]:
        seen, wanted = tuple(tensors[name].shape), tuple(reference[name].shape)
        problems[-1] += f", {seen} where {wanted} is expected"
    if problems:
        raise ValueError(
            f"{path} does not fit the {len(reference)} tensors expected: "
            f"{'; '.join(problems)}; {remedy}"
        )
    result = {}
    for name, like in reference.items():
        copy = tensors[name].detach().clone(memory_format=torch.contiguous_format)
        result[name] = copy.float() if like.is_floating_point() else copy.to(like.dtype)
    # extremes pass NaN on, and cost a tenth of a test of every number
    broken = sorted(n for n, t in result.items() if not torch.stack(t.aminmax()).isfinite().all())
    if broken:
        raise ValueError(
            f"{path} holds {len(broken)} tensors with NaN or infinity, first: {broken[0]!r}; "
            "fetch or train it again"
        )
    return result
