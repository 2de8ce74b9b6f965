"""Several patches at once: one coefficient each, w(a) = w_zs + sum_k a_k (w_k - w_zs).

An objective maps a tuple of one coefficient per patch to one normalised loss per task (or to their
sum): `PairObjective` does so with `WeightPatches`. All searches return the best point they saw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, optimize

from paintlib.fits import SAME
from paintlib.solver import Bracket, Evaluation, Status, check_xtol, ends, log_quintic

if TYPE_CHECKING:
    from torch import nn

    from paintlib.interpolation import Weights

__all__ = ["JointEvaluation", "JointSolution", "WeightPatches", "coordinatewise", "joint", "shared"]

PROBE = 10  # how many xtol beside the best point a surface is put to the test

Array = NDArray[np.float64]
Point = tuple[float, ...]
JointObjective = Callable[[Point], float | Sequence[float]]


class JointEvaluation(NamedTuple):
    """One visit of the objective: coefficients, summed normalised loss, and each task's share."""

    alpha: Point
    value: float
    parts: tuple[float, ...]


@dataclass(frozen=True)
class JointSolution:
    """The best coefficients a search has seen; attributes are those of `solver.Solution`."""

    alpha: Point
    value: float
    status: Status
    trace: tuple[JointEvaluation, ...]
    evaluations: int


class WeightPatches:
    """The weights reached by several patches of one start; two coefficients span a plane.

    Where one coefficient alone is not 0, they are those of `WeightPath(start, end)`; else integer
    tensors are those of the first path at its coefficient.

    `start` and each of `ends`, and the errors, are those of `WeightPath`; `after` is called with
    the model after each write.
    """

    def __init__(self, start: Weights, ends: Sequence[Weights],
                 after: Callable[[nn.Module], Any] | None = None) -> None:  # fmt: skip
        from paintlib.interpolation import WeightPath  # imports torch, the searches do without

        if not ends:
            raise ValueError("no fine-tuned weights are given; each patch needs its own")
        self.paths, self.after = tuple(WeightPath(start, end) for end in ends), after
        self.origin = (0.0,) * len(ends)  # the coefficients of the start

    def set_(self, model: nn.Module, alpha: Sequence[float]) -> nn.Module:
        """Write the weights of the coefficients `alpha` into `model` in place and return it.

        Raises:
            ValueError: there is not one finite coefficient per patch, or the model does not fit.
        """
        shares = tuple(map(float, np.atleast_1d(alpha)))
        if len(shares) != len(self.paths) or not np.isfinite(shares).all():
            raise ValueError(f"alpha = {alpha}; give each of {len(self.paths)} patches a number")
        used = np.flatnonzero(shares)
        first = int(used[0]) if len(used) == 1 else 0
        self.paths[first].set_(model, shares[first])
        for path, share in zip(self.paths[first + 1 :], shares[first + 1 :], strict=True):
            if share:
                path.add_(model, share)
        if self.after is not None:
            self.after(model)
        return model


def joint(objective: JointObjective, patches: int, bracket: Bracket = (0.0, 1.0), *,
          xtol: float = 5e-3, max_evals: int | None = None,
          known: Iterable[JointEvaluation] = ()) -> JointSolution:  # fmt: skip
    """Minimise over all coefficients at once, by surfaces through each task's log-losses.

    It starts from the lower corner, the middles and ends of its edges, and the middles of its
    faces: as many points as a quadratic has coefficients. A surface (a cubic radial basis on a
    quadratic) through the log-loss of each task gives the lowest sum in the box, which is
    evaluated, and so on until it is within `xtol` of the best point, and is so still when a point
    beside that one is known for each further coefficient. `bracket` holds for each of the
    `patches` coefficients, `max_evals` is by default the start and 6 per patch, and the rest,
    errors too, as for `solver.log_quintic`.

    >>> joint(lambda a: [(a[0] - 0.3) ** 2 + 1, (a[1] - a[0]) ** 2 + 1], 2).status.name
    'CONVERGED'
    """
    record = _Record(objective, patches, bracket, xtol, known)
    steps = itertools.product((0.0, 0.5, 1.0), repeat=patches)
    shares = np.array([step for step in steps if sum(step) <= 1])
    start = record.low + (record.high - record.low) * shares
    budget = len(start) + 6 * patches if max_evals is None else max_evals
    if budget < (fewest := sum(not record.find(point) for point in start)):
        raise ValueError(f"max_evals is {max_evals}, but the start alone takes {fewest}")
    for point in start:
        record(point)
    still = 0
    while True:
        target = record.lowest()
        near = bool(np.abs(target - record.best().alpha).max() <= xtol)
        still = still + 1 if near else 0
        trial = record.probe(PROBE * xtol) if near or record.find(target, xtol) else target
        if still == max(2, patches) or record.find(trial):
            return record.solution(Status.CONVERGED)
        if record.fresh == budget:
            return record.solution(Status.BUDGET)
        record(trial)


def coordinatewise(objective: JointObjective, patches: int, bracket: Bracket = (0.0, 1.0), *,
                   xtol: float = 5e-3, rounds: int = 8,
                   known: Iterable[JointEvaluation] = ()) -> JointSolution:  # fmt: skip
    """Minimise over one coefficient after the other by `log_quintic`, a peer of `joint`.

    It begins at the lower ends, and stops when a round moves no coefficient by more than `xtol`.
    """
    record = _Record(objective, patches, bracket, xtol, known)
    here = record.low.copy()
    for _ in range(rounds):
        before = here.copy()
        for k in range(patches):

            def line(value: float, k: int = k) -> Sequence[float]:
                return record(np.concatenate([here[:k], [value], here[k + 1 :]])).parts

            here[k] = log_quintic(line, bracket, xtol=xtol, known=record.along(here, k)).alpha
        if np.abs(here - before).max() <= xtol:
            return record.solution(Status.CONVERGED)
    return record.solution(Status.BUDGET)


def shared(objective: JointObjective, patches: int, bracket: Bracket = (0.0, 1.0), *,
           xtol: float = 1e-3) -> JointSolution:  # fmt: skip
    """Minimise over one coefficient that all patches share, by `log_quintic`, a peer of `joint`.

    At 1 / patches it is the simple average of the fine-tuned weights.
    """
    record = _Record(objective, patches, bracket, xtol)
    found = log_quintic(lambda a: record(np.full(patches, a)).parts, bracket, xtol=xtol)
    return record.solution(found.status)


class _Record:
    """What is known about the objective so far; checks and counts its evaluations."""

    def __init__(self, objective: JointObjective, patches: int, bracket: Bracket, xtol: float,
                 known: Iterable[JointEvaluation] = ()) -> None:  # fmt: skip
        low, high = ends(bracket)
        check_xtol(xtol, high - low)
        self.low, self.high = np.full(patches, low), np.full(patches, high)
        self.objective, self.fresh = objective, 0
        self.samples = [self._checked(s.alpha, s.parts or s.value) for s in known
                        if low <= min(s.alpha) and max(s.alpha) <= high]  # fmt: skip

    def __call__(self, alpha: ArrayLike) -> JointEvaluation:
        if sample := self.find(alpha):
            return sample
        point = tuple(map(float, np.asarray(alpha)))
        self.samples.append(self._checked(point, self.objective(point)))
        self.fresh += 1
        return self.samples[-1]

    def find(self, alpha: ArrayLike, near: float = SAME) -> JointEvaluation | None:
        return next((s for s in self.samples if np.allclose(s.alpha, alpha, 0, near)), None)

    def along(self, point: Array, k: int) -> Iterable[Evaluation]:
        """Yield the samples that differ from `point` in coefficient k alone, as known there."""
        for alpha, value, parts in self.samples:
            if np.allclose(np.delete(alpha, k), np.delete(point, k), 0, SAME):
                yield Evaluation(alpha[k], value, parts)

    def best(self) -> JointEvaluation:
        return min(self.samples, key=lambda sample: sample.value)

    def lowest(self) -> Array:
        """Return where the sum of the surfaces is lowest in the box."""
        points, values = (np.array([s[i] for s in self.samples]) for i in (0, 2))
        logs = values.min(0) > 0
        values[:, logs] = np.log(values[:, logs])
        surface = interpolate.RBFInterpolator(points, values, kernel="cubic", degree=2)

        def total(at: Array) -> float:
            row = surface(at[None])[0]
            return float(np.where(logs, np.exp(np.minimum(row, 600.0)), row).sum())

        box = [*zip(self.low, self.high, strict=True)]
        starts = sorted(self.samples, key=lambda sample: sample.value)[:3]
        found = [optimize.minimize(total, s.alpha, method="L-BFGS-B", bounds=box) for s in starts]
        lowest: Array = min(found, key=lambda one: float(one.fun)).x
        return np.clip(lowest, self.low, self.high)

    def probe(self, step: float) -> Array:
        """Return a point beside the best, in the direction that the points near it say least of."""
        best = np.array(self.best().alpha)
        apart = np.array([sample.alpha for sample in self.samples]) - best
        apart /= np.square(apart).sum(1, keepdims=True) + step**2
        direction = np.linalg.eigh(apart.T @ apart)[1][:, 0]
        sides = (np.clip(best + s * direction, self.low, self.high) for s in (step, -step))
        return max(sides, key=lambda side: float(np.abs(side - best).sum()))

    def solution(self, status: Status) -> JointSolution:
        alpha, value, _ = self.best()
        return JointSolution(alpha, value, status, tuple(self.samples), self.fresh)

    def _checked(self, alpha: Point, result: float | Sequence[float]) -> JointEvaluation:
        parts = tuple(np.atleast_1d(np.asarray(result, float)).tolist())
        if len(alpha) != len(self.low) or not np.isfinite(parts).all():
            raise ValueError(f"losses {parts} at alpha = {alpha}; each must be finite, with "
                             f"{len(self.low)} coefficients; narrow the bracket")  # fmt: skip
        return JointEvaluation(tuple(alpha), math.fsum(parts), parts)
