"""Time the choice of alpha against PAINT's own loop, and the parts it is made of.

    python benchmarks/solving.py [--paths 9] [--threads N] [--note TEXT]

Reads the weights and images of the profile `micro`, so `make book` comes first. For each path it
solves the pairs of four supported tasks in six ways, one after the other:

- PAINT's loop, as its public code has it: for each of 21 alphas merge the state dicts, load them,
  save the model, build a loader with 16 worker processes for each data set, and count on the host;
- the same loop, loading in its own process, which is kinder where there are few cores;
- exhaustive search of each pair on its own, images resident and weights written in place;
- exhaustive search on shared curves: one patched model serves all five tasks;
- the log-quintic, pair by pair, with the ends shared between pairs;
- the log-quintic's fit to three samples inside the path and its ends, shared by the four pairs, its
  root not evaluated.

The first three are timed on one pair of each path, and the time is multiplied: all pairs have as
many images.

It also counts, on the same models and images, what quintic, log-quintic, Brent, golden section
and grids need for each pair, and how far above the minimum they end.

Then it times single operations: interpolation against `Tensor.copy_`, scoring against a bare
forward loop, loss and slope against the loss. Writes `results/bench/solving-DEVICE.json`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from experiment import compare, cost, results
from experiment.profiles import ALPHAS
from experiment.run import Run
from experiment.session import Session, use_threads
from paintlib import TaskLoss, WeightPath, solver
from paintlib.fits import fit_parts, log_spline

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 16  # the default of PAINT's data sets
SHARED = 3  # samples between the ends that the pairs of a path share
Answers = dict[str, float]  # supported task to alpha


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="micro", help="micro, or smoke for a quick look")
    parser.add_argument("--paths", type=int, default=9, help="patching tasks to go through")
    parser.add_argument("--repeats", type=int, default=15, help="of each single operation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="kept in the file, say what else was running")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "bench")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes")  # 16 of them, as PAINT has
    run = Run.of(options.profile, root=ROOT)
    chosen = run.profile.patching[: options.paths]
    if missing := [task for task in chosen if not run.fine_tuned(task).exists()]:
        parser.error(f"{run.fine_tuned(missing[0])} is missing; `make book` makes it")
    session = Session(run)
    use_threads(options.threads, session.device)
    kind = session.device.type
    paths = solve_all(session, chosen)
    searches = [r for task in tqdm(chosen, "searches", leave=False) for r in search(session, task)]
    copied = interpolation(options.repeats)
    use_threads(1, session.device)  # as each step of the workflow; shorter calls need a calm clock
    record = {
        **machine.describe(kind, options.threads, options.note),
        "profile": run.profile.name,
        "workers": WORKERS,
        "paths": paths,
        "searches": searches,
        "operations": {
            "interpolation": copied,
            "scoring": scoring(session, options.repeats),
            "slope": slope(session, options.repeats),
        },
    }
    path = options.folder / f"solving-{machine.slug(kind)}.json"
    results.write_json(path, record)
    for row in record["paths"]:
        seconds = {name: round(way["seconds"], 2) for name, way in row["ways"].items()}
        print(row["patching"], seconds)
    for method in searches[0]["methods"]:
        found = [row["methods"][method] for row in searches]
        paid, excess = zip(*((f["evaluations"], f["excess"]) for f in found), strict=True)
        print(f"{method}: {np.mean(paid):.1f} evaluations, {max(paid)} at most, {max(excess):.1e}")
    for name, row in record["operations"].items():
        print(f"{name}: {row['ratio']}")
    print(f"written: {os.path.relpath(path)}")


def solve_all(session: Session, patching: Sequence[str]) -> list[dict[str, Any]]:
    """Solve the pairs of each path in every way; return seconds, images and the losses reached."""
    rows, count = [], len(session.run.profile.patching)
    zero_shot: dict[str, float] = {}  # shared by all paths, charged to each in equal parts
    began = time.perf_counter()
    images = _score_zero_shot(session, zero_shot) / count
    shared = (time.perf_counter() - began) / count
    for task in tqdm(patching, "paths", leave=False):
        contest = Contest(session, task, zero_shot)
        ways: dict[str, Any] = {}
        first, pairs = contest.supported[0], len(contest.supported)
        for name, choose in (
            ("PAINT's loop", partial(contest.paint, workers=WORKERS)),
            ("PAINT's loop, one process", partial(contest.paint, workers=0)),
            ("exhaustive, each pair", contest.exhaustive),
        ):
            contest.reset()
            start = time.perf_counter()
            answer = choose(first)
            seconds = (time.perf_counter() - start) * pairs
            forwards = float(contest.forwards * pairs)
            ways[name] = {"seconds": seconds, "forwards": forwards, "alpha": {first: answer}}
        for name, solve in (
            ("exhaustive, shared curves", contest.exhaustive_shared),
            ("log-quintic, shared ends", contest.log_quintic),
            ("log-quintic, shared samples", contest.shared_samples),
        ):
            contest.reset()
            start = time.perf_counter()
            answers = solve()
            seconds = shared + time.perf_counter() - start
            forwards = images + contest.forwards
            ways[name] = {"seconds": seconds, "forwards": forwards, "alpha": answers}
        contest.reset()
        for way in ways.values():  # not timed: the loss at each answer, on all images
            way["value"] = {s: sum(contest.losses(a, s)) for s, a in way["alpha"].items()}
        rows.append({"patching": task, "ways": ways})
    return rows


def search(session: Session, patching: str) -> list[dict[str, Any]]:
    """Count what each method pays for each pair of a path, and how near it comes to the minimum.

    Evaluations are alphas other than the two ends, which all pairs of a path share. The minimum is
    that of a curve through 101 alphas, each task's log-loss interpolated by a cubic spline.
    """
    contest = Contest(session, patching, {})
    rows = []
    for supported in contest.supported:
        objective = partial(contest.losses, supported=supported)
        found = compare.search(objective)
        alphas, _, parts = zip(*found["exhaustive, step 0.01"].trace, strict=True)
        dense = np.linspace(0.0, 1.0, 10_001)
        curves = [log_spline(alphas, part)(dense) for part in zip(*parts, strict=True)]
        lowest = float(np.sum(curves, axis=0).min())
        rows.append({
            "supported": supported,
            "patching": patching,
            "methods": {
                method: {
                    "alpha": solution.alpha,
                    "evaluations": compare.paid(solution),
                    "excess": solution.value / lowest - 1,
                    "status": solution.status.name,
                }
                for method, solution in found.items()
            },
        })  # fmt: skip
    return rows


def _score_zero_shot(session: Session, scores: dict[str, float]) -> int:
    """Score the supported tasks at the zero-shot weights; return the number of images."""
    images = 0
    tasks = session.losses(session.tower(), session.run.profile.supported, "validation")
    for task, loss in tasks.items():
        score = loss.score()
        scores[task], images = score.loss, images + score.images
    return images


class Contest:
    """One path with the tasks scored along it, and the ways to choose alpha on it."""

    def __init__(self, session: Session, patching: str, zero_shot: dict[str, float]) -> None:
        self.session, self.patching, self.zero_shot = session, patching, zero_shot
        self.supported = session.run.profile.supported
        self.visual, self.path = session.tower(empty=True), session.path(patching)
        self.tasks = session.losses(self.visual, (*self.supported, patching), "validation")
        self.splits = {task: session.split(task, "validation") for task in self.tasks}
        self.reset()

    def reset(self) -> None:
        """Forget all losses but the shared ones."""
        self.seen = {(0.0, task): loss for task, loss in self.zero_shot.items()}
        self.forwards = 0

    def loss(self, alpha: float, task: str) -> float:
        """Return a task's loss at `alpha`; what was scored before costs nothing."""
        if (alpha, task) not in self.seen:
            self.path.set_(self.visual, alpha)
            score = self.tasks[task].score()
            self.forwards += score.images
            self.seen[alpha, task] = score.loss
        return self.seen[alpha, task]

    def losses(self, alpha: float, supported: str) -> tuple[float, float]:
        """Return the normalised losses of a pair at `alpha`."""
        both = (supported, self.patching)
        first, second = (self.loss(alpha, task) / self.loss(0.0, task) for task in both)
        return first, second

    def paint(self, supported: str, workers: int) -> float:
        """Choose alpha for one pair by PAINT's loop; the time does not depend on the pair."""
        start, end = self.path.unflatten(self.path.start), self.path.unflatten(self.path.end)
        values = []
        for alpha in tqdm(ALPHAS, f"PAINT's loop, {workers} workers", leave=False):
            merged = {name: (1 - alpha) * start[name] + alpha * end[name] for name in start}
            self.visual.load_state_dict(merged)
            with tempfile.TemporaryFile() as file:
                torch.save(self.visual, file)
            values.append([self._count(task, workers) for task in (supported, self.patching)])
        return ALPHAS[int((np.array(values) / values[0]).sum(1).argmin())]

    def _count(self, task: str, workers: int) -> float:
        split, pixels = self.splits[task], self.session.run.profile.pixels
        head = self.session.head(task)
        images = _Pictures(split.images, split.labels, pixels.mean, pixels.std)
        loader = DataLoader(images, batch_size=128, num_workers=workers)
        loss, correct, count = 0.0, 0, 0
        with torch.no_grad():
            for inputs, labels in loader:
                logits = F.normalize(self.visual(inputs), dim=-1) @ head.T
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += int(logits.argmax(1).eq(labels).sum().item())
                count += len(labels)
        self.forwards += count
        assert 0 <= correct <= count
        return loss / count

    def exhaustive(self, supported: str) -> float:
        """Visit 21 alphas for one pair, without anything that was scored before."""
        self.seen = {}
        return solver.grid(partial(self.losses, supported=supported)).alpha

    def exhaustive_shared(self) -> Answers:
        """Visit 21 alphas, and score all five tasks at each."""
        return {s: solver.grid(partial(self.losses, supported=s)).alpha for s in self.supported}

    def log_quintic(self) -> Answers:
        """Search each pair by the log-quintic; the ends are shared."""
        answers = {}
        for supported in self.supported:
            objective = partial(self.losses, supported=supported)
            ends = self._known([0.0, 1.0], supported)
            answers[supported] = solver.log_quintic(objective, known=ends).alpha
        return answers

    def shared_samples(self) -> Answers:
        """Fit every pair to the same few samples, each placed where the fits put the minima.

        The first is the middle; the second the middle of all minima; then the minimum that lies
        farthest from the samples.
        """
        samples = [0.0, 0.5, 1.0]
        while True:
            minima = {
                s: fit_parts(self._known(samples, s)).minimum(0.0, 1.0) for s in self.supported
            }
            if len(samples) == SHARED + 2:
                return minima
            wanted = [float(np.mean([min(minima.values()), max(minima.values())]))]
            if len(samples) > 3:
                wanted = sorted(minima.values())
            samples.append(max(wanted, key=lambda a: min(abs(a - b) for b in samples)))

    def _known(self, alphas: Sequence[float], supported: str) -> list[solver.Evaluation]:
        parts = {alpha: self.losses(alpha, supported) for alpha in alphas}
        return [solver.Evaluation(alpha, sum(p), p) for alpha, p in parts.items()]


@dataclass
class _Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Images as PAINT reads them: pictures that are transformed one by one at each visit."""

    images: Tensor
    labels: Tensor
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        side = self.images.shape[-1]
        self.transform = transforms.Compose([
            transforms.Resize(side, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(self.mean, self.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = Image.fromarray(self.images[index].permute(1, 2, 0).numpy())
        return self.transform(picture), self.labels[index]


def interpolation(repeats: int) -> dict[str, Any]:
    """Time w(alpha) of CLIP ViT-B/32 against copying as many bytes.

    Interpolation reads two vectors and writes one, a copy reads one and writes one; the ratio is
    that of the bytes moved in a second.
    """
    with torch.device("meta"):
        tower = open_clip.CLIP(**open_clip.get_model_config(cost.MODEL)).visual
    model: nn.Module = tower.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    ends = [{name: t + i for name, t in model.state_dict().items()} for i in range(2)]
    path = WeightPath(*ends)
    start = path.start
    size, target = start.nbytes, torch.empty_like(start)
    alphas = iter(np.linspace(0.1, 0.9, repeats + 1).tolist())
    rounds = machine.alternately(
        [lambda: path.set_(model, next(alphas)), lambda: target.copy_(start)], repeats, "cpu"
    )
    return {
        "bytes": size,
        "GB/s interpolation": machine.spread([3 * size / a / 1e9 for a, _ in rounds]),
        "GB/s copy": machine.spread([2 * size / b / 1e9 for _, b in rounds]),
        "ratio": machine.spread([(3 / a) / (2 / b) for a, b in rounds]),
    }


def scoring(session: Session, repeats: int) -> dict[str, Any]:
    """Time the scoring of a task against a loop that only computes its logits."""
    task = _task(session)
    images = [batch for batch, _ in task.batches]
    assert task.logits is not None
    logits: Callable[[Tensor], Tensor] = task.logits

    def bare() -> None:
        with torch.inference_mode():
            for batch in images:
                logits(batch)

    rounds = machine.alternately([task.score, bare], repeats, session.device.type)
    count = sum(map(len, images))
    return {
        "images/s": machine.spread([count / a for a, _ in rounds]),
        "images/s bare": machine.spread([count / b for _, b in rounds]),
        "ratio": machine.spread([b / a for a, b in rounds]),
    }


def slope(session: Session, repeats: int) -> dict[str, Any]:
    """Time loss and slope together, and the gradient of a backward pass, against one loss."""
    task, path = _task(session), session.path(session.run.profile.patching[0])
    path.set_(task.model, 0.5)
    calls: list[Callable[[], object]] = [
        task.score,
        partial(task.value_and_slope, path, 0.5),
        task.gradient,
    ]
    rounds = machine.alternately(calls, repeats, session.device.type)
    return {
        "ratio": machine.spread([b / a for a, b, _ in rounds]),
        "ratio of a backward pass": machine.spread([c / a for a, _, c in rounds]),
    }


def _task(session: Session) -> TaskLoss:
    first = session.run.profile.supported[0]
    return session.losses(session.tower(), [first], "validation")[first]


if __name__ == "__main__":
    main()
