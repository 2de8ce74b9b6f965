"""Pre-train the small CLIP of the twins."""

from __future__ import annotations

import json

import torch

from experiment import clip, training, weights
from experiment.profiles import SmallClip
from experiment.run import Run
from experiment.session import use_threads
from experiment.twins import micro


def pretrain(run: Run) -> None:
    """Pre-train CLIP on captioned images; write its image tower and the zero-shot heads."""
    use_threads(2, torch.device("cpu"))
    small = run.profile.clip
    assert isinstance(small, SmallClip)
    tensors, metadata = weights.load(run.captioned)
    distinct: list[str] = json.loads(metadata["distinct"])
    # every task is in the vocabulary, so that a profile's choice of tasks changes no weight
    prompts = [p for t in micro.TASKS.values() for c in t.classnames for p in t.prompts(c)]
    tokenize = clip.Tokenizer.covering([*distinct, *prompts], small.text["context_length"])
    torch.manual_seed(run.seed)
    model = clip.build_clip(small.embed_dim, small.vision, small.text, tokenize.vocabulary)
    checkpoint = run.folder / "pretraining.checkpoint"
    steps = training.pretrain(
        model,
        tensors["images"],
        tokenize(distinct),
        tensors["captions"],
        run.profile.pixels,
        small.recipe,
        seed=run.seed,
        checkpoint=checkpoint,
    )
    training.watch(steps, small.recipe.steps, "pre-train CLIP")
    for task in run.profile.tasks:
        head = clip.zero_shot_head(model, tokenize, micro.TASKS[task])
        weights.save(run.head(task), {"head": head}, task=task, seed=run.seed)
    weights.save(run.zero_shot, model.visual.state_dict(), weights="pre-trained in the run",
                 parameters=sum(p.numel() for p in model.parameters()), seed=run.seed,
                 profile=run.profile.name, recipe=small.recipe)  # fmt: skip
    checkpoint.unlink(missing_ok=True)
