"""Polynomials through a few samples of an objective: of the sum, or of each task's log-loss.

The solver minimises them in place of the objective, which is expensive.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

if TYPE_CHECKING:
    from paintlib.solver import Evaluation

POINTS = 6  # a quintic has six coefficients
SAME = 1e-9  # alphas closer than this share of the bracket are one alpha


@dataclass(frozen=True)
class Fit:
    """A model of the sum: one polynomial per part, of the part's logarithm where `logs` says so."""

    polynomials: tuple[Polynomial, ...]
    logs: tuple[bool, ...]

    def __call__(self, alpha: ArrayLike) -> NDArray[np.float64]:
        """Return the predicted sum at each alpha."""
        return self._total([p(np.asarray(alpha, float)) for p in self.polynomials])

    def slope(self, alpha: ArrayLike) -> NDArray[np.float64]:
        """Return the derivative of the predicted sum at each alpha."""
        x = np.asarray(alpha, float)
        # (exp p)' = p' exp p
        terms = [
            p.deriv()(x) * (_exp(p(x)) if log else 1.0)
            for p, log in zip(self.polynomials, self.logs, strict=True)
        ]
        return np.asarray(sum(terms))

    def curvature(self, alpha: float) -> float:
        """Return the second derivative of the predicted sum at `alpha`."""
        total = 0.0
        for p, log in zip(self.polynomials, self.logs, strict=True):
            first, second = float(p.deriv()(alpha)), float(p.deriv(2)(alpha))
            # (exp p)'' = (p'' + p'^2) exp p
            total += (second + first**2) * float(_exp(p(alpha))) if log else second
        return total

    def minimum(self, low: float, high: float) -> float:
        """Return the lowest root of the derivative in [low, high] at which it turns positive.

        The ends compete too, so that a monotone model has its minimum at one of them.
        """
        x = np.linspace(low, high, 129)
        sign = np.sign(self.slope(x))
        turns = np.flatnonzero((sign[:-1] < 0) & (sign[1:] >= 0))
        tolerance = 4 * np.finfo(float).eps * max(abs(low), abs(high), high - low)
        roots = [
            optimize.brentq(self.slope, x[i], x[i + 1], xtol=tolerance, rtol=1e-14) for i in turns
        ]
        return float(min([*roots, low, high], key=lambda a: float(self(a))))

    def _total(self, fitted: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        terms = [_exp(f) if log else f for f, log in zip(fitted, self.logs, strict=True)]
        return np.asarray(sum(terms))


def fit_quintic(samples: Iterable[Evaluation]) -> Polynomial:
    """Return the polynomial through the sum at the six samples around the lowest one.

    With fewer samples the degree is lower: always one less than the number of samples used. The
    six are found from the smallest bracketing interval (the lowest sample and its neighbours)
    outwards, the nearer sample first; at equal distance, the one with the lower value.

    Args:
        samples: evaluations in any order; more than six may be given.

    Raises:
        ValueError: there are fewer than two samples, or an alpha twice.

    >>> from paintlib.solver import Evaluation
    >>> p = fit_quintic(Evaluation(a, (a - 0.3) ** 2, ()) for a in (0.0, 0.5, 1.0))
    >>> print(p.degree(), p.deriv().roots().round(12))
    2 [0.3]
    """
    chosen = window(sorted(samples))
    return _interpolate([s.alpha for s in chosen], [s.value for s in chosen])


def fit_parts(samples: Iterable[Evaluation]) -> Fit:
    """Return the model of `quintic`: a polynomial per part, through the samples around the lowest.

    Chosen as in `fit_quintic`. A part that is positive at all of them is fitted by its logarithm,
    which for the losses along a path is much closer to a polynomial than the loss itself; unless
    the lowest sample, left out, is predicted three times better without logarithms (so it is after
    `minmax`, whose zeros give the logarithm a pole).

    Args:
        samples: evaluations in any order, with equally many parts.

    Raises:
        ValueError: as `fit_quintic`.
    """
    chosen = window(sorted(samples))
    alphas = [s.alpha for s in chosen]
    columns = list(zip(*(s.parts for s in chosen), strict=True))
    best = min(range(len(chosen)), key=lambda i: chosen[i].value)
    logs = tuple(_log_is_smoother(alphas, column, best) for column in columns)
    return Fit(
        tuple(
            _interpolate(alphas, np.log(column) if log else column)
            for column, log in zip(columns, logs, strict=True)
        ),
        logs,
    )


def window(samples: list[Evaluation]) -> list[Evaluation]:
    """Return up to six neighbouring samples around the lowest of the ascending `samples`."""
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples given; a fit needs at least two")
    best = min(range(len(samples)), key=lambda i: samples[i].value)
    first, last = max(best - 1, 0), min(best + 1, len(samples) - 1)
    centre = 0.5 * (samples[first].alpha + samples[last].alpha)
    tie = SAME * (samples[-1].alpha - samples[0].alpha)
    while last - first + 1 < min(POINTS, len(samples)):
        left = centre - samples[first - 1].alpha if first else math.inf
        right = samples[last + 1].alpha - centre if last + 1 < len(samples) else math.inf
        if abs(left - right) <= tie:
            go_left = samples[first - 1].value <= samples[last + 1].value
        else:
            go_left = left < right
        first, last = (first - 1, last) if go_left else (first, last + 1)
    return samples[first : last + 1]


def _exp(x: ArrayLike) -> NDArray[np.float64]:
    """Return e^x, held below the overflow that a fit to a steep part can reach between samples."""
    return np.exp(np.minimum(x, 600.0))


def _log_is_smoother(alphas: Sequence[float], part: Sequence[float], probe: int) -> bool:
    """Return whether a fit to log(part) predicts the sample `probe`, left out, well enough."""
    if min(part) <= 0:
        return False
    if len(alphas) < 4:
        return True
    kept = [i for i in range(len(alphas)) if i != probe]
    x, y = [alphas[i] for i in kept], np.asarray([part[i] for i in kept])
    with_log = float(_exp(_interpolate(x, np.log(y))(alphas[probe])))
    without = float(_interpolate(x, y)(alphas[probe]))
    return abs(with_log - part[probe]) <= 3 * abs(without - part[probe])


def _interpolate(alphas: Sequence[float], values: ArrayLike) -> Polynomial:
    """Return the polynomial through all points."""
    for a, b in itertools.pairwise(alphas):
        if a == b:
            raise ValueError(f"alpha = {a} is sampled twice; a fit needs distinct alphas")
    # `full` keeps numpy from warning when samples are so close that the highest terms are lost.
    points = np.asarray(alphas, float), np.asarray(values, float)
    polynomial, _ = Polynomial.fit(*points, len(alphas) - 1, full=True)
    return polynomial
