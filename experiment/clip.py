"""CLIP through open_clip: the model, its zero-shot head and its classifier."""

from collections.abc import Callable, Mapping
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment.pixels import standardise
from experiment.profiles import Standard
from experiment.tasks import Task

Tokenize = Callable[[list[str]], Tensor]


def build_clip(
    embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any], vocabulary: Tensor
) -> open_clip.CLIP:
    """Build open_clip's CLIP with random weights, for the token ids in `vocabulary`."""
    return open_clip.CLIP(embed_dim, dict(vision), {**text, "vocab_size": len(vocabulary)})


def empty_image_tower(architecture: str) -> nn.Module:
    """Return the image tower of an architecture of open_clip, its weights not initialised."""
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(architecture))
    visual: nn.Module = clip.visual
    return visual.to_empty(device="cpu").eval()


def text_model(architecture: str, weights: Mapping[str, Tensor], texts: list[str]
) -> tuple[open_clip.CLIP, Tokenize]:  # fmt: skip
    """Return a CLIP that encodes `texts` at their own length, and its tokenizer.

    Attention looks back only, so the padding up to 77 tokens changes nothing: a context as long as
    the longest text gives the same features, several times faster. `weights` lack the image tower.
    """
    config = open_clip.get_model_config(architecture)
    context = int((open_clip.get_tokenizer(architecture)(texts) != 0).sum(1).max())
    config["text_cfg"]["context_length"] = context
    config["vision_cfg"] = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
    clip = open_clip.CLIP(**config).eval()
    clip.visual = nn.Identity()
    positions = weights["positional_embedding"][:context]
    try:
        clip.load_state_dict({**weights, "positional_embedding": positions})
    except RuntimeError as error:
        raise ValueError(f"the text tower is not of {architecture}: {error}") from error
    return clip, open_clip.get_tokenizer(architecture, context_length=context)


@torch.no_grad()  # an inference tensor could not be trained against
def zero_shot_head(model: open_clip.CLIP, tokenize: Tokenize, task: Task) -> Tensor:
    """Return the classifier `(classes, embed_dim)` of a task's prompts, logit scale included.

    Normalised prompts are averaged over the templates and normalised again: the logits of a
    normalised image feature z are then `z @ head.T`.
    """
    at_once, device = max(1, 256 // len(task.templates)), model.logit_scale.device
    # small results kept among large ones that go would break the memory into pieces: 2 GB more
    head = torch.empty(len(task.classnames), model.text_projection.shape[1], device=device)
    for first in range(0, len(head), at_once):
        names = task.classnames[first : first + at_once]
        head[first : first + at_once] = open_clip.build_zero_shot_classifier(
            model, tokenize, names, task.templates, None, device
        ).T
    scaled: Tensor = head * model.logit_scale.exp()
    return scaled


def classifier(
    visual: nn.Module, head: Tensor, standard: Standard, autocast: torch.dtype | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the map from images to logits through the image tower `visual` and `head`.

    `autocast` is the half precision of the tower's products; None keeps the weights' own.
    """

    def logits(images: Tensor) -> Tensor:
        parameter = next(visual.parameters())
        inputs = standardise(images, standard).to(parameter.dtype)
        with torch.autocast(parameter.device.type, autocast, enabled=autocast is not None):
            features = visual(inputs)
        return F.normalize(features.to(parameter.dtype), dim=-1) @ head.to(parameter.dtype).T

    return logits
