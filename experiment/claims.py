"""The paper's claims, judged on the pairs of a run, for every page that shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiment import report
from paintlib.metrics import quasiconvexity_violation

TIE = 1e-12  # of a loss sum: rounding
TOLERANCE = 1e-4  # of a curve's range: a bump this small moves no minimum that matters
SURE = 1.96  # standard errors
EXCEPTIONS = ["CIFAR10-GTSRB", "STL10-EuroSAT"]  # the paper's two pairs without a gain

Evidence = Mapping[str, Mapping[str, Any]]  # by patching task


def per_pair(pairs: Sequence[report.Pair], evidence: Evidence | None = None) -> pd.DataFrame:
    """Return what is claimed, one row a pair; "root" is the quintic's alone, its loss measured.

    "transfers surely" is missing without the `evidence` of these pairs.
    """
    rows = []
    for pair in pairs:
        total, alphas = report.normalised(pair).sum(0), pair["curves"]["alphas"]
        grid, quintic, log = (pair["solutions"][name]["value"] for name in report.SOLVERS)
        visits, metrics = pair["solutions"]["quintic"]["trace"], pair["metrics"]
        root = next((v for a, v, _ in visits if a not in alphas), grid)  # or one of the samples
        transfer = metrics["backward_transfer"]
        rows.append({
            "id": f"{pair['supported']}-{pair['patching']}", "pair": report.name(pair),
            "supported": pair["supported"], "gain %": 100 * report.gain(pair),
            "gain error %": 100 * report.gain_error(pair),
            "root gain %": 100 * (1 - root / grid) if root != grid else 0.0,
            "log-quintic gain %": 100 * report.gain(pair, "log_quintic"),
            "lower": grid - quintic > TIE, "root lower": grid - root > TIE,
            "root above": root - grid > TIE, "log-quintic lower": grid - log > TIE,
            "beyond error": report.told_apart(pair), "transfers": transfer["value"] > 0,
            "quasi-convex": quasiconvexity_violation(total) <= TOLERANCE * np.ptp(total),
            "similarity": metrics["gradient_similarity"], "transfer": transfer["value"],
            "at the limit": transfer["alpha"] == 0,
        })  # fmt: skip
        if evidence:
            told = evidence[pair["patching"]]["forgetting"][pair["supported"]]
            rows[-1]["transfers surely"] = told["slope"] < -SURE * told["slope_stderr"]
    return pd.DataFrame(rows)


def judge(pairs: Sequence[report.Pair], evidence: Evidence | None = None) -> pd.DataFrame:
    """Return one row a claim: the paper's number, this run's, the weakest fitting verdict, why.

    Backward transfer is judged by the slopes that the `evidence` of these pairs tells from 0.
    """
    frame, n, dry = per_pair(pairs, evidence), len(pairs), any(map(report.is_dry, pairs))
    profile, best = pairs[0]["run"]["profile"], frame.iloc[int(frame["gain %"].argmax())]
    real, drawn = profile == "paper", profile not in ("paper", "micro-clean")  # to show a claim
    sure, searches = best["beyond error"], ("root lower", "log-quintic lower")
    missed, its = (", ".join(frame.loc[~frame[c], "id"]) or "none" for c in searches)
    held, cifar = frame.select_dtypes(bool).sum(), frame[frame["supported"] == "CIFAR10"]
    count, limit = "in " + held.astype(str) + f" of {n}", cifar["at the limit"].sum()
    found = report.Correlation.of(cifar["similarity"], cifar["transfer"])
    falling = held.get("transfers surely")  # None without evidence

    def verdict(holds: bool, kind: str = "holds", testable: bool = n == 36) -> str:
        return "not testable here" if dry or not testable else kind if holds else "does not hold"

    rows = [
        ("The loss sum is quasi-convex in alpha", "in all pairs", count["quasi-convex"], "", "",
         verdict(held["quasi-convex"] == n), "no bump above 0.01 % of the curve's range"),
        ("The loss sum is lower than the exhaustive search's", "in 34 of 36", count["lower"],
         count["root lower"], count["log-quintic lower"],
         verdict(held["lower"] >= 34, "true by construction"),
         "never higher, as the better of root and grid is returned; unverified it can be; "
         f"{held['beyond error']} differences exceed their sampling error"),
        ("The exceptions are two", ", ".join(EXCEPTIONS), "cannot lose",
         missed, its, verdict(missed == ", ".join(EXCEPTIONS), testable=real),
         "pairs where the root alone is not lower; which they are depends on the real data sets"),
        ("The loss sum is lower by up to 2.1 %", "2.1 %", f"{best['gain %']:.2f} %",
         f"{frame['root gain %'].max():.2f} %", f"{frame['log-quintic gain %'].max():.2f} %",
         verdict(best["gain %"] >= 2.05, "holds" if sure else "below the sampling error"),
         f"{best['pair']}; {'beyond' if sure else 'within'} its sampling error"),
        ("Supported losses show backward transfer", "as a rule", count["transfers"]
         + ("" if falling is None else f", {falling} beyond error"), "", "",
         verdict(held["transfers"] > n / 2, "below the sampling error"
         if falling is not None and falling <= n / 2 else "designed in" if drawn else "holds"),
         "in more than half of the pairs" + ("" if falling is None else "; beyond error where the "
         f"slope at 0 is {SURE} standard errors below 0") + ("; the twins were drawn to show it"
                                                if drawn else "")),
        ("GradientSimilarity and BackwardKnowledgeTransfer are positively correlated for CIFAR10",
         "yes (figure)", f"r = {found.pearson:.2f}, n = {found.n}" if found.pearson == found.pearson
         else str(found), "", "",
         verdict(found.pearson > 0 and found.p < 0.05,
         "true by construction" if 2 * limit > found.n else "holds", found.n >= 3),
         f"an identity where the limit α → 0 is the maximum, in {limit} of {found.n} pairs"),
    ]  # fmt: skip
    columns = ("claim", "paper", "quintic", "unverified", "log-quintic", "verdict", "why")
    return pd.DataFrame(rows, columns=columns)
