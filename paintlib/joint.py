"""Several patches at once: one coefficient each, w(a) = w_zs + sum_k a_k (w_k - w_zs).

An objective maps a tuple of one coefficient per patch to one normalised loss per task (or to their
sum): `PairObjective` does so with `WeightPatches`. All searches return the best point they saw.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, optimize

from paintlib.fits import SAME
from paintlib.solver import Bracket, Evaluation, Record, Status, log_quintic

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
    tensors are those of the first path at its coefficient. Arguments and errors are those of
    `WeightPath`, for each of `ends`.
    """

    def __init__(self, start: Weights, ends: Sequence[Weights],
                 after: Callable[[nn.Module], Any] | None = None) -> None:  # fmt: skip
        from paintlib.interpolation import WeightPath  # imports torch, the searches do without

        if not ends:
            raise ValueError("no fine-tuned weights are given; each patch needs its own")
        self.paths, self.after = tuple(WeightPath(start, end) for end in ends), after
        self.origin = (0.0,) * len(ends)  # the coefficients of the start

    @property
    def digests(self) -> tuple[str, ...]:
        """The SHA-256 of the start and of each end."""
        return self.paths[0].digests[0], *(path.digests[1] for path in self.paths)

    def set_(self, model: nn.Module, alpha: Sequence[float]) -> nn.Module:
        """Write the weights of one coefficient per patch into `model` in place and return it."""
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
    quadratic) through each task's log-loss gives the lowest sum in the box, which is evaluated,
    until it is within `xtol` of the best point, and still is with a point beside that one for each
    further coefficient. `bracket` holds for each coefficient, `max_evals` is by default the start
    and 6 per patch, the rest as for `solver.log_quintic`.

    >>> joint(lambda a: [(a[0] - 0.3) ** 2 + 1, (a[1] - a[0]) ** 2 + 1], 2).status.name
    'CONVERGED'
    """
    record = _Record(objective, patches, bracket, known)
    steps = itertools.product((0.0, 0.5, 1.0), repeat=patches)
    shares = np.array([step for step in steps if sum(step) <= 1])
    start = record.low + record.width * shares
    budget = len(start) + 6 * patches if max_evals is None else max_evals
    record.limit(xtol, budget, at_least=sum(not record.find(point) for point in start))
    for point in start:
        record(point)
    still = 0
    while True:
        target = record.lowest()
        near = bool(np.abs(target - record.best().alpha).max() <= xtol)
        still = still + 1 if near else 0
        trial = record.probe(PROBE * xtol) if near or record.find(target, xtol) else target
        if still == max(2, patches) or record.find(trial):
            return record.answer(Status.CONVERGED)
        if not record.budget:
            return record.answer(Status.BUDGET)
        record(trial)


def coordinatewise(objective: JointObjective, patches: int, bracket: Bracket = (0.0, 1.0), *,
                   xtol: float = 5e-3, rounds: int = 8,
                   known: Iterable[JointEvaluation] = ()) -> JointSolution:  # fmt: skip
    """Minimise over one coefficient after the other by `log_quintic`, a peer of `joint`.

    It begins at the lower ends, and stops when a round moves no coefficient by more than `xtol`.
    """
    record = _Record(objective, patches, bracket, known)
    here = np.full(patches, record.low)
    for _ in range(rounds):
        before = here.copy()
        for k in range(patches):

            def line(value: float, k: int = k) -> Any:
                return record(np.concatenate([here[:k], [value], here[k + 1 :]])).parts

            here[k] = log_quintic(line, bracket, xtol=xtol, known=record.along(here, k)).alpha
        if np.abs(here - before).max() <= xtol:
            return record.answer(Status.CONVERGED)
    return record.answer(Status.BUDGET)


def shared(objective: JointObjective, patches: int, bracket: Bracket = (0.0, 1.0), *,
           xtol: float = 1e-3) -> JointSolution:  # fmt: skip
    """Minimise over one coefficient that all patches share, by `log_quintic`, a peer of `joint`.

    At 1 / patches it is the simple average of the fine-tuned weights.
    """
    record = _Record(objective, patches, bracket)
    found = log_quintic(lambda a: record(np.full(patches, a)).parts, bracket, xtol=xtol)
    return record.answer(found.status)


class _Record(Record):
    """What is known about the objective of several coefficients."""

    kind = JointEvaluation

    def __init__(self, objective: JointObjective, patches: int, bracket: Bracket,
                 known: Iterable[JointEvaluation] = ()) -> None:  # fmt: skip
        known = list(known)
        if odd := [k.alpha for k in known if len(k.alpha) != patches]:
            raise ValueError(f"alpha = {odd[0]} is known; give each of {patches} patches a number")
        super().__init__(objective, bracket, known)

    def find(self, alpha: Any, near: float = SAME) -> Any:
        return next((s for s in self.samples if np.allclose(s.alpha, alpha, 0, near)), None)

    def along(self, point: Array, k: int) -> Iterable[Evaluation]:
        """Yield the samples that differ from `point` in coefficient k alone, as known there."""
        for alpha, value, parts in self.samples:
            if np.allclose(np.delete(alpha, k), np.delete(point, k), 0, SAME):
                yield Evaluation(alpha[k], value, parts)

    def lowest(self) -> Array:
        """Return where the sum of the surfaces is lowest in the box."""
        points, values = (np.array([sample[i] for sample in self.trace()]) for i in (0, 2))
        logs = values.min(0) > 0
        values[:, logs] = np.log(values[:, logs])
        surface = interpolate.RBFInterpolator(points, values, kernel="cubic", degree=2)

        def total(at: Array) -> float:
            row = surface(at[None])[0]
            return float(np.where(logs, np.exp(np.minimum(row, 600.0)), row).sum())

        box = [(self.low, self.high)] * points.shape[1]
        starts = sorted(self.trace(), key=lambda sample: sample.value)[:3]
        found = [optimize.minimize(total, s.alpha, method="L-BFGS-B", bounds=box) for s in starts]
        lowest: Array = min(found, key=lambda one: float(one.fun)).x
        return np.clip(lowest, self.low, self.high)

    def probe(self, step: float) -> Array:
        """Return a point beside the best, in the direction that the points near it say least of."""
        best = np.array(self.best().alpha)
        apart = np.array([sample.alpha for sample in self.trace()]) - best
        apart /= np.square(apart).sum(1, keepdims=True) + step**2
        direction = np.linalg.eigh(apart.T @ apart)[1][:, 0]
        sides = (np.clip(best + s * direction, self.low, self.high) for s in (step, -step))
        return max(sides, key=lambda side: float(np.abs(side - best).sum()))

    def answer(self, status: Status) -> JointSolution:
        alpha, value, _ = self.best()
        return JointSolution(alpha, value, status, self.trace(), len(self.fresh))
