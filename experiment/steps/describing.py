"""Describe a run: what its pages need beyond the pairs, and where it comes from."""

import csv
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
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

_PACKAGES = ("torch", "open_clip_torch", "numpy", "scipy", "matplotlib", "papermill", "jupytext",
             "jupyter-book", "nbval", "snakemake")  # fmt: skip
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


def provenance(run: Run) -> None:
    """Write `provenance.json`: commit, device, versions, and the seconds that each step took."""
    seconds = {}
    for file in sorted((run.folder / "benchmarks").rglob("*.tsv")):
        with file.open(encoding="utf-8") as stream:
            row = next(csv.DictReader(stream, delimiter="\t"))
        step, _, name = file.stem.partition(".")
        seconds[f"{step}/{name}" if name else step] = round(float(row["s"]), 1)
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    baseline = weights.metadata(run.baseline(run.profile.supported[0]))
    device = baseline.get("gpu") or processor()  # this step may run where there is no GPU
    content = {"commit": _commit(), "device": device, "versions": versions, "seconds": seconds}
    measured = [task for task in run.profile.patching if run.noise(task).exists()]
    noise = {task: max(results.read_json(run.noise(task)).values()) for task in measured}
    content |= {"noise": noise} if noise else {}
    results.write_json(run.results / "provenance.json", content)


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the short hash of the code's commit, with "+" if the code differs from it."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, cwd=results.ROOT, text=True)
        return said.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
