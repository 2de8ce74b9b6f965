"""What the paper leaves open, enumerated: each reading of its search against each exhaustive one.

No model is evaluated: between the samples of a pair its losses are those of `log_spline`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from experiment import report
from experiment.claims import EXCEPTIONS, TIE
from experiment.evidence.rules import Truth
from paintlib import solver
from paintlib.fits import POINTS
from paintlib.normalisation import NORMALISATIONS

PAPER = 2.1  # per cent, the paper's largest gain
NEAR = (1.5, 3.0)  # per cent: as large as that, roughly
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the exhaustive search
GRID = np.linspace(0.0, 1.0, 101)  # the samples of all of them
DENSE = np.linspace(0.0, 1.0, 10_001)
DELTA = 0.005  # of alpha, for a second difference

Floats = NDArray[np.float64]
Objective = Callable[[ArrayLike], Floats]  # the sums at some alphas
Evidence = Mapping[str, Mapping[str, Any]]  # by patching task


class Found(NamedTuple):
    """How a search ends: the root of its polynomial, and the lowest sum it has paid for."""

    root: float
    paid: float


def bracketed(total: Objective, step: float) -> Found:
    """Put a quintic through the six samples of a grid around its smallest bracket."""
    alphas = _grid(step)
    return _through(alphas, total(alphas))


def least_squares(total: Objective, step: float) -> Found:
    """Fit a quintic to all samples of a grid by least squares; take its lowest point in [0, 1]."""
    alphas = _grid(step)
    values = total(alphas)
    polynomial = Polynomial.fit(alphas, values, POINTS - 1)
    # the real part of a complex root competes too, and cannot win
    places = np.clip([*polynomial.deriv().roots().real, 0.0, 1.0], 0.0, 1.0)
    return Found(float(places[polynomial(places).argmin()]), float(values.min()))


def golden(total: Objective) -> Found:
    """Narrow the bracket by golden section until six points are paid for, a quintic's worth."""
    narrowed = solver.golden(lambda alpha: float(total(alpha)), max_evals=POINTS)
    return _through(*np.transpose([visit[:2] for visit in narrowed.trace]))


VARIANTS = (
    "six samples at the bracket",  # of the exhaustive search
    "least squares, 11 samples",
    "least squares, 21 samples",
    "golden section, six points",
)


def enumerate_choices(pairs: Sequence[report.Pair], evidence: Evidence | None = None
) -> pd.DataFrame:  # fmt: skip
    """Return one row for each set of choices: in how many pairs, and by how much, it is lower.

    A search that is not verified ends at its root; one that is, at the better of the root and the
    lowest sample it has paid for. What it gains over the exhaustive search is measured on the
    images alpha is chosen on: those of the validation and, with the `evidence` of these pairs,
    those of the test. "loses" names the pairs in which it is higher, "ties" those in which it is
    equal. "exceptions" is whether the pairs in which it is not lower are the paper's two, and
    "fingerprint" whether the largest gain rounds to the paper's besides.
    """
    keys = np.array([f"{pair['supported']}-{pair['patching']}" for pair in pairs])
    names = np.array(["-".join(pair["labels"][role] for role in report.ROLES) for pair in pairs])
    rows = []
    for (images, own), kind in itertools.product(_images(pairs, evidence), NORMALISATIONS):
        searched = [_search(_objective(pair, kind)) for pair in own]
        grids, ends = (np.array(part) for part in zip(*searched, strict=True))
        for (v, variant), (s, step), verified in itertools.product(
            enumerate(VARIANTS), enumerate(STEPS), (False, True)
        ):
            grid, end = grids[:, s], ends[:, s, v, int(verified)]
            lower, higher = grid - end > TIE, end - grid > TIE
            top = max(_gain(*both) for both in zip(grid, end, strict=True))
            alike = sorted(keys[~lower]) == sorted(EXCEPTIONS)
            rows.append({
                "variant": variant, "verified": verified, "step": step, "normalisation": kind,
                "images": images, "wins": int(lower.sum()), "largest gain %": top,
                "loses": ", ".join(names[higher]), "ties": ", ".join(names[~lower & ~higher]),
                "exceptions": alike, "fingerprint": alike and round(top, 1) == PAPER,
            })  # fmt: skip
    return pd.DataFrame(rows)


def limits(pairs: Sequence[report.Pair], evidence: Evidence | None = None) -> pd.DataFrame:
    """Return what no search can exceed, one row for each pair, normalisation and set of images.

    "alpha" is that of the lowest sum on the path, "bend" is F''/F there (0 at an end), and "step h"
    by how many per cent the sum is lower there than at the best point of a grid. To first order
    that is at most 100 h^2/8 times the bend, (3.2) eq-grid-excess.
    """
    rows = []
    for (images, own), kind in itertools.product(_images(pairs, evidence), NORMALISATIONS):
        for pair in own:
            total = _objective(pair, kind)
            values = total(DENSE)
            alpha, lowest = float(DENSE[values.argmin()]), float(values.min())
            left, right = total([alpha - DELTA, alpha + DELTA])
            inside = 0 < alpha < 1 and lowest > TIE
            gains = {f"step {h:g}": _gain(total(_grid(h)).min(), lowest) for h in STEPS}
            rows.append({
                "images": images, "normalisation": kind, "pair": report.name(pair), "alpha": alpha,
                "bend": (left - 2 * lowest + right) / DELTA**2 / lowest if inside else 0.0, **gains,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _search(total: Objective) -> tuple[list[float], Floats]:
    """Return the lowest sum of each grid, and what the variants end with, (steps, variants, 2)."""
    others = (least_squares(total, 0.1), least_squares(total, 0.05), golden(total))
    found = np.array([[bracketed(total, step), *others] for step in STEPS])
    roots = total(found[..., 0])
    ends = np.stack([roots, np.minimum(roots, found[..., 1])], axis=-1)
    return [float(total(_grid(step)).min()) for step in STEPS], ends


def _images(pairs: Sequence[report.Pair], evidence: Evidence | None
) -> list[tuple[str, list[report.Pair]]]:  # fmt: skip
    """Return the pairs with the curves of their validation images, and if known of the test's."""
    sets = [("validation", list(pairs))]
    if evidence:
        sets.append(("test", [_tested(pair, evidence[pair["patching"]]) for pair in pairs]))
    return sets


def _tested(pair: report.Pair, found: Mapping[str, Any]) -> report.Pair:
    truth = Truth.of(found, *(pair[role] for role in report.ROLES))
    curves = {
        role: {"classes": pair["curves"][role]["classes"], "loss": loss.tolist()}
        for role, loss in zip(report.ROLES, truth.losses, strict=True)
    }
    return {**pair, "curves": {"alphas": truth.alphas.tolist(), **curves}}


def _objective(pair: report.Pair, kind: str) -> Objective:
    curve = report.curve(pair, kind)
    return lambda alpha: np.asarray(curve(alpha).sum(0))


def _through(alphas: Floats, values: Floats) -> Found:
    """Search as `solver.quintic` does with these samples, and do not evaluate the root."""
    known = [solver.Evaluation(float(a), float(v), ()) for a, v in zip(alphas, values, strict=True)]
    found = solver.quintic(lambda _: 0.0, known=known, verify=False)
    return Found(found.alpha, float(values.min()))


def _gain(grid: float, end: float) -> float:
    """Return by how many per cent `end` is below `grid`; where that is 0, there are none."""
    return float(100 * (1 - end / grid)) if grid > TIE else 0.0


def _grid(step: float) -> Floats:
    return GRID[:: round(step * (len(GRID) - 1))]
