"""What the profile `paper` costs, counted and not measured: pictures, passes, operations, bytes.

Counts follow from the official sizes of the data sets and from the architecture. A measured rate,
see `benchmarks/throughput.py`, turns them into hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MODEL = "ViT-B-32-quickgelu"
CACHE_BYTES = 3 * 224 * 224  # of one decoded picture, uint8


class DataSet(NamedTuple):
    """Official size of a data set: pictures with labels, and prompts of its zero-shot head."""

    train: int
    test: int
    classes: int
    templates: int

    @property
    def validation(self) -> int:
        """Return how many train pictures are set aside to choose alpha: 10 %, at most 5000."""
        return min(self.train // 10, 5000)

    @property
    def prompts(self) -> int:
        """Return how many texts the zero-shot head is made from."""
        return self.classes * self.templates


DATA_SETS: Mapping[str, DataSet] = {
    "ImageNet": DataSet(1_281_167, 50_000, 1000, 80),
    "CIFAR10": DataSet(50_000, 10_000, 10, 18),
    "CIFAR100": DataSet(50_000, 10_000, 100, 18),
    "STL10": DataSet(5_000, 8_000, 10, 2),
    "Cars": DataSet(8_144, 8_041, 196, 8),
    "DTD": DataSet(3_760, 1_880, 47, 8),
    "EuroSAT": DataSet(21_600, 2_700, 10, 3),
    "GTSRB": DataSet(26_640, 12_630, 43, 3),
    "MNIST": DataSet(60_000, 10_000, 10, 1),
    "RESISC45": DataSet(18_900, 6_300, 45, 18),
    "SUN397": DataSet(19_850, 19_850, 397, 2),
    "SVHN": DataSet(73_257, 26_032, 10, 1),
    "FashionMNIST": DataSet(60_000, 10_000, 10, 8),
}


def cached_pictures(name: str, *, patching: bool) -> int:
    """Return how many pictures of a data set are decoded into the cache.

    A patching task needs all of them. A supported task is never trained on, so the rest of its
    train pictures stays where it is.
    """
    data = DATA_SETS[name]
    return (data.train if patching else data.validation) + data.test


class Flops(NamedTuple):
    """Floating-point operations of one input; a multiply-add is two.

    Attributes:
        image: one picture through the image tower.
        text: one prompt through the text tower.
        training: one picture forward and backward, weight gradients only.
        image_parameters: weights of the image tower.
        parameters: weights of both towers.
    """

    image: int
    text: int
    training: int
    image_parameters: int
    parameters: int


def clip_flops(model: str = MODEL) -> Flops:
    """Count the operations of one of open_clip's architectures without allocating its weights."""
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
    """What one step of the workflow does, all its jobs together.

    Attributes:
        jobs: how many there are; they can run side by side.
        decoded: pictures read from disk and resized.
        prompts: texts through the text tower.
        forward: pictures through the image tower, forward only.
        training: pictures through the image tower, forward and backward.
    """

    jobs: int
    decoded: int = 0
    prompts: int = 0
    forward: int = 0
    training: int = 0

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
    supported: Sequence[str],
    patching: Sequence[str],
    *,
    iterations: int = 2000,
    batch_size: int = 128,
    alphas: int = 21,
    fresh: float = 4.0,
) -> dict[str, Work]:
    """Count the work of each step of the profile `paper`.

    Args:
        supported: supported tasks.
        patching: patching tasks, each paired with every supported one.
        iterations: of one fine-tuning.
        batch_size: pictures of one iteration.
        alphas: samples of a curve, both ends included; supported tasks share the first.
        fresh: alphas that a pair evaluates on validation pictures beyond those samples, on average.
    """
    tasks = {name: DATA_SETS[name] for name in (*supported, *patching)}
    kept = [tasks[name] for name in supported]
    pairs = [(s, tasks[p]) for s in kept for p in patching]
    chosen, reported = (  # pictures of a path's tasks: four supported ones and its own
        len(patching) * sum(getattr(s, split) for s in kept)
        + sum(getattr(tasks[p], split) for p in patching)
        for split in ("validation", "test")
    )
    return {
        "decode": Work(
            len(tasks),
            decoded=sum(cached_pictures(name, patching=name in patching) for name in tasks),
        ),
        "head": Work(len(tasks), prompts=sum(data.prompts for data in tasks.values())),
        "finetune": Work(len(patching), training=len(patching) * iterations * batch_size),
        "baseline": Work(
            len(supported),
            forward=sum(s.validation + s.test for s in kept),
            training=sum(s.validation for s in kept),
        ),
        "curves": Work(
            len(patching),
            forward=(alphas - 1) * chosen
            + reported
            + sum(tasks[p].validation + tasks[p].test for p in patching),
        ),
        "pair": Work(
            len(pairs),
            forward=sum(
                round(fresh * (s.validation + p.validation)) + 2 * (s.test + p.test)
                for s, p in pairs
            ),
        ),
    }
