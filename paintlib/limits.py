"""Ceilings: the lowest sum whose loss of a task rises by no more than the user allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from paintlib.fits import Fit, _interpolate, fit_quintic
from paintlib.objective import Alpha, ImageScores, PairObjective
from paintlib.solver import Bracket, Evaluation, Known, Solution, Status, XTol, log_quintic

__all__ = ["Ceiling", "errors", "highest_rise", "under"]

NEAR = 5e-3  # of the bracket's width: how far from its ceiling an answer may end
TRIES = 6  # how many evaluations the ceilings may add to those of the free search

Logs = dict[Evaluation, list[float]]  # how far above its ceiling each task's log-loss may be


class Ceiling(NamedTuple):
    """A limit on one task: L(alpha) <= (1 + rise) L(0), a fraction, with a probability.

    The probability is that of drawing other images of the task, 0.5 for the means as they are.
    `start` is what its images cost zero-shot, by default at alpha = 0, where a path with a step
    `after` each write no longer has the checkpoint's own loss.
    """

    task: str
    rise: float
    probability: float = 0.95
    start: ImageScores | None = None


def highest_rise(objective: PairObjective, task: str, alpha: Alpha, probability: float = 0.95,
                 start: ImageScores | None = None) -> float:  # fmt: skip
    """Return what L(alpha) / L(0) - 1 of a task is below, with a `probability` between 0 and 1.

    The one-sided limit of a ratio of two losses of the same images, to first order (the delta
    method); a normalisation and weights have no say. It evaluates `alpha` where that is not known.
    `start` is as for `Ceiling`.
    """
    if task not in objective.names:
        raise ValueError(f"no task is called {task!r}; choose from {', '.join(objective.names)}")
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; give one between 0 and 1, say 0.95")
    before, here = _both(objective, task, alpha, start)
    if len(here) < 2 and probability != 0.5:
        raise ValueError(f"task {task!r} has one image, which tells no sampling error: give more, "
                         "or the probability 0.5")  # fmt: skip
    ratio = float(here.mean() / before.mean())
    spread = float(np.linalg.norm(here - ratio * before) / before.sum())
    return ratio - 1 + _quantile(len(here), probability) * spread


def _quantile(images: int, probability: float) -> float:
    """Return that of Student's t for a mean, over the root of the share of its variance seen."""
    seen = max(images - 1, 1)
    return float(special.stdtrit(seen, probability)) * math.sqrt(images / seen)


def _both(objective: PairObjective, task: str, alpha: Alpha,
          start: ImageScores | None) -> list[NDArray[np.float64]]:  # fmt: skip
    which = objective.names.index(task)
    before = start or objective.images(objective.origin)[which]
    here = objective.images(alpha)[which]
    both = [before.losses, here.losses]
    if len(both[0]) != len(both[1]) or len({before.digest, here.digest} - {""}) > 1:
        raise ValueError(f"the start of the ceiling on {task!r} is of other images; give the same")
    if not both[0].mean() > 0:
        raise ValueError(f"task {task!r} has a zero-shot loss of {both[0].mean():.3g}; the rise of "
                         "a ceiling is a share of a positive loss")  # fmt: skip
    return both


def errors(objective: PairObjective, ceilings: Sequence[Ceiling],
           found: Solution) -> tuple[float, float]:  # fmt: skip
    """Return the sampling error of an alpha that a ceiling sets, and how far it is from there.

    Both are of the ceiling that is nearest, over the slope of the highest rise there; the error of
    that rise is the jackknife's. NaN at an end of the samples.
    """
    if found.alpha in (min(found.trace).alpha, max(found.trace).alpha):
        return math.nan, 0.0
    near = sorted(sorted(found.trace, key=lambda s: abs(s.alpha - found.alpha))[:4])
    alphas, gaps = [sample.alpha for sample in near], []
    for task, rise, probability, start in ceilings:
        heights = [highest_rise(objective, task, a, probability, start) for a in alphas]
        slope = abs(float(_interpolate(alphas, heights).deriv()(found.alpha))) or math.nan
        above = abs(highest_rise(objective, task, found.alpha, probability, start) - rise)
        a, b = _both(objective, task, found.alpha, start)
        # `highest_rise` without each image, by the sums of a, b and their products
        a, b, aa, ab, bb = (x.sum() - x for x in (a, b, a * a, a * b, b * b))
        spread = np.sqrt(np.maximum(bb - 2 * (b / a) * ab + (b / a) ** 2 * aa, 0.0)) / a
        rises = b / a + _quantile(len(a) - 1, probability) * spread
        gaps.append((above / slope, float(rises.std()) * math.sqrt(len(rises) - 1) / slope))
    distance, error = min(gaps)
    return error, distance


def under(objective: PairObjective, ceilings: Sequence[Ceiling], bracket: Bracket = (0.0, 1.0), *,
          xtol: float | XTol = 1e-3, max_evals: int | None = None,
          known: Known = ()) -> Solution:  # fmt: skip
    """Minimise the sum of all tasks at alphas that obey every ceiling.

    Where the minimum that `log_quintic` finds obeys, it is the answer. Else that lies where a
    ceiling is met, between the lowest sample that obeys and its neighbour that does not: a
    polynomial tells where, an evaluation just before it verifies that or is the new neighbour,
    until the answer is within 0.005 of the bracket's width, or after 6 more evaluations.

    A task that has nothing but a ceiling has the weight 0. Arguments and answer are those of
    `log_quintic`, but of `known` only what `objective` knows too counts, and the status is
    AT_CEILING where a ceiling holds the answer back, ABOVE_CEILING where no sample obeys.
    """

    def above(sample: Evaluation) -> list[float]:
        rises = [highest_rise(objective, c.task, sample.alpha, *c[2:]) for c in ceilings]
        pairs = zip(rises, ceilings, strict=True)
        return [math.log(max(1 + rise, 1e-12) / (1 + ceiling.rise)) for rise, ceiling in pairs]

    if not ceilings:
        raise ValueError("no ceiling is given; without one use solver.log_quintic")
    for ceiling in ceilings:
        if not (math.isfinite(ceiling.rise) and ceiling.rise > -1):
            raise ValueError(f"task {ceiling.task!r} may rise by {ceiling.rise}: the rise is a "
                             "fraction of the loss above -1, say 0.01")  # fmt: skip
        highest_rise(objective, ceiling.task, objective.origin, *ceiling[2:])
    mine = [sample for sample in known if objective.known(sample.alpha)]
    if bracket[0] < 0.0 < bracket[1] and objective.known(0.0):  # paid for, and often obeys
        mine.append(Evaluation(0.0, math.fsum(objective(0.0)), objective(0.0)))
    free = log_quintic(objective, bracket, xtol=xtol, max_evals=max_evals, known=mine)
    logs = {sample: above(sample) for sample in free.trace}
    if max(logs[min(logs, key=lambda sample: sample.value)]) <= 0:
        return free
    for _ in range(TRIES):
        if (trial := _trial(logs, NEAR * (bracket[1] - bracket[0]))) is None:
            break
        parts = objective(trial)
        sample = Evaluation(trial, math.fsum(parts), parts)
        logs[sample] = above(sample)
    best = _best(logs)
    status = Status.AT_CEILING if max(logs[best]) <= 0 else Status.ABOVE_CEILING
    paid = free.evaluations + len(logs) - len(free.trace)
    return Solution(best.alpha, best.value, _around(best, logs), status, tuple(logs), paid)


def _best(logs: Logs) -> Evaluation:
    """Return the lowest sample that obeys, or the one that comes nearest."""
    return min(logs, key=lambda sample: (max(*logs[sample], 0.0), sample.value))


def _around(sample: Evaluation, logs: Logs) -> Bracket:
    alphas = sorted(other.alpha for other in logs)
    at = alphas.index(sample.alpha)
    return alphas[max(at - 1, 0)], alphas[min(at + 1, len(alphas) - 1)]


def _trial(logs: Logs, near: float) -> float | None:
    """Return where to look next, None where the answer cannot improve."""
    best, samples = _best(logs), sorted(logs)
    if max(logs[best]) > 0:  # look for an alpha that obeys
        curve = fit_quintic(s._replace(value=max(logs[s])) for s in samples)
        there = Fit((curve,), (False,)).minimum(*_around(best, logs))
        return None if min(abs(there - s.alpha) for s in samples) < near / 2 else there
    lowest, at = min(samples, key=lambda sample: sample.value), samples.index(best)
    side = 1 if lowest.alpha > best.alpha else -1
    if lowest == best or max(logs[samples[at + side]]) <= 0:
        return None
    first = max(min(at, at + side) - 1, 0)
    chosen = samples[first : first + 4]
    columns = zip(*(logs[sample] for sample in chosen), strict=True)
    lines = [_interpolate([s.alpha for s in chosen], column) for column in columns]

    def above(alpha: float) -> float:
        return max(float(line(alpha)) for line in lines)

    # the last place where a ceiling is met: the start, where a loss falls first, is another
    x = np.linspace(best.alpha, samples[at + side].alpha, 129).tolist()
    last = max((i for i in range(128) if above(x[i]) < 0), default=None)
    met = best.alpha if last is None else float(optimize.brentq(above, *x[last : last + 2]))
    inside = math.copysign(near / 2, best.alpha - met)
    return met + inside if abs(met - best.alpha) > near else None
