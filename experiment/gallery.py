"""A dozen test images of each task, and what the model takes them for along a path.

The page `explore` shows them. They are chosen by position alone, before any model sees them.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as V

from experiment import clip, results
from experiment.run import Run
from paintlib.interpolation import WeightPath
from experiment.pixels import to_device
from experiment.profiles import ALPHAS
from experiment.twins import micro

PICTURES = 12
RANKS = 3
_SIDE = 64  # pixels of a real picture on the page


def positions(images: int) -> list[int]:
    """Return where the shown images stand in a test set: the middles of twelve equal parts of it.

    >>> positions(24)
    [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    """
    count = min(PICTURES, images)
    return [(2 * i + 1) * images // (2 * count) for i in range(count)]


def write_pictures(run: Run) -> None:
    """Write the shown images of every task, one strip a task, with class names and true labels.

    Real pictures are made smaller; twins keep their pixels.
    """
    tasks: dict[str, Any] = {}
    for task in run.profile.tasks:
        images, labels, where = _shown(run, task)
        strip = run.strip_of(task)
        _write_strip(strip, V.resize(images, [_SIDE, _SIDE]) if run.profile.real else images)
        tasks[task] = {
            "strip": strip.name,
            "positions": where,
            "labels": labels.tolist(),
            "classnames": _classnames(run, task),
        }
    results.write_json(run.pictures, {"tasks": tasks}, flat=True)


@torch.inference_mode()
def write_predictions(run: Run, visual: nn.Module, path: WeightPath, patching: str) -> None:
    """Write the likeliest classes of the shown images at each sampled alpha of one path.

    Args:
        run: the run.
        visual: the image tower, which the path writes into.
        path: from the zero-shot weights to those fine-tuned on `patching`.
        patching: the task.
    """
    tasks = (*run.profile.supported, patching)
    images = {task: to_device(_shown(run, task)[0], run.device) for task in tasks}
    logits = {
        task: clip.classifier(visual, run.head(task), run.profile.pixels, run.half)
        for task in tasks
    }
    tops: dict[str, list[tuple[Tensor, Tensor]]] = {task: [] for task in tasks}
    for alpha in ALPHAS:
        path.set_(visual, alpha)
        for task in tasks:
            likely, classes = logits[task](images[task]).double().softmax(1).topk(RANKS)
            tops[task].append((classes, likely))
    content: dict[str, Any] = {}
    for task, rows in tops.items():
        # (images, ranks, alphas): one line of the file follows one rank of one image along the path
        classes, likely = (torch.stack(column, dim=-1) for column in zip(*rows, strict=True))
        rounded = [[[round(p, 4) for p in line] for line in image] for image in likely.tolist()]
        content[task] = {"classes": classes.tolist(), "probabilities": rounded}
    record = {"patching": patching, "alphas": ALPHAS, "tasks": content}
    results.write_json(run.predictions(patching), record, flat=True)


def read(folder: Path | str) -> dict[str, Any]:
    """Read what the page shows of a run: its pictures, and the predictions of every path.

    Args:
        folder: `results/<run>`.

    Returns:
        `pictures`, task to class names, labels and the strip as a data URI; `predictions`, patching
        task to task to `classes` and `probabilities`, each `(images, ranks, alphas)`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder = Path(folder)
    pictures = results.read_json(folder / "pictures" / "tasks.json")["tasks"]
    for task in pictures.values():
        strip = folder / "pictures" / task["strip"]
        kind = {".png": "png", ".jpg": "jpeg"}[strip.suffix]
        task["strip"] = f"data:image/{kind};base64,{base64.b64encode(strip.read_bytes()).decode()}"
    predictions = {
        patching: results.read_json(folder / "predictions" / f"{patching}.json")["tasks"]
        for patching in results.read_json(folder / "run.json")["patching"]
    }
    return {"pictures": pictures, "predictions": predictions}


def _shown(run: Run, task: str) -> tuple[Tensor, Tensor, list[int]]:
    """Return images uint8 `(n, 3, height, width)`, labels `(n,)` and their positions."""
    split = run.load_split(task, "test")
    where = positions(len(split.labels))
    return split.images[where], split.labels[where], where


def _classnames(run: Run, task: str) -> list[str]:
    if run.profile.real:
        names: list[str] = results.read_json(run.images(task))["classnames"]
        return names
    return list(micro.TASKS[task].classnames)


def _write_strip(path: Path, images: Tensor) -> None:
    """Write images `(n, 3, height, width)` side by side, whole or not at all."""
    pixels = torch.cat(list(images), dim=2).permute(1, 2, 0).contiguous().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        Image.fromarray(pixels).save(part, quality=85, optimize=True)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
