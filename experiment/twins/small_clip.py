"""The small CLIP of the twins: its tokenizer, and its pre-training."""

from __future__ import annotations

import json
from collections.abc import Iterable

import open_clip
import torch
from torch import Tensor

from experiment import clip, training, weights
from experiment.profiles import SmallClip
from experiment.run import Run
from experiment.session import use_threads
from experiment.twins import micro


class Tokenizer:
    """CLIP's byte-pair tokenizer with its ids renumbered to those a small world uses.

    The order of ids is kept: open_clip pools the text at the largest one, the end of the text.
    """

    def __init__(self, context_length: int, vocabulary: Tensor) -> None:
        self._encode = open_clip.SimpleTokenizer(context_length=context_length)
        self.vocabulary = vocabulary  # int64, ascending

    @classmethod
    def covering(cls, texts: Iterable[str], context_length: int) -> Tokenizer:
        """Return a tokenizer whose vocabulary is exactly what `texts` need."""
        whole = cls(context_length, torch.empty(0, dtype=torch.int64))
        return cls(context_length, torch.unique(whole._encode(sorted(set(texts)))))

    def __call__(self, texts: list[str]) -> Tensor:
        """Return compact ids, int64 `(n, context_length)`; refuse a token of no known text."""
        ids = self._encode(texts)
        compact = torch.searchsorted(self.vocabulary, ids).clamp_(max=len(self.vocabulary) - 1)
        unknown = (self.vocabulary[compact] != ids).any(1)
        if unknown.any():
            raise ValueError(
                f"{int(unknown.sum())} texts use tokens the model was not trained with, "
                f"first: {texts[int(unknown.nonzero()[0])]!r}; "
                "pre-train with these texts in the vocabulary"
            )
        return compact


def pretrain(run: Run) -> None:
    """Pre-train CLIP on captioned images; write its image tower and the zero-shot heads."""
    use_threads(2, torch.device("cpu"))
    small = run.profile.clip
    assert isinstance(small, SmallClip)
    tensors, metadata = weights.load(run.captioned)
    distinct: list[str] = json.loads(metadata["distinct"])
    # every task is in the vocabulary, so that a profile's choice of tasks changes no weight
    prompts = [p for t in micro.TASKS.values() for c in t.classnames for p in t.prompts(c)]
    tokenize = Tokenizer.covering([*distinct, *prompts], small.text["context_length"])
    torch.manual_seed(run.seed)
    model = clip.build_clip(small.embed_dim, small.vision, small.text, tokenize.vocabulary)
    checkpoint = run.folder / "pretraining.checkpoint"
    steps = training.pretrain(model, tensors["images"], tokenize(distinct), tensors["captions"],
                              run.profile.pixels, small.recipe, seed=run.seed,
                              checkpoint=checkpoint)  # fmt: skip
    training.watch(steps, small.recipe.steps, "pre-train CLIP")
    for task in run.profile.tasks:
        head = clip.zero_shot_head(model, tokenize, micro.TASKS[task])
        weights.save(run.head(task), {"head": head}, task=task, seed=run.seed)
    weights.save(run.zero_shot, model.visual.state_dict(), weights="pre-trained in the run",
                 parameters=sum(p.numel() for p in model.parameters()), seed=run.seed,
                 profile=run.profile.name, recipe=small.recipe)  # fmt: skip
    checkpoint.unlink(missing_ok=True)
