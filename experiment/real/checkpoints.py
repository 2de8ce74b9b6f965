"""Public CLIP weights as the state dict of open_clip's image tower, in fp32.

A file of weights does not say which activation it was trained with: OpenAI's CLIP, and all that
was fine-tuned from it, needs an architecture whose name ends in "-quickgelu".
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from experiment.profiles import PATCHING, refuse_unknown
from paintlib.checkpoints import read

_SLUGS = {"Cars": "stanford-cars", "FashionMNIST": "fashion_mnist"}
HUB = {
    task: f"tanganke/clip-vit-base-patch32_{_SLUGS.get(task, task.lower())}" for task in PATCHING
}
"""Repositories of the Hugging Face Hub with a ViT-B/32 fine-tuned on each patching task."""

_FORMATS = (
    "understood are state dicts of transformers' CLIPVisionModel, CLIPVisionModelWithProjection "
    "and CLIPModel, and of open_clip's CLIP or its image tower, as .safetensors or .pt; load the "
    "checkpoint where it was made and save `model.visual.state_dict()` of the same architecture"
)
_WHOLE = "give `model.state_dict()` of a whole CLIP of open_clip, as .safetensors or .pt"
_RENAMED = (  # transformers to open_clip
    ("embeddings.patch_embedding.", "conv1."), ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"), ("layer_norm", "ln_"),
    ("pre_layrnorm.", "ln_pre."), ("post_layernorm.", "ln_post."), ("self_attn.", "attn."),
    ("encoder.layers.", "transformer.resblocks."), ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)  # fmt: skip


def pretrained_clip(name: str = "ViT-B-32-quickgelu", weights: str = "openai") -> open_clip.CLIP:
    """Build a CLIP of open_clip in fp32 and eval mode, with both towers.

    `weights` are a tag of open_clip, the path of a state dict of the whole CLIP, or "random".
    """
    config = open_clip.get_model_config(name) or {"_model_name": name}
    own = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    if not config.keys() <= own or "_model_name" in str(config):
        what = "with both towers of open_clip's own, such as 'ViT-B-32-quickgelu'"
        raise ValueError(f"{name!r} is no architecture {what}")
    if weights == "random":
        return open_clip.CLIP(**config).eval()
    path = Path(weights)
    if tag := tag_of(name, weights):
        trained = bool(tag.get("quick_gelu"))
        if trained != bool(config.get("quick_gelu")):
            kind = "QuickGELU" if trained else "GELU"
            other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
            raise ValueError(f"the weights {weights!r} were trained with {kind}; use {other!r}")
        remedy = (
            "run this where there is a network, and pass the path of the file instead of the tag:\n"
            "  import open_clip, safetensors.torch\n"
            f"  model = open_clip.create_model({name!r}, pretrained={weights!r})\n"
            "  safetensors.torch.save_file(model.state_dict(), 'clip.safetensors')"
        )
        what = f"the weights {weights!r} of {name}"
        path = _downloaded(lambda: open_clip.download_pretrained(tag), what, remedy)
    _, state = _below("visual.conv1.weight", read(path), path, _WHOLE)
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict(_conform(state, model.state_dict(), path, f"is it {name}? {_WHOLE}"))
    return model


def tag_of(name: str, weights: str) -> Any:
    """Return what open_clip knows of a tag of weights, {} for a file; refuse what is neither."""
    tag = open_clip.get_pretrained_cfg(name, weights)
    if not tag and not Path(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise ValueError(f"WEIGHTS={weights} is no file, and none of the tags of {name}: {tags}")
    return tag


def import_image_tower(path: Path, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read an image tower that transformers, open_clip or PAINT's code has saved.

    transformers' CLIPVisionModel has no projection: that of `reference`, the zero-shot tower, is
    taken, which fine-tuning that class leaves unchanged. The result is like `reference` in all but
    its values, and shares no memory.
    """
    state = read(path)
    if not any(name.endswith("embeddings.class_embedding") for name in state):
        return _conform(_below("conv1.weight", state, path, _FORMATS)[1], reference, path, _FORMATS)
    prefix, theirs = _below("embeddings.class_embedding", state, path, _FORMATS)
    tower = _renamed(theirs)
    projection = state.get(f"{prefix.removesuffix('vision_model.')}visual_projection.weight")
    if projection is not None:
        tower["proj"] = projection.t()
    elif "proj" in reference:
        tower["proj"] = reference["proj"]
    return _conform(tower, reference, path, _FORMATS)


def hub_checkpoint(task: str) -> Path:
    """Return the fine-tuned checkpoint of a patching task, downloaded once to the Hub's cache."""
    from huggingface_hub import hf_hub_download

    refuse_unknown([task], HUB, "no fine-tuned checkpoint is known of")
    remedy = (
        "the same command resumes once there is a network, or pass FINETUNED=FOLDER with "
        f"{task}.safetensors and the other tasks' files in it"
    )
    what = f"model.safetensors of {HUB[task]}"
    return _downloaded(lambda: hf_hub_download(HUB[task], "model.safetensors"), what, remedy)


def _downloaded(download: Callable[[], str], what: str, remedy: str) -> Path:
    try:
        return Path(download())
    except Exception as error:  # of several clients, which share no base class
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise RuntimeError(f"cannot download {what} ({said}); {remedy}") from error


def _below(anchor: str, state: Mapping[str, Tensor], path: Path, remedy: str
) -> tuple[str, dict[str, Tensor]]:  # fmt: skip
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
    have, want = (
        {f"{name!r} {tuple(tensor.shape)}" for name, tensor in side.items()}
        for side in (tensors, reference)
    )
    if have != want:
        groups = (("missing", want - have), ("unexpected", have - want))
        counts = [f"{len(odd)} {kind}, first: {min(odd)}" for kind, odd in groups if odd]
        raise ValueError(
            f"{path} does not fit the {len(want)} tensors expected: {'; '.join(counts)}; {remedy}"
        )
    result = {name: tensors[name].detach().to(like.dtype, copy=True).contiguous()
              for name, like in reference.items()}  # fmt: skip
    # extremes pass NaN on, and cost a tenth of a test of every number
    broken = [n for n, t in result.items() if not torch.stack(t.aminmax()).isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} holds {len(broken)} tensors with NaN or infinity, first: {min(broken)!r}; "
            "fetch or train it again"
        )
    return result
