"""Test images that the pages show, and what the model takes them for along a path.

The page `explore` shows a dozen of each task, the page `twins` one of each class. They are chosen
by position alone, before any model sees them. Only writing them needs torch.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiment import results
from experiment.profiles import ALPHAS
from paintlib.files import replacing

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor, nn

    from experiment.session import Session
    from paintlib import WeightPath

PICTURES = 12
RANKS = 3
DESIGN = (  # what the twins were drawn to show follows from these
    "CAPTION_NOISE", "WILD_SHARE", "TARGET_STYLE_LEAK", "OBJECT_SHARE", "MNIST_LIMIT",
)  # fmt: skip
_SIDE = 64  # pixels of a real picture on the page


def positions(images: int) -> list[int]:
    """Return where the shown images stand in a test set: the middles of twelve equal parts of it.

    >>> positions(24)
    [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    """
    count = min(PICTURES, images)
    return [(2 * i + 1) * images // (2 * count) for i in range(count)]


def write_pictures(session: Session) -> None:
    """Write `pictures/` of a run's results: a strip of shown images a task, and `tasks.json`.

    Real pictures are made smaller, twins keep their pixels. A twin has a second strip, with its
    first test image of each class, and the file then tells how the twins were designed.
    """
    from torchvision.transforms import functional as V

    run = session.run
    tasks: dict[str, Any] = {}
    content: dict[str, Any] = {"tasks": tasks}
    for task in run.profile.tasks:
        split = session.split(task, "test")
        where = positions(len(split.labels))
        shown, labels = split.images[where], split.labels[where].tolist()
        if run.profile.real:
            strip, names = f"{task}.jpg", results.read_json(run.images(task))["classnames"]
            shown, more = V.resize(shown, [_SIDE, _SIDE]), {}
        else:
            from experiment.twins import micro

            strip, names = f"{task}.png", micro.TASKS[task].classnames
            first = [split.labels.tolist().index(label) for label in range(len(names))]
            more = {"first": first, "templates": micro.TASKS[task].templates}
            _write_strip(_folder(run.results) / f"{task}-classes.png", split.images[first])
            content["design"] = {name: getattr(micro, name) for name in DESIGN}
        _write_strip(_folder(run.results) / strip, shown)
        tasks[task] = {"strip": strip, "positions": where, "labels": labels, "classnames": names}
        tasks[task] |= more
    results.write_json(_folder(run.results) / "tasks.json", content, flat=True)


def write_predictions(session: Session, visual: nn.Module, path: WeightPath, patching: str) -> None:
    """Write the likeliest classes of the shown images at each sampled alpha of one path.

    The path leads to the weights fine-tuned on `patching`, and writes into `visual`.
    """
    import torch

    from experiment import clip
    from experiment.pixels import to_device

    run = session.run
    tasks = (*run.profile.supported, patching)
    splits = {task: session.split(task, "test") for task in tasks}
    images = {
        task: to_device(split.images[positions(len(split.labels))], session.device)
        for task, split in splits.items()
    }
    logits = {t: clip.classifier(visual, session.head(t), run.profile.pixels) for t in tasks}
    tops: dict[str, list[Any]] = {task: [] for task in tasks}
    with torch.inference_mode():
        for alpha in ALPHAS:
            path.set_(visual, alpha)
            for task in tasks:
                tops[task].append(logits[task](images[task]).double().softmax(1).topk(RANKS))
    content: dict[str, Any] = {}
    for task, rows in tops.items():
        # (images, ranks, alphas): one line of the file follows one rank of one image along the path
        likely, classes = (torch.stack(column, dim=-1) for column in zip(*rows, strict=True))
        rounded = [[[round(p, 4) for p in line] for line in image] for image in likely.tolist()]
        content[task] = {"classes": classes.tolist(), "probabilities": rounded}
    record = {"patching": patching, "alphas": ALPHAS, "tasks": content}
    results.write_json(run.predictions(patching), record, flat=True)


def read(folder: Path | str) -> dict[str, Any]:
    """Read what the page `explore` shows of a run's results.

    Returns:
        `pictures`, task to class names, labels and the strip as a data URI; `predictions`, patching
        task to task to `classes` and `probabilities`, each `(images, ranks, alphas)`.
    """
    folder = results.find(folder)
    pictures = {}
    for name, task in results.read_json(_folder(folder) / "tasks.json")["tasks"].items():
        strip = _folder(folder) / task["strip"]
        kind = {".png": "png", ".jpg": "jpeg"}[strip.suffix]
        data = f"data:image/{kind};base64,{base64.b64encode(strip.read_bytes()).decode()}"
        kept = {key: task[key] for key in ("positions", "labels", "classnames")}
        pictures[name] = {"strip": data, **kept}
    predictions = {
        patching: results.read_json(folder / "predictions" / f"{patching}.json")["tasks"]
        for patching in results.read_json(folder / "run.json")["patching"]
    }
    return {"pictures": pictures, "predictions": predictions}


def read_classes(folder: Path | str) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """Read what the page `twins` shows: `tasks.json`, and for each task a picture of each class.

    The pictures of a task are uint8 `(classes, 32, 32, 3)`.
    """
    folder = _folder(results.find(folder))
    told = results.read_json(folder / "tasks.json")
    pictures = {}
    for task in told["tasks"]:
        with Image.open(folder / f"{task}-classes.png") as strip:
            row = np.asarray(strip)
        pictures[task] = np.stack(np.split(row, row.shape[1] // row.shape[0], axis=1))
    return told, pictures


def _folder(results_: Path) -> Path:
    return results_ / "pictures"


def _write_strip(path: Path, images: Tensor) -> None:
    """Write images `(n, 3, height, width)` side by side, whole or not at all."""
    pixels = np.concatenate(list(images.permute(0, 2, 3, 1).numpy()), axis=1)
    with replacing(path) as part:
        Image.fromarray(pixels).save(part, quality=85, optimize=True)
