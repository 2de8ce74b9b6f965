"""Rules that choose alpha, side by side on fresh images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

from experiment import replay, report, results
from experiment.evidence import archive
from paintlib import solver
from paintlib.fits import log_spline
from paintlib.normalisation import NORMALISATIONS

DENSE = np.linspace(0.0, 1.0, 2001)
GIVEN_UP = "patching points given up, validation images"

Floats = NDArray[np.float64]
Choice = tuple[str, float, int]  # a rule, its alpha, its evaluations


@dataclass(frozen=True)
class Truth:
    """A pair on the test images of the evidence: what a choice of alpha is worth.

    Losses are scaled by those of the zero-shot weights on the same images.
    """

    alphas: Floats
    losses: Floats  # (2, alphas), nats per image
    accuracies: Floats  # (2, alphas)
    images: tuple[int, int]

    @classmethod
    def of(cls, evidence: Mapping[str, Any], supported: str, patching: str) -> Self:
        """Return the truth of a pair from the evidence of its path."""
        rows = [evidence["truth"]["tasks"][task] for task in (supported, patching)]
        losses, accuracies = (np.array([row[k] for row in rows]) for k in ("loss", "accuracy"))
        images = (int(rows[0]["images"]), int(rows[1]["images"]))
        return cls(np.array(evidence["truth"]["alphas"]), losses, accuracies, images)

    def loss(self, alpha: ArrayLike) -> Floats:
        """Return both losses, nats per image."""
        return np.asarray(log_spline(self.alphas, self.losses.T)(alpha).T)

    def sum(self, alpha: ArrayLike) -> Floats:
        """Return the sum of both losses over their zero-shot losses."""
        return np.asarray((self.loss(alpha).T / self.losses[:, 0]).sum(-1))

    def accuracy(self, alpha: ArrayLike) -> Floats:
        """Return both accuracies."""
        return np.asarray(PchipInterpolator(self.alphas, self.accuracies, axis=1)(alpha))

    def best(self) -> tuple[float, float]:
        """Return the alpha of the lowest sum, and that sum."""
        values = self.sum(DENSE)
        return float(DENSE[values.argmin()]), float(values.min())


def price(pairs: Sequence[report.Pair]) -> dict[str, float]:
    """Return the points that the quintic's alpha keeps, and gives up, against PAINT's rule."""
    changes = []
    for pair in pairs:
        rows = np.array([pair["curves"][role]["accuracy"] for role in report.ROLES])
        curve = PchipInterpolator(pair["curves"]["alphas"], rows, axis=1)
        changes.append(
            curve(pair["solutions"]["quintic"]["alpha"]) - rows[:, rows.mean(0).argmax()]
        )
    kept, gained = 100 * np.mean(changes, 0)
    return {"supported points kept, validation images": float(kept), GIVEN_UP: -float(gained)}


def by_pair(folder: Path | str) -> pd.DataFrame:
    """Return one row for each pair and rule: the alpha it chooses, its price, what that is worth.

    "regret" is by how much the true loss sum is above its lowest on the path, a fraction; a rule
    that leaves the path may be below. "evaluations" are those beyond the two ends.
    """
    pairs, evidence = results.read_pairs(folder), archive.read(folder)
    rows = []
    for pair in pairs:
        found = evidence[pair["patching"]]
        truth = Truth.of(found, pair["supported"], pair["patching"])
        lowest = truth.best()[1]
        names = {role: pair[role] for role in report.ROLES}
        ends = truth.accuracy([0.0, 1.0]).mean(0).max()
        for rule, alpha, paid in _choices(pair, pairs, found):
            accuracy, total = truth.accuracy(alpha), float(truth.sum(alpha))
            rows.append((rule, alpha, paid, accuracy, total, names, lowest, ends))
        for rule, key in (("LiNeS", "lines"), ("Fisher average", "fisher")):
            if told := found.get(key, {}).get(pair["supported"]):
                (a, x), (b, y) = told["test"]
                total = a / truth.losses[0, 0] + b / truth.losses[1, 0]
                paid = max(told.get("evaluations", 2) - 2, 0)
                rows.append(
                    (rule, told["alpha"], paid, np.array([x, y]), total, names, lowest, ends)
                )
    return pd.DataFrame([{
        "rule": rule, **names, "alpha": alpha, "evaluations": paid,
        "supported accuracy": accuracy[0], "patching accuracy": accuracy[1],
        "mean accuracy": accuracy.mean(), "regret": total / lowest - 1,
        "above both ends": bool(accuracy.mean() > ends),
    } for rule, alpha, paid, accuracy, total, names, lowest, ends in rows])  # fmt: skip


def means(pairs: Sequence[report.Pair], evidence: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean test accuracies of PAINT's rule and of the paper's, in per cent."""
    names = {"accuracy, grid 0.05": "PAINT's rule", "loss, quintic": "the loss rule"}
    found: dict[str, list[Floats]] = {rule: [] for rule in names}
    for pair in pairs:
        truth = Truth.of(evidence[pair["patching"]], pair["supported"], pair["patching"])
        for rule, alpha, _ in _recorded(pair):
            if rule in found:
                found[rule].append(100 * truth.accuracy(alpha))
    means: dict[str, float] = {}
    for rule, rows in found.items():
        supported, patching = np.mean(rows, 0)
        both = {"supported": supported, "patching": patching, "mean": (supported + patching) / 2}
        means |= {f"{name} accuracy, {names[rule]}": float(value) for name, value in both.items()}
    return means


def _recorded(pair: report.Pair) -> Iterator[Choice]:
    """Yield what the samples of a pair's record choose."""
    curves, found = pair["curves"], pair["solutions"]
    alphas = np.array(curves["alphas"])
    accuracy = np.mean([curves[role]["accuracy"] for role in report.ROLES], 0)
    for name, stride in (("accuracy, grid 0.1", 2), ("accuracy, grid 0.05", 1)):
        kept = alphas[::stride]
        yield name, float(kept[accuracy[::stride].argmax()]), len(kept) - 2
    for solver_name, name in report.SOLVERS.items():
        words = "loss, grid 0.05" if solver_name == "grid" else f"loss, {name}"
        yield words, found[solver_name]["alpha"], found[solver_name]["evaluations"]


def _choices(pair: report.Pair, pairs: Sequence[report.Pair], evidence: Mapping[str, Any]
) -> Iterator[Choice]:  # fmt: skip
    yield from _recorded(pair)
    for kind in NORMALISATIONS:
        if kind != pair["normalisation"]:
            objective, samples = replay.on_curves(pair, kind)
            solution = solver.quintic(objective, known=samples)
            yield f"loss, quintic, {kind}", solution.alpha, len(samples) - 2 + solution.evaluations
    yield "alpha = 0.5", 0.5, 0
    others = [other["solutions"]["quintic"]["alpha"] for other in pairs
              if other["supported"] == pair["supported"] and other is not pair]  # fmt: skip
    if others:
        yield "one alpha for all", float(np.mean(others)), 0
    if entropy := evidence.get("entropy"):
        total = np.sum([entropy[pair[role]] for role in report.ROLES], 0)
        spline = CubicSpline(entropy["alphas"], total)
        yield "entropy, no labels", float(DENSE[spline(DENSE).argmin()]), len(total) - 2
    yield "Taylor at zero-shot", taylor(pair), 2


def taylor(pair: report.Pair) -> float:
    """Return the minimum in [0, 1] of the parabola through the sum at 0, 0.05 and 0.1."""
    f, h = report.normalised(pair).sum(0)[:3], pair["curves"]["alphas"][1]
    slope, curvature = (-3 * f[0] + 4 * f[1] - f[2]) / (2 * h), (f[0] - 2 * f[1] + f[2]) / h**2
    if curvature <= 0:
        return float(slope < 0)
    return float(np.clip(-slope / curvature, 0.0, 1.0))
