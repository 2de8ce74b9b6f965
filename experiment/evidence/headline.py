"""The numbers that the project quotes of a run, and their range over seeds."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiment import claims, report
from experiment.claims import SURE
from experiment.evidence import archive, rules

RULES = ("the loss rule", "PAINT's rule")
ERROR = "gain's sampling error, median"


def of(pairs: Sequence[report.Pair]) -> dict[str, float]:
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
        ERROR: SURE * float(frame["gain error %"].median()),
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


def spread(folder: Path | str, of_these: Collection[str] = ()) -> pd.DataFrame:
    """Return the headline numbers over the seeds: a row each, its range, a column for each seed.

    `of_these` are the display names of the pairs to take, if not all.
    """
    columns = {}
    for seed, kept in archive.read_kept(folder, "seeds").items():
        pairs = [p for p in kept["pairs"] if not of_these or report.name(p) in of_these]
        columns[seed] = of(pairs) | rules.means(pairs, kept["evidence"])
    for numbers in columns.values():
        for role, what, sign in (("supported", "kept", 1), ("patching", "given up", -1)):
            loss, paint = (numbers[f"{role} accuracy, {rule}"] for rule in RULES)
            numbers[f"{role} points {what}"] = sign * (loss - paint)
    frame = pd.DataFrame(columns)
    ends = pd.DataFrame({"lowest": frame.min(axis=1), "highest": frame.max(axis=1)})
    return pd.concat([ends, frame], axis=1)


def outside(row: Mapping[str, float]) -> bool:
    """Return whether "this run" is farther from the seeds' range than half the range's width."""
    low, value, high = row["lowest"], row["this run"], row["highest"]
    margin = (high - low) / 2
    return bool(value < low - margin or value > high + margin)  # false where nothing is known


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Return headline numbers for print, with no more digits than their range over seeds has."""

    def digits(name: str) -> int:
        kinds = {
            "accuracy": 1, "points": 1, "evaluations": 1, "standard error": 3,
            "mean alpha": 2, "gain": 2, "correlation": 2,
        }  # fmt: skip
        return next((kinds[kind] for kind in kinds if kind in name), 0)

    rows = {
        name: [f"{value:.{digits(str(name))}f}" if value == value else "–" for value in row]
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=frame.columns)


def span(frame: pd.DataFrame, name: str, form: str = "{:.0f}") -> str:
    """Return the range of a headline number over the seeds for print: "35 to 36", or "36"."""
    ends = [form.format(frame.loc[name, end]) for end in ("lowest", "highest")]
    return " to ".join(dict.fromkeys(ends))


def sentences(spread: pd.DataFrame) -> list[str]:
    """Return the three sentences that the home page, the claims and README begin with."""

    def said(name: str, form: str = "{:.0f}") -> str:
        return span(spread, name, form)

    pairs, seeds, beyond = said("pairs"), len(spread.columns) - 2, said("beyond sampling error")
    return [
        f"Over {seeds} seeds of the reference the paper's quintic finds a lower loss sum than the "
        f"exhaustive search in {said('quintic lower')} of {pairs} pairs, by "
        f"{said('median gain', '{:.2f}')} % at the median and "
        f"{said('largest gain', '{:.2f}')} % at most; the sampling error of such a gain is "
        f"±{said(ERROR, '{:.2f}')} % at the median (1.96 standard errors), and "
        f"{'no gain exceeds' if beyond == '0' else f'{beyond} of the gains exceed'} its own.",
        "What a polynomial can save is evaluations: our variant, the log-quintic, finds the same "
        f"alpha with {said('evaluations, log-quintic', '{:.1f}')} evaluations beyond the two ends "
        "in place of 19, while the paper's quintic, as we read the paper, takes the 19 of the grid "
        "and one more.",
        "Against PAINT's rule, which takes the best mean accuracy on that grid, the loss sum keeps "
        f"{said('supported points kept', '{:.1f}')} points more accuracy on the supported tasks "
        f"and gives up {said('patching points given up', '{:.1f}')} points on the patching tasks, "
        "with each loss divided by its zero-shot value, as we chose where the paper names nothing.",
    ]
