"""CLIP through open_clip: the model, its tokenizer, its zero-shot head and its classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment.pixels import standardise
from experiment.profiles import Standard
from experiment.tasks import Task

if TYPE_CHECKING:
    from open_clip import CLIP


def build_clip(
    embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any], vocabulary: Tensor
) -> CLIP:
    """Build open_clip's CLIP with random weights for a compact vocabulary.

    Args:
        embed_dim: width of the joint embedding.
        vision: fields of `open_clip.CLIPVisionCfg`.
        text: fields of `open_clip.CLIPTextCfg` but the vocabulary size.
        vocabulary: token ids in use, as `Tokenizer.vocabulary`.
    """
    import open_clip  # takes seconds to import, and only models need it

    return open_clip.CLIP(
        embed_dim=embed_dim,
        vision_cfg=open_clip.CLIPVisionCfg(**vision),
        text_cfg=open_clip.CLIPTextCfg(vocab_size=len(vocabulary), **text),
    )


def empty_image_tower(architecture: str) -> nn.Module:
    """Return the image tower of an architecture of open_clip, its weights not yet set.

    Nothing is initialised, which is 30 times faster than building and overwriting.
    """
    import open_clip

    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(architecture))
    visual: nn.Module = clip.visual
    return visual.to_empty(device="cpu").eval()


def text_model(
    architecture: str, weights: Mapping[str, Tensor], texts: list[str]
) -> tuple[CLIP, Callable[[list[str]], Tensor]]:
    """Return a CLIP that encodes `texts` at their own length, and its tokenizer.

    Attention looks back only and the text is pooled at its end, so the padding up to 77 tokens
    changes nothing: a context as long as the longest text gives the same features, several times
    faster. The image tower of the result means nothing.

    Args:
        architecture: its name in open_clip.
        weights: everything of the CLIP but the image tower.
        texts: what will be encoded.

    Raises:
        ValueError: the weights are not those of this architecture.
    """
    import open_clip

    config = open_clip.get_model_config(architecture)
    whole = open_clip.get_tokenizer(architecture)
    context = int((whole(sorted(set(texts))) != 0).sum(1).max())
    config["text_cfg"] = {**config["text_cfg"], "context_length": context}
    config["vision_cfg"] = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
    clip = open_clip.CLIP(**config)
    short = {**weights, "positional_embedding": weights["positional_embedding"][:context]}
    outcome = clip.load_state_dict(short, strict=False)
    missing = [name for name in outcome.missing_keys if not name.startswith("visual.")]
    if missing or outcome.unexpected_keys:
        raise ValueError(
            f"the text tower is not of {architecture}: {len(missing)} tensors are missing, "
            f"{len(outcome.unexpected_keys)} unknown, first: "
            f"{sorted([*missing, *outcome.unexpected_keys])[0]!r}"
        )
    return clip.eval(), open_clip.get_tokenizer(architecture, context_length=context)


class Tokenizer:
    """CLIP's byte-pair tokenizer with its ids renumbered to those a small world uses.

    The order of ids is kept: open_clip pools the text at the largest id, the end of the text.

    Args:
        context_length: tokens per text, padding included.
        vocabulary: int64 ids in ascending order, as `vocabulary_of` returns them.
    """

    def __init__(self, context_length: int, vocabulary: Tensor) -> None:
        import open_clip

        self._encode = open_clip.SimpleTokenizer(context_length=context_length)
        self.vocabulary = vocabulary

    @classmethod
    def covering(cls, texts: Iterable[str], context_length: int) -> Tokenizer:
        """Return a tokenizer whose vocabulary is exactly what `texts` need."""
        whole = cls(context_length, torch.empty(0, dtype=torch.int64))
        return cls(context_length, torch.unique(whole._encode(sorted(set(texts)))))

    def __call__(self, texts: list[str]) -> Tensor:
        """Return compact ids, int64 `(n, context_length)`.

        Raises:
            ValueError: a text needs a token outside the vocabulary.
        """
        ids = self._encode(texts)
        compact = torch.searchsorted(self.vocabulary, ids).clamp_(max=len(self.vocabulary) - 1)
        unknown = (self.vocabulary[compact] != ids).any(1)
        if unknown.any():
            first = texts[int(unknown.nonzero()[0])]
            raise ValueError(
                f"{int(unknown.sum())} texts use tokens the model was not trained with, "
                f"first: {first!r}; pre-train with these texts in the vocabulary"
            )
        return compact


@torch.no_grad()  # an inference tensor could not be trained against
def zero_shot_head(
    model: CLIP, tokenize: Callable[[list[str]], Tensor], task: Task, at_once: int = 256
) -> Tensor:
    """Return the classifier that a task's prompts make, with the model's logit scale in it.

    Each prompt is embedded and normalised, the templates of a class are averaged and normalised
    again, and the rows are multiplied by `exp(logit_scale)`: the logits of a normalised image
    feature z are then `z @ head.T`.

    Args:
        model: a CLIP.
        tokenize: turns texts into token ids `(n, context_length)`.
        task: class names and templates.
        at_once: prompts per forward pass.

    Returns:
        Float tensor `(classes, embed_dim)`.
    """
    prompts = [prompt for name in task.classnames for prompt in task.prompts(name)]
    device = model.logit_scale.device
    features = torch.cat(
        [
            F.normalize(model.encode_text(tokenize(prompts[i : i + at_once]).to(device)), dim=-1)
            for i in range(0, len(prompts), at_once)
        ]
    )
    rows = features.view(len(task.classnames), len(task.templates), -1).mean(1)
    head: Tensor = F.normalize(rows, dim=-1) * model.logit_scale.exp()
    return head


def classifier(
    visual: nn.Module, head: Tensor, standard: Standard, autocast: torch.dtype | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the map from images to logits through the image tower `visual` and `head`.

    Args:
        visual: the image tower.
        head: `(classes, embed_dim)`, as `zero_shot_head` returns it, on the tower's device.
        standard: the pixels that the tower reads.
        autocast: half precision of the tower's products; None keeps the weights' own.
    """

    def logits(images: Tensor) -> Tensor:
        parameter = next(visual.parameters())
        inputs = standardise(images, standard).to(parameter.dtype)
        with torch.autocast(parameter.device.type, autocast, enabled=autocast is not None):
            features = visual(inputs)
        return F.normalize(features.to(parameter.dtype), dim=-1) @ head.to(parameter.dtype).T

    return logits
