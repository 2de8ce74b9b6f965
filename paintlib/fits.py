"""Curves through samples of an objective, which is expensive: the solver minimises them instead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, optimize

if TYPE_CHECKING:
    from paintlib.solver import Evaluation

__all__ = ["Fit", "fit_parts", "fit_quintic", "log_spline", "window"]

POINTS = 6  # a quintic has six coefficients
SAME = 1e-9  # alphas closer than this share of the bracket are one alpha


@dataclass(frozen=True)
class Fit:
    """A model of the sum: one polynomial per part, of the part's logarithm where `logs` says so."""

    polynomials: tuple[Polynomial, ...]
    logs: tuple[bool, ...]

    def __call__(self, alpha: ArrayLike) -> NDArray[np.float64]:
        """Return the predicted sum at each alpha."""
        x = np.asarray(alpha, float)
        return np.asarray(sum(_exp(p(x)) if log else p(x) for p, log in self._parts()))

    def slope(self, alpha: ArrayLike) -> NDArray[np.float64]:
        """Return the derivative of the predicted sum at each alpha."""
        x = np.asarray(alpha, float)
        # (exp p)' = p' exp p
        terms = (p.deriv()(x) * (_exp(p(x)) if log else 1.0) for p, log in self._parts())
        return np.asarray(sum(terms))

    def curvature(self, alpha: float) -> float:
        """Return the second derivative of the predicted sum at `alpha`."""
        # (exp p)'' = (p'' + p'^2) exp p
        terms = ((p.deriv(2)(alpha) + p.deriv()(alpha) ** 2) * _exp(p(alpha)) if log
                 else p.deriv(2)(alpha) for p, log in self._parts())  # fmt: skip
        return float(sum(terms))

    def minimum(self, low: float, high: float) -> float:
        """Return the lowest of both ends and the roots at which the derivative turns positive."""
        x = np.linspace(low, high, 129)
        slope = self.slope(x)
        turns = np.flatnonzero((slope[:-1] < 0) & (slope[1:] >= 0))
        xtol = 4 * np.finfo(float).eps * max(abs(low), abs(high), high - low)
        roots = [optimize.brentq(self.slope, *x[i : i + 2], xtol=xtol, rtol=1e-14) for i in turns]
        return float(min([*roots, low, high], key=lambda a: float(self(a))))

    def _parts(self) -> Iterable[tuple[Polynomial, bool]]:
        return zip(self.polynomials, self.logs, strict=True)


def fit_quintic(samples: Iterable[Evaluation]) -> Polynomial:
    """Return the polynomial through the sum at the six samples around the lowest one (`window`).

    Fewer give a lower degree; fewer than two, or two at one alpha, raise ValueError.

    >>> from paintlib.solver import Evaluation
    >>> p = fit_quintic(Evaluation(a, (a - 0.3) ** 2, ()) for a in (0.0, 0.5, 1.0))
    >>> print(p.degree(), p.deriv().roots().round(12))
    2 [0.3]
    """
    chosen = window(sorted(samples))
    return _interpolate([s.alpha for s in chosen], [s.value for s in chosen])


def fit_parts(samples: Iterable[Evaluation]) -> Fit:
    """Return the model of `log_quintic`: a polynomial per part, samples chosen as in `fit_quintic`.

    A part that is positive at all of them is fitted by its logarithm, which along a path is closer
    to a polynomial than the loss; unless the lowest sample, left out, is predicted three times
    better without (as after `minmax`, whose zeros are poles). Errors are those of `fit_quintic`.
    """
    chosen = window(sorted(samples))
    alphas = [s.alpha for s in chosen]
    columns = [np.array(column) for column in zip(*(s.parts for s in chosen), strict=True)]
    best = min(range(len(chosen)), key=lambda i: chosen[i].value)
    logs = tuple(_log_is_smoother(alphas, column, best) for column in columns)
    columns = [np.log(column) if log else column for column, log in zip(columns, logs, strict=True)]
    return Fit(tuple(_interpolate(alphas, column) for column in columns), logs)


def window(samples: list[Evaluation]) -> list[Evaluation]:
    """Return up to six neighbouring samples around the lowest of the ascending `samples`.

    They are found from the smallest bracketing interval (the lowest sample and its neighbours)
    outwards, the nearer sample first; at equal distance, the one with the lower value.
    """
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples given; a fit needs at least two")
    best = min(range(len(samples)), key=lambda i: samples[i].value)
    first, last = max(best - 1, 0), min(best + 1, len(samples) - 1)
    centre = 0.5 * (samples[first].alpha + samples[last].alpha)
    tie = SAME * (samples[-1].alpha - samples[0].alpha) or 1.0

    def order(sample: Evaluation) -> tuple[int, float]:
        return round(abs(sample.alpha - centre) / tie), sample.value

    return sorted(sorted(samples, key=order)[:POINTS])


def log_spline(alphas: ArrayLike, losses: ArrayLike) -> Callable[[ArrayLike], NDArray[np.float64]]:
    """Return a curve through all samples: a cubic spline of the logarithm of the losses.

    `alphas` ascend, `(n,)`; `losses` are positive, `(n,)` or `(n, curves)`.

    >>> round(float(log_spline([0.0, 0.5, 1.0], [1.0, 0.5, 0.25])(0.25)), 6)
    0.707107
    """
    spline = interpolate.CubicSpline(alphas, np.log(losses))
    return lambda alpha: np.asarray(np.exp(spline(alpha)))


def _exp(x: ArrayLike) -> NDArray[np.float64]:
    """Return e^x, held below the overflow that a fit to a steep part can reach between samples."""
    return np.exp(np.minimum(x, 600.0))


def _log_is_smoother(alphas: list[float], part: NDArray[np.float64], probe: int) -> bool:
    """Return whether a fit to log(part) predicts the sample `probe`, left out, well enough."""
    if part.min() <= 0:
        return False
    if len(alphas) < 4:
        return True
    x, y = np.delete(alphas, probe), np.delete(part, probe)
    with_log = float(_exp(_interpolate(x, np.log(y))(alphas[probe])))
    without = float(_interpolate(x, y)(alphas[probe]))
    return bool(abs(with_log - part[probe]) <= 3 * abs(without - part[probe]))


def _interpolate(alphas: Sequence[float] | NDArray[np.float64], values: ArrayLike) -> Polynomial:
    """Return the polynomial through all points."""
    for a, b in itertools.pairwise(alphas):
        if a == b:
            raise ValueError(f"alpha = {a} is sampled twice; a fit needs distinct alphas")
    # `full` keeps numpy from warning when samples are so close that the highest terms are lost.
    return Polynomial.fit(np.array(alphas), np.array(values), len(alphas) - 1, full=True)[0]
