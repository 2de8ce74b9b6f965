"""Pre-training a small CLIP and fine-tuning its image tower, killed and resumed at any step.

Both are generators of the steps that remain; at the end the model is in evaluation mode. They go on
from a `checkpoint` file; one of another run, and a loss that is not finite, are a ValueError.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiment import weights
from experiment.pixels import random_resized_crop, standardise, to_device
from experiment.profiles import Recipe, Standard
from experiment.progress import bar
from experiment.tasks import Split

Step: TypeAlias = tuple[int, Tensor]  # its number, from 1, and the loss, still on the device


def pretrain(model: open_clip.CLIP, images: Tensor, tokens: Tensor, captions: Tensor,
             standard: Standard, recipe: Recipe, *, seed: int, checkpoint: Path | None = None
) -> Iterator[Step]:  # fmt: skip
    """Train both towers of `model` in place by open_clip's contrastive loss.

    `captions` names the caption of each image by its row in `tokens`.
    """
    contrastive = open_clip.ClipLoss()

    def loss(step: int) -> Iterator[Tensor]:
        rows = batch(len(images), recipe.batch_size, step, seed)
        distinct, position = torch.unique(captions[rows], return_inverse=True)
        image = F.normalize(model.encode_image(standardise(images[rows], standard)), dim=-1)
        text = F.normalize(model.encode_text(tokens[distinct]), dim=-1)[position]
        yield contrastive(image, text, model.logit_scale.exp())

    yield from _fit(model, loss, recipe, f"pretrain seed {seed}", checkpoint, pretraining=True)


def finetune(visual: nn.Module, logits: Callable[[Tensor], Tensor], split: Split, recipe: Recipe,
             *, seed: int, identity: str = "", checkpoint: Path | None = None,
             at_once: int | None = None) -> Iterator[Step]:  # fmt: skip
    """Fine-tune the image tower in place on one task with its zero-shot head frozen, as PAINT does.

    `at_once` images of a batch go through the tower together: fewer take less memory, and change
    the gradient by rounding only. Squashed pictures (those with `sizes`) are augmented by a random
    crop. A checkpoint with another `identity` (of images, head, precision) is refused.
    """
    device = next(visual.parameters()).device

    def loss(step: int) -> Iterator[Tensor]:
        rows = batch(len(split.labels), recipe.batch_size, step, seed)
        images = to_device(split.images[rows], device)
        if split.sizes is not None:
            images = random_resized_crop(images, split.sizes[rows], 1_000_003 * seed + step)
        labels, size = to_device(split.labels[rows], device), at_once or len(rows)
        for part, own in zip(images.split(size), labels.split(size), strict=True):
            yield F.cross_entropy(logits(part), own) * (len(own) / len(labels))

    yield from _fit(visual, loss, recipe, f"finetune seed {seed} {identity}", checkpoint)


def batch(count: int, size: int, step: int, seed: int) -> Tensor:
    """Return the rows of `step`'s batch, by its arguments alone: a fresh permutation each epoch."""
    if count < size:
        raise ValueError(f"a batch of {size} cannot be drawn from {count} images")
    epoch, position = divmod(step, count // size)
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator)[position * size : (position + 1) * size]


def _fit(model: nn.Module, loss_of: Callable[[int], Iterator[Tensor]], recipe: Recipe,
         identity: str, checkpoint: Path | None, pretraining: bool = False
) -> Iterator[Step]:  # fmt: skip
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = [p for p in named.values() if pretraining and p.ndim < 2]
    decayed = [p for p in named.values() if not (pretraining and p.ndim < 2)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    betas, decay = (0.9, recipe.beta2), recipe.weight_decay
    optimiser = torch.optim.AdamW(groups, betas=betas, weight_decay=decay, fused=True)
    identity = f"{identity} {recipe} {weights.digest(model.state_dict())}"
    start = 0
    if checkpoint and checkpoint.exists():
        state, metadata = weights.load(checkpoint)
        if metadata.get("identity") != identity:
            raise ValueError(
                f"{checkpoint} was left by a run with other settings, images or starting weights; "
                "delete it to train from the start"
            )
        model.load_state_dict({name: state[f"model.{name}"] for name in model.state_dict()})
        for name, parameter in named.items():
            optimiser.state[parameter] = {
                key: state[f"optimiser.{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        start = int(metadata["step"])
    device = next(model.parameters()).device
    model.train()
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        # on short sequences plain attention is the faster one on a CPU
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            optimiser.zero_grad()
            loss = torch.zeros((), device=device)
            for part in loss_of(step):
                part.backward()
                loss += part.detach()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimiser.step()
        if pretraining:
            named["logit_scale"].data.clamp_(0, math.log(100))
        done = step + 1
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the training loss is {loss.item()} at step {done}: the run diverged; "
                    "lower the learning rate of the recipe"
                )
            if checkpoint and done < recipe.steps:
                state = {f"model.{name}": value for name, value in model.state_dict().items()}
                for name, parameter in named.items():
                    for key, value in optimiser.state[parameter].items():
                        state[f"optimiser.{key}.{name}"] = value
                weights.save(checkpoint, state, step=done, identity=identity)
        yield done, loss.detach()
    model.eval()


def watch(steps: Iterable[Step], total: int, what: str) -> None:
    """Go through `steps` with a progress bar, which counts from where a killed run went on."""
    with bar(None, what, total=total) as progress:
        for number, loss in steps:
            if number > progress.n + 1:
                progress.initial = number - 1  # resumed: the time left counts from here
            progress.update(number - progress.n)
            if number % 50 == 0:
                progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
