"""Fine-tune the image tower, or take public weights."""

from dataclasses import replace
from pathlib import Path

import torch

from experiment import clip, training, weights
from experiment.run import Run
from experiment.session import Session


def finetune(run: Run, patching: str) -> None:
    """Write the image tower fine-tuned on a patching task: by the run itself, or a public one."""
    session = Session(run)
    visual = session.tower()
    parent = weights.metadata(run.zero_shot)["digest"]
    target = run.fine_tuned(patching)
    if run.source != "own":
        from experiment.real import checkpoints

        if run.source == "hub":
            file = checkpoints.hub_checkpoint(patching)
        elif given := run.given(patching):
            file = Path(given[0])
        else:
            what = f"holds neither {patching}.safetensors nor {patching}.pt"
            raise ValueError(f"{run.finetuned} {what}; add one, or give FINETUNED=own")
        tower = checkpoints.import_image_tower(file, visual.state_dict())
        weights.save(target, tower, task=patching, parent=parent, imported=file.name)
        return
    recipe = run.profile.finetuning
    checkpoint = target.with_suffix(".checkpoint")
    split = session.split(patching, "train")
    if run.profile.limit or run.profile.sample:  # a data set may be smaller
        recipe = replace(recipe, batch_size=min(recipe.batch_size, len(split.labels)))
    # bfloat16 needs no scaling of the loss; a device that is no faster with it trains in float32
    gpu, amx = session.device.type == "cuda", torch.cpu._is_amx_tile_supported()
    fast = torch.cuda.get_device_capability(session.device) >= (8, 0) if gpu else amx
    precision = torch.bfloat16 if fast and run.profile.real else None
    head = session.head(patching)
    images = session.identity(patching, "train")
    logits = clip.classifier(visual, head, run.profile.pixels, precision)
    identity = f"images {images} head {weights.digest({'head': head})} {precision}"
    at_once = None if gpu or not run.profile.real else session.batch_size // 2
    steps = training.finetune(visual, logits, split, recipe, seed=run.seed, identity=identity,
                              checkpoint=checkpoint, at_once=at_once)  # fmt: skip
    training.watch(steps, recipe.steps, f"fine-tune on {patching}")
    weights.save(target, visual.state_dict(), task=patching, step=recipe.steps, seed=run.seed,
                 recipe=recipe, precision=precision or torch.float32, parent=parent)  # fmt: skip
    checkpoint.unlink(missing_ok=True)
