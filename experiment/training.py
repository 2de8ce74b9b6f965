"""Pre-training a small CLIP and fine-tuning its image tower, killed and resumed at any step.

Both are generators of steps, so that the caller shows the progress: `for step in tqdm(...)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiment import weights
from experiment.pixels import random_resized_crop, standardise, to_device
from experiment.profiles import Recipe, Standard
from experiment.progress import bar
from experiment.tasks import Split

if TYPE_CHECKING:
    from open_clip import CLIP


class Step(NamedTuple):
    """One finished step: its number, from 1, and the loss of its batch (still on the device)."""

    number: int
    loss: Tensor


def pretrain(
    model: CLIP,
    images: Tensor,
    tokens: Tensor,
    captions: Tensor,
    standard: Standard,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
) -> Iterator[Step]:
    """Train both towers of `model` in place by open_clip's contrastive loss.

    Args:
        model: a CLIP.
        images: uint8 `(n, 3, height, width)`.
        tokens: int64 `(m, context_length)`, the distinct captions.
        captions: int64 `(n,)`, the caption of each image as a row of `tokens`.
        standard: the pixels that the image tower reads.
        recipe: the optimiser's settings; weights of one dimension are not decayed.
        seed: decides the order of the images.
        checkpoint: where to keep the state; a later call with the same arguments goes on there.

    Yields:
        One `Step` per step that remained to be done. At the end the model is in evaluation mode.

    Raises:
        ValueError: the checkpoint belongs to another run, or a loss is not finite.
    """
    import open_clip

    contrastive = open_clip.ClipLoss()

    def loss(step: int) -> Tensor:
        rows = batch(len(images), recipe.batch_size, step, seed)
        # each distinct caption of the batch is encoded once
        distinct, position = torch.unique(captions[rows], return_inverse=True)
        image = F.normalize(model.encode_image(standardise(images[rows], standard)), dim=-1)
        text = F.normalize(model.encode_text(tokens[distinct]), dim=-1)[position]
        value: Tensor = contrastive(image, text, model.logit_scale.exp())
        return value

    def clamp() -> None:
        model.logit_scale.clamp_(0, math.log(100))

    yield from _fit(model, loss, recipe, f"pretrain seed {seed}", checkpoint, clamp, spare=True)


def finetune(
    visual: nn.Module,
    logits: Callable[[Tensor], Tensor],
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    identity: str = "",
    checkpoint: Path | None = None,
) -> Iterator[Step]:
    """Fine-tune the image tower in place on one task with its zero-shot head frozen, as PAINT does.

    Squashed pictures (those with `sizes`) are augmented by a random crop, others are taken as
    they are.

    Args:
        visual: the image tower.
        logits: images to logits through `visual` and a frozen head, as `clip.classifier` makes.
        split: the images to train on.
        recipe: the optimiser's settings.
        seed: decides the order of the images and their crops.
        identity: what else decides the result (images, head, precision), so that a checkpoint left
            by other ones is refused.
        checkpoint: where to keep the state; a later call with the same arguments goes on there.

    Yields:
        One `Step` per step that remained to be done. At the end `visual` is in evaluation mode.

    Raises:
        ValueError: the checkpoint belongs to another run, or a loss is not finite.
    """
    device = next(visual.parameters()).device

    def loss(step: int) -> Tensor:
        rows = batch(len(split.labels), recipe.batch_size, step, seed)
        images = to_device(split.images[rows], device)
        if split.sizes is not None:
            images = random_resized_crop(images, split.sizes[rows], 1_000_003 * seed + step)
        return F.cross_entropy(logits(images), to_device(split.labels[rows], device))

    yield from _fit(visual, loss, recipe, f"finetune seed {seed} {identity}", checkpoint)


def batch(count: int, size: int, step: int, seed: int) -> Tensor:
    """Return the rows of `step`'s batch: a fresh permutation each epoch, the remainder dropped.

    It depends on its arguments alone, so that a resumed run sees the same batches.

    Raises:
        ValueError: there are fewer images than one batch holds.
    """
    if count < size:
        raise ValueError(f"a batch of {size} cannot be drawn from {count} images")
    epoch, position = divmod(step, count // size)
    return _permutation(count, seed, epoch)[position * size : (position + 1) * size]


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator)


def _fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    recipe: Recipe,
    identity: str,
    checkpoint: Path | None,
    after_step: Callable[[], None] = lambda: None,
    spare: bool = False,
) -> Iterator[Step]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in named.values() if p.ndim >= 2 or not spare]
    plain = [p for p in named.values() if p.ndim < 2 and spare]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    identity = f"{identity} {recipe} {weights.digest({'start': _fingerprint(model)})}"
    start = _resume(checkpoint, identity, model, optimiser, named) if checkpoint else 0
    on_cpu = next(model.parameters()).device.type == "cpu"
    model.train()
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        # on short sequences plain attention is the faster one on a CPU
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            loss = loss_of(step)
            optimiser.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), recipe.clip_norm)
        optimiser.step()
        with torch.no_grad():
            after_step()
        done = step + 1
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the training loss is {loss.item()} at step {done}: the run diverged; "
                    "lower the learning rate of the recipe"
                )
            if checkpoint and done < recipe.steps:
                state = {f"model.{k}": v for k, v in model.state_dict().items()}
                for name, parameter in named.items():
                    for key, value in optimiser.state[parameter].items():
                        state[f"optimiser.{key}.{name}"] = value
                weights.save(checkpoint, state, step=done, identity=identity)
        yield Step(done, loss.detach())
    model.eval()


def _fingerprint(model: nn.Module) -> Tensor:
    return torch.stack([p.detach().double().sum() for p in model.parameters()]).cpu()


def _resume(
    checkpoint: Path,
    identity: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
) -> int:
    if not checkpoint.exists():
        return 0
    state, metadata = weights.load(checkpoint)
    if metadata.get("identity") != identity:
        raise ValueError(
            f"{checkpoint} was left by a run with other settings, images or starting weights; "
            "delete it to train from the start"
        )
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    for name, parameter in named.items():
        optimiser.state[parameter] = {
            key: state[f"optimiser.{key}.{name}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return int(metadata["step"])


def watch(steps: Iterable[Step], total: int, what: str) -> None:
    """Go through `steps` with a progress bar, which counts from where a killed run went on."""
    with bar(None, what, total=total) as progress:
        for step in steps:
            if step.number > progress.n + 1:
                progress.initial = step.number - 1  # resumed: the time left counts from here
            progress.update(step.number - progress.n)
            if step.number % 50 == 0:
                progress.set_postfix(loss=f"{float(step.loss):.3f}", refresh=False)
