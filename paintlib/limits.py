"""Ceilings: the lowest sum whose loss of a task rises by no more than the user allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from paintlib.fits import Fit, _interpolate, fit_quintic
from paintlib.objective import Alpha, PairObjective
from paintlib.solver import Bracket, Evaluation, Known, Solution, Status, XTol, log_quintic

__all__ = ["Ceiling", "highest_rise", "under"]

NEAR = 5e-3  # of the bracket's width: how far from its ceiling an answer may end


class Ceiling(NamedTuple):
    """A limit on one task: L(alpha) <= (1 + rise) L(0), a fraction, with a probability.

    The probability is that of drawing other images of the task, 0.5 for the means as they are.
    """

    task: str
    rise: float
    probability: float = 0.95


def highest_rise(objective: PairObjective, task: str, alpha: Alpha,
                 probability: float = 0.95) -> float:  # fmt: skip
    """Return what L(alpha) / L(0) - 1 of a task is below, with a probability.

    The one-sided limit of a ratio of two losses of the same images, to first order (the delta
    method); a normalisation and weights have no say. It evaluates `alpha` where that is not known.

    Raises:
        ValueError: the task is unknown, or `probability` is not a number between 0 and 1.
    """
    if task not in objective.names:
        raise ValueError(f"no task is called {task!r}; choose from {', '.join(objective.names)}")
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; give one between 0 and 1, say 0.95")
    which = objective.names.index(task)
    start, here = (objective.images(a)[which].losses for a in (objective.origin, alpha))
    ratio = float(here.mean() / start.mean())
    spread = float(np.std(here - ratio * start)) / math.sqrt(len(here)) / float(start.mean())
    return ratio - 1 + float(special.ndtri(probability)) * spread


def under(objective: PairObjective, ceilings: Sequence[Ceiling], bracket: Bracket = (0.0, 1.0), *,
          xtol: float | XTol = 1e-3, known: Known = (), tries: int = 6) -> Solution:  # fmt: skip
    """Minimise the sum of all tasks at alphas that obey every ceiling.

    `log_quintic` finds the minimum of the sum. Where that obeys, it is the answer. Else the answer
    lies where a ceiling is met, between the lowest sample that obeys and its neighbour that does
    not: a polynomial through the samples around tells where, and an evaluation just before it
    verifies that. Where it fails it is a new neighbour, and the search tightens, until the answer
    is within 0.005 of the bracket's width of where the ceiling is met, or after `tries` more
    evaluations; the answer obeys in any case. Where no sample obeys, the lowest of the polynomial
    is tried. Ceilings are held one by one; an alpha that just obeys on these images does so on
    others with the ceiling's probability.

    Args:
        objective: any number of tasks; a ceiling needs the losses of their single images.
        ceilings: one or more. A task that has nothing but a ceiling has the weight 0.
        bracket: the ends of the search, ascending.
        xtol: as for `log_quintic`.
        known: as for `log_quintic`, where `objective` knows them too.
        tries: how many evaluations the ceilings may add to those of `log_quintic`.

    Returns:
        The lowest sample that obeys. The status is AT_CEILING where a ceiling holds it back,
        ABOVE_CEILING, with the sample that comes nearest, where none obeys, else `log_quintic`'s.

    Raises:
        ValueError: there is no ceiling, one is not as described, or as for `log_quintic`.
    """
    if not ceilings:
        raise ValueError("no ceiling is given; without one use solver.log_quintic")
    for ceiling in ceilings:
        if not (math.isfinite(ceiling.rise) and ceiling.rise > -1):
            raise ValueError(f"{ceiling}: the rise is a fraction of the loss above -1, say 0.01")
        highest_rise(objective, ceiling.task, objective.origin, ceiling.probability)
    mine = [sample for sample in known if objective.known(sample.alpha)]
    free = log_quintic(objective, bracket, xtol=xtol, known=mine)
    search = _Search(objective, ceilings, list(free.trace), NEAR * (bracket[1] - bracket[0]))
    if search.excess(min(free.trace, key=lambda sample: sample.value)) <= 0:
        return free
    while (trial := search.trial()) is not None and tries > len(search.samples) - len(free.trace):
        parts = objective(trial)
        search.samples.append(Evaluation(trial, math.fsum(parts), tuple(parts)))
    best, trace = search.best(), tuple(search.samples)
    status = Status.AT_CEILING if search.excess(best) <= 0 else Status.ABOVE_CEILING
    bracket, paid = search.bracket(best), free.evaluations + len(trace) - len(free.trace)
    return Solution(best.alpha, best.value, bracket, status, trace, paid)


class _Search:
    """What is known of the sum and of the ceilings."""

    def __init__(self, objective: PairObjective, ceilings: Sequence[Ceiling],
                 samples: list[Evaluation], near: float) -> None:  # fmt: skip
        self.objective, self.ceilings = objective, ceilings
        self.samples, self.near = samples, near
        self._seen: dict[float, list[float]] = {}

    def logs(self, sample: Evaluation) -> list[float]:
        """Return by how much the highest log-loss of each ceiling's task is above the ceiling."""
        if sample.alpha not in self._seen:
            self._seen[sample.alpha] = []
            for task, rise, probability in self.ceilings:
                highest = 1 + highest_rise(self.objective, task, sample.alpha, probability)
                excess = math.log(max(highest, 1e-12) / (1 + rise))
                self._seen[sample.alpha].append(excess)
        return self._seen[sample.alpha]

    def excess(self, sample: Evaluation) -> float:
        return max(self.logs(sample))

    def best(self) -> Evaluation:
        """Return the lowest sample that obeys, or the one that comes nearest."""
        return min(self.samples, key=lambda s: (max(self.excess(s), 0.0), s.value))

    def bracket(self, sample: Evaluation) -> Bracket:
        """Return the neighbours of a sample."""
        alphas = sorted(s.alpha for s in self.samples)
        at = alphas.index(sample.alpha)
        return alphas[max(at - 1, 0)], alphas[min(at + 1, len(alphas) - 1)]

    def trial(self) -> float | None:
        """Return where to look next, None where the answer cannot improve."""
        best, samples = self.best(), sorted(self.samples)
        lowest = min(samples, key=lambda sample: sample.value)
        at = samples.index(best)
        if self.excess(best) > 0:  # look for an alpha that obeys
            curve = fit_quintic(s._replace(value=self.excess(s)) for s in samples)
            there = Fit((curve,), (False,)).minimum(*self.bracket(best))
            return None if min(abs(there - s.alpha) for s in samples) < self.near / 2 else there
        beyond = samples[at + (1 if lowest.alpha > best.alpha else -1)] if lowest != best else best
        if self.excess(beyond) <= 0:
            return None
        first = max(min(at, samples.index(beyond)) - 1, 0)
        chosen = samples[first : first + 4]
        columns = zip(*map(self.logs, chosen), strict=True)
        lines = [_interpolate([s.alpha for s in chosen], column) for column in columns]

        def above(alpha: float) -> float:
            return max(float(line(alpha)) for line in lines)

        # the last place where a ceiling is met: the start, where a loss falls first, is another
        x = np.linspace(best.alpha, beyond.alpha, 129).tolist()
        last = max((i for i in range(1, 128) if above(x[i]) < 0), default=0)
        met = best.alpha
        if above(x[last]) < 0:
            met = float(optimize.brentq(above, x[last], x[last + 1]))
        inside = math.copysign(self.near / 2, best.alpha - met)
        return met + inside if abs(met - best.alpha) > self.near else None
