"""What several runs, fresh images and other rules say together; a page reads it, none computes it.

`make evidence` writes it beside the results of the reference: `evidence/PATCHING.json` and
`samples/PATCHING.json` of that run, `seeds/SEED.json` and `ablations/PROFILE.json` of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

from experiment import claims, report, results
from experiment.profiles import ALPHAS
from experiment.run import Run
from paintlib import metrics, solver
from paintlib.fits import log_spline
from paintlib.normalisation import NORMALISATIONS
from paintlib.objective import ImageScores, PairObjective
from paintlib.store import Store

REFERENCE = "results/micro"
DIGITS = 9  # of the numbers that are kept: float32 has fewer, and a gain is a difference
DENSE = np.linspace(0.0, 1.0, 2001)
RISE = 0.05  # of a loss, relative: below it a ratio of rises is a ratio of errors
PREDICTORS = (  # of forgetting; the last five are what a prediction has to beat
    "slope + Fisher", "slope + curvature", "slope", "Fisher alone", "alpha", "path length",
    "gradient similarity", "fall of the patching loss",
)  # fmt: skip

Floats = NDArray[np.float64]


def find(folder: Path | str, kind: str = "evidence") -> Path:
    """Return the results whose evidence a page shows: a run's own, or those of the reference."""
    own = results.find(folder)
    return own if (own / kind).is_dir() else results.find(REFERENCE)


def whose(folder: Path | str, kind: str = "evidence") -> str:
    """Return a note for a page that shows the evidence of the reference and not of its own run."""
    if find(folder, kind).samefile(results.find(folder)):
        return ""
    return (
        "This page shows the evidence of the reference run: it takes hours, and `make evidence` "
        "computes it for a run of your own. "
    )


def keep(run: Run) -> None:
    """Add to the committed results what this run says: as the reference, a seed or an ablation."""
    if run.profile.name.partition("-")[0] != "micro":
        raise ValueError(f"{run.name} is no run of micro; its evidence stays in {run.results}")
    kept = results.ROOT / REFERENCE
    if run.name == "micro":
        for kind in ("evidence", "samples"):
            for file in (run.results / kind).glob("*.json"):
                results.write_json(
                    kept / kind / file.name, _short(results.read_json(file)), flat=True
                )
    kind, name = (
        ("seeds", str(run.seed)) if run.profile.name == "micro" else ("ablations", run.name)
    )
    results.write_json(kept / kind / f"{name}.json", summary(run.results), flat=True)


def summary(folder: Path | str) -> dict[str, Any]:
    """Return what is kept of a run: its pairs without the grid's samples, and its evidence."""
    folder = results.find(folder)
    pairs = results.read_pairs(folder)
    for pair in pairs:
        for found in pair["solutions"].values():
            found["trace"] = [
                row for row in found["trace"] if row[0] not in pair["curves"]["alphas"]
            ]
    evidence = read(folder)
    for found in evidence.values():
        for name in ("entropy", "lines", "fisher"):  # of the reference alone, which keeps them
            found.pop(name, None)
    kept: dict[str, Any] = _short({"pairs": pairs, "evidence": evidence})
    return kept


def _short(value: Any) -> Any:
    """Return numbers with the digits that another run could repeat at best."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _short(part) for name, part in value.items()}
    return [_short(part) for part in value] if isinstance(value, list | tuple) else value


def read(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Return the evidence of a run by patching task; of a run without, nothing."""
    files = sorted((results.find(folder) / "evidence").glob("*.json"))
    return {file.stem: results.read_json(file) for file in files}


def read_kept(folder: Path | str, kind: str) -> dict[str, dict[str, Any]]:
    """Return the summaries of other runs, `seeds` or `ablations`, by their names."""
    files = sorted((results.find(folder) / kind).glob("*.json"))
    return {file.stem: results.read_json(file) for file in files}


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
    def of(cls, evidence: Mapping[str, Any], supported: str, patching: str) -> Truth:
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


def rules(folder: Path | str) -> pd.DataFrame:
    """Return one row for each pair and rule: the alpha it chooses, its price, what that is worth.

    "regret" is by how much the true loss sum is above its lowest on the path, a fraction; a rule
    that leaves the path may be below. "evaluations" are those beyond the two ends.
    """
    pairs, evidence = results.read_pairs(folder), read(folder)
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


def _choices(pair: report.Pair, pairs: Sequence[report.Pair], evidence: Mapping[str, Any]
) -> Iterator[tuple[str, float, int]]:  # fmt: skip
    curves, found = pair["curves"], pair["solutions"]
    alphas = np.array(curves["alphas"])
    accuracy = np.mean([curves[role]["accuracy"] for role in report.ROLES], 0)
    for name, stride in (("accuracy, grid 0.1", 2), ("accuracy, grid 0.05", 1)):
        kept = alphas[::stride]
        yield name, float(kept[accuracy[::stride].argmax()]), len(kept) - 2
    for solver_name, name in report.SOLVERS.items():
        words = "loss, grid 0.05" if solver_name == "grid" else f"loss, {name}"
        yield words, found[solver_name]["alpha"], found[solver_name]["evaluations"]
    for kind in NORMALISATIONS:
        if kind != pair["normalisation"]:
            solution = on_curves(pair, kind)
            yield f"loss, quintic, {kind}", solution.alpha, len(alphas) - 2 + solution.evaluations
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


def on_curves(pair: report.Pair, kind: str, **options: Any) -> solver.Solution:
    """Return the quintic of a pair under another normalisation, on splines through its curves."""

    def objective(alpha: float) -> list[float]:
        return [float(part) for part in report.normalised(pair, kind, [alpha])[:, 0]]

    parts = report.normalised(pair, kind).T
    known = [solver.Evaluation(a, math.fsum(p), tuple(map(float, p)))
             for a, p in zip(pair["curves"]["alphas"], parts, strict=True)]  # fmt: skip
    return solver.quintic(objective, known=known, **options)


def taylor(pair: report.Pair) -> float:
    """Return the minimum in [0, 1] of the parabola through the sum at 0, 0.05 and 0.1."""
    f, h = report.normalised(pair).sum(0)[:3], pair["curves"]["alphas"][1]
    slope, curvature = (-3 * f[0] + 4 * f[1] - f[2]) / (2 * h), (f[0] - 2 * f[1] + f[2]) / h**2
    if curvature <= 0:
        return float(slope < 0)
    return float(np.clip(-slope / curvature, 0.0, 1.0))


def forgetting(pairs: Sequence[report.Pair], evidence: Mapping[str, Any],
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
        for where, alpha in [
            *((f"{a:g}", a) for a in at),
            ("α*", pair["solutions"]["quintic"]["alpha"]),
        ]:
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


def headline(pairs: Sequence[report.Pair]) -> dict[str, float]:
    """Return the numbers that the project quotes of a run, by name; shares are in per cent."""
    frame = claims.per_pair(pairs)
    cifar = frame[frame["supported"] == "CIFAR10"]
    found = {name: [pair["solutions"][name] for pair in pairs] for name in report.SOLVERS}
    tests = {
        (at, role): 100 * float(np.mean([pair["test"][at][role]["accuracy"] for pair in pairs]))
        for at in ("zero_shot", "quintic", "fine_tuned") for role in report.ROLES
    }  # fmt: skip
    lower = [report.test_sum(p, "quintic") < report.test_sum(p, "grid") for p in pairs]
    errors = [pair["sampling"]["stderr"]["log_quintic"] for pair in pairs]
    known = [error[0] for error in errors if error and error[0]]
    numbers: dict[str, float] = {
        "pairs": len(pairs),
        "quasi-convex": int(frame["quasi-convex"].sum()),
        "quintic lower": int(frame["lower"].sum()),
        "quintic's root alone above": int(frame["root above"].sum()),
        "quintic lower on test images": int(np.sum(lower)),
        "beyond sampling error": int(frame["beyond error"].sum()),
        "largest gain": float(frame["gain %"].max()),
        "median gain": float(frame["gain %"].median()),
        "largest gain, log-quintic": float(frame["log-quintic gain %"].max()),
        "evaluations, log-quintic": float(
            np.mean([x["evaluations"] for x in found["log_quintic"]])
        ),
        "mean alpha": float(np.mean([x["alpha"] for x in found["quintic"]])),
        "standard error of alpha": float(np.median(known)) if known else math.nan,
        "backward transfer": int(frame["transfers"].sum()),
        "correlation, CIFAR10": report.Correlation.of(
            cifar["similarity"], cifar["transfer"]
        ).pearson,
    }
    words = {"zero_shot": "zero-shot", "quintic": "at alpha*", "fine_tuned": "fine-tuned"}
    numbers |= {f"{role} accuracy, {words[at]}": x for (at, role), x in tests.items()}
    return numbers


def rule_means(pairs: Sequence[report.Pair], evidence: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean test accuracies of PAINT's rule and of the paper's, in per cent."""
    found: dict[str, list[Floats]] = {"accuracy, grid 0.05": [], "loss, quintic": []}
    for pair in pairs:
        truth = Truth.of(evidence[pair["patching"]], pair["supported"], pair["patching"])
        for rule, alpha, _ in _choices(pair, [], {}):
            if rule in found:
                found[rule].append(100 * truth.accuracy(alpha))
    means: dict[str, float] = {}
    for rule, rows in found.items():
        supported, patching = np.mean(rows, 0)
        both = {"supported": supported, "patching": patching, "mean": (supported + patching) / 2}
        means |= {f"{name} accuracy, {rule}": float(value) for name, value in both.items()}
    return means


def spread(folder: Path | str) -> pd.DataFrame:
    """Return the headline numbers over the seeds: a row each, its range, a column for each seed."""
    columns = {
        seed: headline(kept["pairs"]) | rule_means(kept["pairs"], kept["evidence"])
        for seed, kept in read_kept(folder, "seeds").items()
    }
    frame = pd.DataFrame(columns)
    ends = pd.DataFrame({"lowest": frame.min(axis=1), "highest": frame.max(axis=1)})
    return pd.concat([ends, frame], axis=1)


def no_spread(names: Iterable[str]) -> pd.DataFrame:
    """Return the ranges where no seed was kept: none is known."""
    return pd.DataFrame(np.nan, index=[*names], columns=["lowest", "highest"])


def outside(row: Mapping[str, float]) -> bool:
    """Return whether "this run" is farther from the seeds' range than half the range's width."""
    low, value, high = row["lowest"], row["this run"], row["highest"]
    margin = (high - low) / 2
    return bool(value < low - margin or value > high + margin)  # false where nothing is known


def span(frame: pd.DataFrame, name: str, form: str = "{:.0f}") -> str:
    """Return the range of a headline number over the seeds for print: "35 to 36", or "36"."""
    ends = [form.format(frame.loc[name, end]) for end in ("lowest", "highest")]
    return " to ".join(dict.fromkeys(ends))


def read_samples(folder: Path | str) -> pd.DataFrame:
    """Return what n images can tell, one row for each pair and n: `images` of each task.

    A column for each search has its mean regret on all images, a fraction of the lowest sum.
    "curvature" is F''(alpha*)/F(alpha*), NaN where alpha* is an end; "cost of images" is half of
    it times the squared standard error: the regret that section 3.6 expects of an exact search.
    """
    rows = []
    for file in sorted((results.find(folder) / "samples").glob("*.json")):
        told = results.read_json(file)
        for supported, found in told["pairs"].items():
            known = dict(found)
            alpha, value, bend = (known.pop(key) for key in ("alpha", "value", "curvature"))
            first = {
                "supported": supported, "patching": file.stem, "draws": told["draws"],
                "fresh images": min(known.pop("images")), "alpha": alpha,
                "curvature": bend / value if 0 < alpha < 1 else math.nan,
            }  # fmt: skip
            for i, size in enumerate(told["sizes"]):
                rows.append(first | {"images": size} | {key: row[i] for key, row in known.items()})
    frame = pd.DataFrame(rows).astype({"stderr": float, "coverage": float})
    frame["cost of images"] = frame["curvature"] * frame["stderr"] ** 2 / 2
    return frame


def pays_from(images: ArrayLike, exact: ArrayLike, other: ArrayLike) -> float:
    """Return from how many images on the regret of `other` is at least twice that of `exact`.

    Between the sizes, which ascend, the logarithms follow straight lines. The first size where it
    is so everywhere, infinite where it is not so at the last.
    """
    n, ours, theirs = (np.log(np.asarray(row, float)) for row in (images, exact, other))
    above = theirs - ours - math.log(2)
    short = np.flatnonzero(above < -1e-12)
    if not len(short):
        return float(np.exp(n[0]))
    i = int(short[-1])
    if i == len(n) - 1:
        return math.inf
    return float(np.exp(n[i] - above[i] * (n[i + 1] - n[i]) / (above[i + 1] - above[i])))


def between(folder: Path | str, supported: str, patching: str) -> PairObjective:
    """Return a pair's objective at any alpha: between the grid's, each image follows a spline."""
    folder = results.find(folder)
    told = results.read_json(folder / "run.json")["tasks"]
    store = Store(folder / "evaluations" / f"{patching}.npz", writable=False)
    curves, names = {}, (supported, patching)
    for name in names:
        rows = [row for alpha in ALPHAS if (row := store.get(alpha, name))]
        curves[name] = CubicSpline(ALPHAS, np.stack([row.losses for row in rows]))

    def evaluate(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
        rows = [np.asarray(curves[name](alpha)) for name in missing]
        return [ImageScores(row, np.zeros(len(row), bool)) for row in rows]  # hits are not asked

    classes = [int(told[name]["classes"]) for name in names]
    return PairObjective.replay(None, names, classes, evaluate=evaluate)


def slope_error(folder: Path | str, pair: report.Pair) -> float:
    """Return the sampling error of the supported loss's slope at 0, nats per unit of alpha.

    An image's slope is that of the parabola through its losses at the first three samples.
    """
    file = results.find(folder) / "evaluations" / f"{pair['patching']}.npz"
    store, alphas = Store(file, writable=False), pair["curves"]["alphas"][:3]
    rows = [row.losses for alpha in alphas if (row := store.get(alpha, pair["supported"]))]
    slopes = (-3 * rows[0] + 4 * rows[1] - rows[2]) / (2 * alphas[1])
    return float(slopes.std() / math.sqrt(len(slopes)))


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
    `draws` there is none. A predictor that does not vary is left out.
    """
    generator, rows = np.random.default_rng(seed), []
    for at, part in frame.groupby("at", sort=False):
        tables = {name: part.pivot(index="supported", columns="patching", values=name).to_numpy()
                  for name in ("outcome", *PREDICTORS)}  # fmt: skip
        y, first = tables.pop("outcome"), None
        down, across = (generator.integers(n, size=(draws, n)) for n in y.shape)
        grid = down[:, :, None], across[:, None, :]
        for name, x in tables.items():
            if not np.ptp(x):
                continue
            drawn = rank_correlation(*(table[grid].reshape(draws, y.size) for table in (x, y)))
            first = drawn if first is None else first
            low, high = _range(drawn, (0.025, 0.975))
            lead_low, lead_high = _range(first - drawn, (0.025, 0.975))
            (p_low, p_high), (s_low, s_high) = (
                _range([rank_correlation(np.delete(x, i, k).ravel(), np.delete(y, i, k).ravel())
                        for i in range(y.shape[k])]) for k in (1, 0)
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
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, levels)
    return float(low), float(high)


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
