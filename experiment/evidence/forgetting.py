"""How well forgetting is foretold by what the zero-shot weights know."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from experiment import report, results
from experiment.evidence.rules import Truth
from paintlib import metrics, sampling
from paintlib.store import Store

RISE = 0.05  # of a loss, relative: below it a ratio of rises is a ratio of errors
PREDICTORS = (  # of forgetting; the last five are what a prediction has to beat
    "slope + Fisher", "slope + curvature", "slope", "Fisher alone", "alpha", "path length",
    "gradient similarity", "fall of the patching loss",
)  # fmt: skip

Floats = NDArray[np.float64]


def by_pair(pairs: Sequence[report.Pair], evidence: Mapping[str, Any],
               at: Sequence[float] = (0.3, 0.5, 1.0)) -> pd.DataFrame:  # fmt: skip
    """Return what was predicted and what came, one row for each pair and alpha.

    Predictors are known on validation images at the zero-shot weights, the outcome is the relative
    rise of the supported loss on test images; that on the same images hides the sampling error.
    Each alpha of `at`, and the quintic's ("alpha*").
    """
    rows = []
    for pair in pairs:
        found = evidence[pair["patching"]]
        told = found["forgetting"][pair["supported"]]
        prediction = metrics.ForgettingPrediction(
            told["slope"], told["fisher"], told["slope_stderr"]
        )
        supported, patching = pair["supported"], pair["patching"]
        truth = Truth.of(found, supported, patching)
        losses, known = pair["curves"]["patching"]["loss"], pair["curves"]["supported"]["loss"][0]
        places = {f"{a:g}": a for a in at} | {"α*": pair["solutions"]["quintic"]["alpha"]}
        for where, alpha in places.items():
            rows.append({
                "supported": supported, "patching": patching, "at": where, "alpha": alpha,
                "outcome": float(truth.loss(alpha)[0] / truth.losses[0, 0]) - 1,
                "outcome, same images": report.normalised(pair, "none", [alpha])[0, 0] / known - 1,
                "error": alpha * told["slope_stderr"],  # of the prediction, by the slope alone
                "slope": alpha * told["slope"],
                "slope + Fisher": prediction(alpha),
                "slope + curvature": alpha * told["slope"] + alpha**2 / 2 * told["hessian"],
                "Fisher alone": told["fisher"],
                "gradient similarity": -pair["metrics"]["gradient_similarity"],
                "path length": found["length"],
                "fall of the patching loss": 1 - losses[-1] / losses[0],
            })  # fmt: skip
    return pd.DataFrame(rows)


def slope_error(folder: Path | str, pair: report.Pair) -> float:
    """Return the sampling error of the supported loss's slope at 0, nats per unit of alpha.

    An image's slope is that of the parabola through its losses at the first three samples.
    """
    file = results.find(folder) / "evaluations" / f"{pair['patching']}.npz"
    store, alphas = Store(file, writable=False), pair["curves"]["alphas"][:3]
    rows = [row.losses for alpha in alphas if (row := store.get(alpha, pair["supported"]))]
    slopes = (-3 * rows[0] + 4 * rows[1] - rows[2]) / (2 * alphas[1])
    return math.sqrt(sampling.variance(slopes))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return Spearman's coefficient along the last axis; NaN where one side does not vary."""
    from scipy.stats import rankdata  # takes as long to import as a page's figure to draw

    a, b = (rankdata(side, axis=-1) - (np.shape(side)[-1] + 1) / 2 for side in (x, y))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    nothing = np.full(scale.shape, np.nan)
    return np.asarray(np.divide((a * b).sum(-1), scale, out=nothing, where=scale > 0))


def rank_correlations(frame: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Return how well each predictor of `forgetting` ranks the outcome: a row for it and each "at".

    "pooled" is over all pairs, "within" the mean over supported tasks; the two ranges are of
    pooled, with one patching or one supported task left out. The interval of 95 %, "low" to "high",
    is that of a bootstrap over tasks: 36 pairs share 13 tasks, so tasks are drawn anew and not
    pairs; the "lead" is that of the first predictor over this one in the same draws. Without
    `draws` there is none. Where a predictor does not vary, all is NaN.
    """
    generator, rows = np.random.default_rng(seed), []
    for at, part in frame.groupby("at", sort=False):
        tables = {name: part.pivot(index="supported", columns="patching", values=name).to_numpy()
                  for name in ("outcome", *PREDICTORS)}  # fmt: skip
        y, first = tables.pop("outcome"), None
        down, across = (generator.integers(n, size=(draws, n)) for n in y.shape)
        grid = down[:, :, None], across[:, None, :]
        for name, x in tables.items():
            drawn = rank_correlation(*(table[grid].reshape(draws, y.size) for table in (x, y)))
            first = drawn if first is None else first
            low, high = _range(drawn, (0.025, 0.975))
            lead_low, lead_high = _range(first - drawn, (0.025, 0.975))
            (p_low, p_high), (s_low, s_high) = (
                _range(rank_correlation(*(
                    [np.delete(table, i, k).ravel() for i in range(y.shape[k])] for table in (x, y)
                ))) for k in (1, 0)
            )  # fmt: skip
            own = rank_correlation(x, y)
            rows.append({
                "at": at, "predictor": name,
                "pooled": float(rank_correlation(x.ravel(), y.ravel())), "low": low, "high": high,
                "lead, low": lead_low, "lead, high": lead_high,
                "within": float(np.nanmean(own)) if np.isfinite(own).any() else np.nan,
                "no patching task, low": p_low, "no patching task, high": p_high,
                "no supported task, low": s_low, "no supported task, high": s_high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _range(values: ArrayLike, levels: Sequence[float] = (0.0, 1.0)) -> tuple[float, float]:
    """Return two quantiles of what is a number."""
    low, high = pd.Series(np.asarray(values, float)).quantile(list(levels))
    return low, high


def calibration(frame: pd.DataFrame, predictor: str = "slope + Fisher") -> pd.DataFrame:
    """Return how large the predicted rise is beside the observed: a row for each "at".

    A ratio says little where nothing rose: it is the median over pairs that rose by `RISE`.
    "within" counts the outcomes within 1.96 sampling errors of the slope.
    """
    rows = []
    for at, part in frame.groupby("at", sort=False):
        rose = part[part["outcome"] > RISE]
        ratio, off = rose[predictor] / rose["outcome"], part[predictor] - part["outcome"]
        rows.append({
            "at": at, "alpha": part["alpha"].median(), "observed": part["outcome"].median(),
            "predicted": part[predictor].median(), "rose": len(rose),
            "ratio": ratio.median(), "ratio, low": ratio.min(), "ratio, high": ratio.max(),
            "same sign": int((part[predictor] * part["outcome"] > 0).sum()),
            "within": int((off.abs() <= 1.96 * part["error"]).sum()), "pairs": len(part),
        })  # fmt: skip
    return pd.DataFrame(rows)
