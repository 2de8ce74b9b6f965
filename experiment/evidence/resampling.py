"""What n images can tell: every search, on samples of images whose truth is known.

The thousands of test images that were drawn along a path stand for all there are. A sample of them
is what somebody would choose alpha on; how much higher the loss sum of *all* images is there than
at its minimum is the regret.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from experiment import compare, results
from experiment.progress import bar
from experiment.run import Run
from paintlib import sampling, solver
from paintlib.fits import log_spline
from paintlib.objective import ImageScores, PairObjective
from paintlib.store import Store

SIZES = (50, 100, 200, 500, 1000, 2000, 5000)  # images a task
DRAWS = 100
NORMALISATION = "zero_shot"
DENSE = np.linspace(0.0, 1.0, 4001)

Floats = NDArray[np.float64]


class Population:
    """All images of a task along a path; between the samples each loss follows a cubic spline."""

    def __init__(self, store: Store, task: str) -> None:
        rows = [(alpha, store.get(alpha, task)) for alpha in store.alphas(task)]
        self.alphas = np.array([alpha for alpha, _ in rows])
        self.losses = np.stack([row.losses for _, row in rows if row])
        self.correct = np.stack([row.correct for _, row in rows if row])
        self._spline = CubicSpline(self.alphas, self.losses)

    def images(self, alpha: float, chosen: NDArray[np.int64]) -> ImageScores:
        """Return what the `chosen` images cost at `alpha`; hits are those of the next sample."""
        nearest = int(np.abs(self.alphas - alpha).argmin())
        hits = self.correct[nearest, chosen]
        if abs(self.alphas[nearest] - alpha) < 1e-9:
            return ImageScores(self.losses[nearest, chosen], hits)
        piece = min(int(np.searchsorted(self.alphas, alpha, "right")) - 1, len(self.alphas) - 2)
        x, c = alpha - self.alphas[piece], self._spline.c[:, piece, chosen]
        return ImageScores(((c[0] * x + c[1]) * x + c[2]) * x + c[3], hits)


def resample(run: Run, patching: str) -> None:
    """Write `samples/PATCHING.json`: regrets and coverage by the number of images, of each pair."""
    store = Store(run.folder / "truth" / results.read_json(run.evidence(patching))["store"],
                  writable=False)  # fmt: skip
    told = results.read_json(run.results / "run.json")["tasks"]
    populations = {task: Population(store, task) for task in store.tasks}
    found: dict[str, Any] = {"sizes": SIZES, "draws": DRAWS, "pairs": {}}
    for supported in bar(run.profile.supported, f"samples of {patching}"):
        pair = {task: populations[task] for task in (supported, patching)}
        classes = [int(told[task]["classes"]) for task in pair]
        found["pairs"][supported] = study([*pair.values()], classes)
    results.write_json(run.samples(patching), found, flat=True)


def study(pair: Sequence[Population], classes: Sequence[int], sizes: Sequence[int] = SIZES,
          draws: int = DRAWS) -> dict[str, Any]:  # fmt: skip
    """Return the truth of a pair, and of each size the mean regrets, errors and coverage."""
    curves = [task.losses.mean(1) for task in pair]

    def whole(alpha: float | Floats) -> Floats:
        parts = (log_spline(t.alphas, c)(alpha) / c[0] for t, c in zip(pair, curves, strict=True))
        return np.asarray(sum(parts))

    values = whole(DENSE)
    at = int(values.argmin())
    best, lowest = float(DENSE[at]), float(values[at])
    curvature = float(np.gradient(np.gradient(values, DENSE), DENSE)[at])
    columns: dict[str, list[Any]] = {"stderr": [], "coverage": []}
    for size in sizes:
        rows = [_draw(pair, classes, size, seed) for seed in range(draws)]
        errors = np.array([error for _, error in rows])
        ours = np.array([alphas["log_quintic"] for alphas, _ in rows])
        sure = np.isfinite(errors)
        columns["stderr"].append(float(np.median(errors[sure])) if sure.any() else None)
        inside = np.abs(ours - best)[sure] <= 1.96 * errors[sure]
        columns["coverage"].append(float(inside.mean()) if sure.any() else None)
        for name in rows[0][0]:
            regrets = whole(np.array([alphas[name] for alphas, _ in rows])) / lowest - 1
            columns.setdefault(name, []).append(float(regrets.mean()))
    return {"alpha": best, "value": lowest, "curvature": curvature,
            "images": [task.losses.shape[1] for task in pair], **columns}  # fmt: skip


def _draw(pair: Sequence[Population], classes: Sequence[int], size: int, seed: int
) -> tuple[dict[str, float], float]:  # fmt: skip
    generator = np.random.default_rng([seed, size])
    chosen = [generator.integers(task.losses.shape[1], size=size) for task in pair]
    names = [str(i) for i in range(len(pair))]

    def evaluate(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
        return [pair[int(name)].images(alpha, chosen[int(name)]) for name in missing]

    objective = PairObjective.replay(None, names, classes, NORMALISATION, evaluate=evaluate)
    coarse = solver.grid(objective, step=0.1)
    found = compare.answers(objective, xtol=sampling.tolerance(objective))
    grid = found["grid"]
    alphas = {
        "accuracy": max(
            (sample.alpha for sample in grid.trace),
            key=lambda alpha: sum(score.accuracy for score in objective.score(alpha)),
        ),
        "coarse": coarse.alpha,
        "grid": grid.alpha,
        "quintic": found["quintic"].alpha,
        "unverified": solver.quintic(objective, known=grid.trace, verify=False).alpha,
        "log_quintic": found["log_quintic"].alpha,
    }
    error = sampling.standard_error(objective, found["log_quintic"])
    return alphas, error.alpha if error else float("nan")
