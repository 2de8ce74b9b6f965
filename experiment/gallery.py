"""Test images that pages show, chosen by position alone, and what the model takes them for."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiment import results
from experiment.profiles import ALPHAS
from paintlib.files import replacing

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import nn

    from experiment.session import Session
    from paintlib import WeightPath

PICTURES = 12
RANKS = 3  # likeliest classes told of each
# what the twins were drawn to show follows from these
DESIGN = ("CAPTION_NOISE", "WILD_SHARE", "TARGET_STYLE_LEAK", "OBJECT_SHARE", "MNIST_LIMIT")


def positions(images: int) -> list[int]:
    """Return where shown images stand in a test set: the middles of twelve equal parts of it."""
    count = min(PICTURES, images)
    return [(2 * i + 1) * images // (2 * count) for i in range(count)]


def write_pictures(session: Session) -> None:
    """Write a strip of shown images a task, and `tasks.json`.

    A twin has a second strip, its first test image of each class; the file then tells its design.
    """
    from torchvision.transforms import functional as V

    from experiment.twins import micro

    run, folder = session.run, session.run.results / "pictures"
    design = {name: getattr(micro, name) for name in DESIGN} | {**run.profile.design}
    content: dict[str, Any] = {"tasks": {}, **({} if run.profile.real else {"design": design})}
    for task in run.profile.tasks:
        images, labels, *_ = session.split(task, "test")
        where, strip, more = positions(len(labels)), f"{task}.png", {}
        if run.profile.real:
            strip, names = f"{task}.jpg", results.read_json(run.images(task))["classnames"]
            strips = {strip: V.resize(images[where], [64, 64])}
        else:
            names = micro.TASKS[task].classnames
            first = [labels.tolist().index(label) for label in range(len(names))]
            strips = {strip: images[where], f"{task}-classes.png": images[first]}
            more = {"first": first, "templates": micro.TASKS[task].templates}
        for file, shown in strips.items():
            pixels = np.concatenate([*shown.permute(0, 2, 3, 1).numpy()], axis=1)  # side by side
            with replacing(folder / file) as part:
                Image.fromarray(pixels).save(part, quality=85, optimize=True)
        told = {"strip": strip, "positions": where, "labels": labels[where].tolist()}
        content["tasks"][task] = told | {"classnames": names} | more
    results.write_json(folder / "tasks.json", content, flat=True)


def write_predictions(session: Session, visual: nn.Module, path: WeightPath, patching: str) -> None:
    """Write the likeliest classes of the shown images along a path, whose weights `visual` gets."""
    import torch

    from experiment import clip
    from experiment.pixels import to_device

    run, asked, content = session.run, {}, {}
    rows: list[list[Any]] = []  # of alphas, then tasks
    for task in (*run.profile.supported, patching):
        split = session.split(task, "test")
        images = to_device(split.images[positions(len(split.labels))], session.device)
        asked[task] = images, clip.classifier(visual, session.head(task), run.profile.pixels)
    with torch.inference_mode():
        for alpha in ALPHAS:
            path.set_(visual, alpha)
            rows.append([logits(x).double().softmax(1).topk(RANKS) for x, logits in asked.values()])
    for task, tops in zip(asked, zip(*rows, strict=True), strict=True):
        # (images, ranks, alphas): one line of the file follows one rank of one image along the path
        likely, classes = (torch.stack(column, -1).cpu() for column in zip(*tops, strict=True))
        rounded = likely.numpy().round(4).tolist()
        content[task] = {"classes": classes.tolist(), "probabilities": rounded}
    record = {"patching": patching, "alphas": ALPHAS, "tasks": content}
    results.write_json(run.predictions(patching), record, flat=True)


def read(folder: Path | str) -> dict[str, Any]:
    """Read what the page `explore` shows of a run's results.

    `pictures` are a task's class names, labels and strip (a data URI); `predictions` are, by
    patching task and task, `classes` and `probabilities`, each `(images, ranks, alphas)`.
    """
    folder, pictures = results.find(folder), {}
    for name, task in results.read_json(folder / "pictures/tasks.json")["tasks"].items():
        strip = folder / "pictures" / task["strip"]
        data = base64.b64encode(strip.read_bytes()).decode()
        pictures[name] = {"strip": f"data:{mimetypes.guess_type(strip)[0]};base64,{data}"}
        pictures[name] |= {key: task[key] for key in ("positions", "labels", "classnames")}
    patching = results.read_json(folder / "run.json")["patching"]
    files = {task: folder / "predictions" / f"{task}.json" for task in patching}
    predictions = {task: results.read_json(file)["tasks"] for task, file in files.items()}
    return {"pictures": pictures, "predictions": predictions}


def read_classes(folder: Path | str) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """Read what the page `twins` shows: `tasks.json`, and a task's classes, `(n, 32, 32, 3)`."""
    folder, pictures = results.find(folder) / "pictures", {}
    told = results.read_json(folder / "tasks.json")
    for task in told["tasks"]:
        strip = np.array(Image.open(folder / f"{task}-classes.png"))
        pictures[task] = strip.reshape(len(strip), -1, len(strip), 3).swapaxes(0, 1)
    return told, pictures
