"""Which alpha is best when the two tasks do not count alike: pure functions of sampled losses.

The paper weighs both tasks equally. Here a reader says how much the patching task counts, or how
much worse the supported task may become.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_alpha(
    alphas: ArrayLike, supported: ArrayLike, patching: ArrayLike, weight: float = 0.5
) -> float:
    r"""Return the sampled alpha with the lowest weighted sum of both relative losses.

    $$(1 - w) \frac{L_s(\alpha)}{L_s(0)} + w \frac{L_p(\alpha)}{L_p(0)}$$

    A weight of 0.5 is the paper's sum with the normalisation `zero_shot`. Of equal sums the
    smallest alpha is returned.

    Args:
        alphas: `(n,)`, the first 0.
        supported: `(n,)`, the supported task's loss at each alpha, in any unit.
        patching: `(n,)`, the patching task's.
        weight: w, what the patching task counts; 0 to 1.

    Raises:
        ValueError: the weight is not in [0, 1]; lengths differ; alphas do not begin with 0; a loss
            is not finite, or is not positive at alpha = 0.

    >>> best_alpha([0.0, 0.5, 1.0], [1.0, 1.2, 2.0], [4.0, 2.0, 1.0])
    0.5
    >>> best_alpha([0.0, 0.5, 1.0], [1.0, 1.2, 2.0], [4.0, 2.0, 1.0], weight=1.0)
    1.0
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight is {weight}; expected what the patching task counts, 0 to 1")
    at, kept, repaired = _relative(alphas, supported, patching)
    return float(at[np.argmin((1 - weight) * kept + weight * repaired)])


def best_under_ceiling(
    alphas: ArrayLike, supported: ArrayLike, patching: ArrayLike, ceiling: float
) -> float:
    r"""Return the sampled alpha with the lowest patching loss that the supported loss allows.

    Allowed is an alpha with $L_s(\alpha) \le (1 + c) L_s(0)$. Alpha = 0 always is. Of equal
    patching losses the smallest alpha is returned.

    Args and errors are those of `best_alpha`, but for `ceiling`: c, the relative rise of the
    supported loss that is allowed, 0.01 is 1 %. It must not be negative.

    >>> best_under_ceiling([0.0, 0.5, 1.0], [1.0, 1.2, 2.0], [4.0, 2.0, 1.0], ceiling=0.25)
    0.5
    """
    if not ceiling >= 0:
        raise ValueError(f"ceiling is {ceiling}; expected a rise of at least 0, say 0.01 for 1 %")
    at, kept, repaired = _relative(alphas, supported, patching)
    return float(at[np.argmin(np.where(kept <= 1 + ceiling, repaired, np.inf))])


def _relative(*rows: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    at, *losses = (np.asarray(row, dtype=np.float64) for row in rows)
    shapes = [row.shape for row in (at, *losses)]
    if len(set(shapes)) > 1 or at.ndim != 1 or not at.size or at[0] != 0:
        raise ValueError(f"alphas and losses have shapes {shapes}; expected rows that begin at 0")
    if not all(np.isfinite(row).all() and row[0] > 0 for row in losses):
        raise ValueError("a loss is not finite, or not positive at alpha = 0")
    return at, *(row / row[0] for row in losses)
