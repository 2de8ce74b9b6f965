"""Compare accuracies with the published ones, before the hours that depend on them are spent."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from experiment import results, weights
from experiment.run import Run
from experiment.session import Session
from experiment.tasks import Split

PUBLISHED = results.ROOT / "book/published/vitb32_accuracy.csv"
KINDS = {"heads": "zero_shot", "fine_tuned": "fine_tuned"}  # of a run's files, and in that table
IMAGES = 2000  # at most; five standard errors are then 5.6 points or less
CAUSES = (
    "the order of the labels, class names or templates, the activation (QuickGELU or GELU), the "
    "preprocessing of the images, other weights"
)


def verify(run: Run, kind: str, task: str) -> None:
    """Write a task's accuracy on test images, or refuse one that is far from all published ones."""
    session = Session(run)
    visual = session.tower()
    if kind == "fine_tuned":
        visual.load_state_dict(weights.load(run.fine_tuned(task))[0])
    images, labels, *_ = session.split(task, "test")
    every = math.ceil(len(labels) / IMAGES)  # some data sets are sorted by class
    score = session.loss(visual, task, Split(images[::every], labels[::every])).score()
    # few training images make no published accuracy, but they should do no harm
    whole = kind == "heads" or run.source != "own" or not run.profile.sample
    problem = deviation(task, KINDS[kind], score.accuracy, score.images, whole=whole)
    dry = run.profile.limit or run.choices["weights"] == "random"
    if problem and not dry and task not in run.accept:
        raise ValueError(f"{problem}; likely causes: {CAUSES}; ACCEPT={task} goes on all the same")
    [file] = run.verified(kind, task)
    results.write_json(file, {**score._asdict(), "deviation": problem})


def deviation(task: str, kind: str, accuracy: float, images: int, *, whole: bool = True,
              published: Path = PUBLISHED) -> str:  # fmt: skip
    """Say how an accuracy is outside what is published by 5 standard errors and 3 points, or "".

    Without the `whole` training set, an accuracy may lie anywhere above the zero-shot ones.
    """
    with published.open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["dataset"] == task]
    known = [float(row["accuracy"]) / 100 for row in rows if row["kind"] == kind]
    low, high = min(known), max(known)
    if not whole:
        low = min(float(row["accuracy"]) / 100 for row in rows if row["kind"] == "zero_shot")
    nearest = min(max(accuracy, low), high)
    error = math.sqrt(nearest * (1 - nearest) / images)
    if abs(accuracy - nearest) <= max(5 * error, 0.03):
        return ""
    what = f"{kind.replace('_', '-')} accuracy on {images} test images"
    return (
        f"{task}: the {what} is {100 * accuracy:.1f} %, published ones are {100 * low:.1f} to "
        f"{100 * high:.1f} % ({abs(accuracy - nearest) / error:.0f} standard errors away)"
    )
