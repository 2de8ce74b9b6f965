"""What an alpha chosen on few images costs on all of them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from experiment import results


def read(folder: Path | str) -> pd.DataFrame:
    """Return what n images can tell, one row for each pair and n: `images` of each task.

    A column for each search has its mean regret on all images, a fraction of the lowest sum.
    "curvature" is F''(alpha*)/F(alpha*), NaN where alpha* is an end; "cost of images" is half of
    it times the squared standard error: the regret that section 3.6 expects of an exact search.
    """
    parts = []
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
            parts.append(pd.DataFrame(first | {"images": told["sizes"]} | known))
    frame = pd.concat(parts, ignore_index=True).astype({"stderr": float, "coverage": float})
    frame["cost of images"] = frame["curvature"] * frame["stderr"] ** 2 / 2
    return frame


def pays_from(images: ArrayLike, exact: ArrayLike, other: ArrayLike) -> float:
    """Return from how many images on the regret of `other` is at least twice that of `exact`.

    Between the sizes, which ascend, the logarithms follow straight lines. The first size where it
    is so everywhere, infinite where it is not so at the last, NaN where a regret is not known.
    """
    # regrets of 0, as at an end that every search finds, are equal and no more
    n, ours, theirs = (np.log(np.maximum(np.asarray(row), 1e-15)) for row in (images, exact, other))
    above = theirs - ours - math.log(2)
    if np.isnan(above).any():
        return math.nan
    short = np.flatnonzero(above < -1e-12)
    if not len(short):
        return float(np.exp(n[0]))
    i = int(short[-1])
    if i == len(n) - 1:
        return math.inf
    return float(np.exp(n[i] - above[i] * (n[i + 1] - n[i]) / (above[i + 1] - above[i])))
