"""Test images that pages show, chosen by position alone, and what the model took them for."""

import base64
import mimetypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiment import results

PICTURES = 12


def positions(images: int) -> list[int]:
    """Return where shown images stand in a test set: the middles of twelve equal parts of it."""
    count = min(PICTURES, images)
    return [(2 * i + 1) * images // (2 * count) for i in range(count)]


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
