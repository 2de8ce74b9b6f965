"""Describe a run: what its pages need beyond the pairs."""

from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms import functional as V

from experiment import cost, gallery, results, weights
from experiment.run import Run
from experiment.session import Session
from experiment.tasks import SPLITS
from experiment.twins import micro
from paintlib.files import replacing

# what the twins were drawn to show follows from these
DESIGN = ("CAPTION_NOISE", "WILD_SHARE", "TARGET_STYLE_LEAK", "OBJECT_SHARE", "MNIST_LIMIT")


def describe(run: Run) -> None:
    """Write `run.json` and a few test images a task."""
    write_pictures(Session(run))
    profile, tasks = run.profile, {}
    for task in profile.tasks:
        images: dict[str, Any] = {split: profile.images(split) for split in SPLITS}
        if profile.real:
            decoded = results.read_json(run.images(task))["splits"]
            images = {split: decoded[split]["images"] for split in decoded}
        classes = len(weights.load(run.head(task))[0]["head"])
        tasks[task] = {"label": profile.label(task), "classes": classes, "images": images}
    content = {
        **run.choices,
        "supported": profile.supported,
        "patching": profile.patching,
        "tasks": tasks,
        "parameters": int(weights.metadata(run.zero_shot)["parameters"]),
        "image_tower_parameters": sum(w.numel() for w in weights.load(run.zero_shot)[0].values()),
        "flops": cost.clip_flops()._asdict(),
    }
    results.write_json(run.results / "run.json", content)


def write_pictures(session: Session) -> None:
    """Write a strip of shown images a task, and `tasks.json`.

    A twin has a second strip, its first test image of each class; the file then tells its design.
    """
    run, folder = session.run, session.run.results / "pictures"
    design = {name: getattr(micro, name) for name in DESIGN} | {**run.profile.design}
    content: dict[str, Any] = {"tasks": {}, **({} if run.profile.real else {"design": design})}
    for task in run.profile.tasks:
        images, labels, *_ = session.split(task, "test")
        where, strip, more = gallery.positions(len(labels)), f"{task}.png", {}
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
