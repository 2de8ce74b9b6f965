"""What the profile `paper` costs, counted and not measured: pictures, passes, operations, bytes.

Counts follow from the official sizes of the data sets and from the architecture. A measured rate,
see `benchmarks/throughput.py`, turns them into hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiment.profiles import ALPHAS, PROFILES
from experiment.real.facts import DATA_SETS

MODEL = str(PROFILES["paper"].clip)
RECIPE = PROFILES["paper"].finetuning
CACHE_BYTES = 3 * 224 * 224  # of one decoded picture, uint8


def cached_pictures(name: str, *, patching: bool) -> int:
    """Return how many pictures of a data set are decoded into the cache.

    A patching task needs all of them. A supported task is never trained on, so the rest of its
    train pictures stays where it is.
    """
    data = DATA_SETS[name]
    return (data.train if patching else data.validation) + data.test


class Flops(NamedTuple):
    """Floating-point operations of one input; a multiply-add is two."""

    image: int  # one picture through the image tower
    text: int  # one prompt through the text tower
    training: int  # one picture forward and backward, weight gradients only
    image_parameters: int  # weights of the image tower
    parameters: int  # weights of both towers


def clip_flops(model: str = MODEL) -> Flops:
    """Count the operations of one of open_clip's architectures without allocating its weights.

    It imports torch, so a step of a run does it; pages read its `run.json`.
    """
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config: dict[str, Any] = open_clip.get_model_config(model)
    with torch.device("meta"):
        clip = open_clip.CLIP(**config)
        picture = torch.empty(1, 3, *clip.visual.image_size)
        text = torch.empty(1, config["text_cfg"]["context_length"], dtype=torch.int64)
    with FlopCounterMode(display=False) as count:
        features = clip.visual(picture)
        image = count.get_total_flops()
        features.sum().backward()
        training = count.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as count:
        clip.encode_text(text)
        prompt = count.get_total_flops()
    weights = (sum(p.numel() for p in part.parameters()) for part in (clip.visual, clip))
    return Flops(image, prompt, training, *weights)


class Rates(NamedTuple):
    """Measured speed of one machine: pictures per second."""

    decode: float
    forward: float
    training: float


@dataclass(frozen=True)
class Work:
    """What one step of the workflow does, all its jobs together."""

    jobs: int  # they can run side by side
    decoded: int = 0  # pictures read from disk and resized
    prompts: int = 0  # texts through the text tower
    forward: int = 0  # pictures through the image tower, forward only
    training: int = 0  # pictures through the image tower, forward and backward

    def flops(self, per: Flops) -> int:
        """Return the floating-point operations of the step."""
        return self.prompts * per.text + self.forward * per.image + self.training * per.training

    def hours(self, per: Flops, rates: Rates) -> float:
        """Return the hours of one machine; a prompt counts as the pictures of equal operations."""
        forward = self.forward + self.prompts * per.text / per.image
        seconds = (
            self.decoded / rates.decode + forward / rates.forward + self.training / rates.training
        )
        return seconds / 3600


def steps(
    supported: Sequence[str], patching: Sequence[str], *, fresh: float, answers: float = 3.0
) -> dict[str, Work]:
    """Count the work of each step of the profile `paper`.

    Args:
        supported: supported tasks.
        patching: patching tasks, each paired with every supported one.
        fresh: alphas that a pair evaluates on validation pictures beyond its samples, on average.
        answers: alphas that a pair evaluates on test pictures beyond the ends, on average.
    """
    tasks = {name: DATA_SETS[name] for name in (*supported, *patching)}
    kept = [tasks[name] for name in supported]
    repaired = [tasks[name] for name in patching]
    decoded = sum(cached_pictures(name, patching=name in patching) for name in tasks)
    solving = 0.0
    for own in repaired:
        solving += own.validation + own.test  # its own task at the zero-shot weights
        solving += (len(ALPHAS) - 1) * sum(data.validation for data in (*kept, own))
        solving += sum(data.test for data in (*kept, own))  # at the fine-tuned ones
        for other in kept:
            solving += fresh * (own.validation + other.validation)
            solving += answers * (own.test + other.test)
    return {
        "decode": Work(len(tasks), decoded=decoded),
        "head": Work(len(tasks), prompts=sum(data.prompts for data in tasks.values())),
        "finetune": Work(len(patching), training=len(patching) * RECIPE.steps * RECIPE.batch_size),
        "baseline": Work(
            len(supported),
            forward=sum(data.validation + data.test for data in kept),
            training=sum(data.validation for data in kept),
        ),
        "solve": Work(len(patching), forward=round(solving)),
    }
