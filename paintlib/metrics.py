"""Numbers that describe one curve of losses along the path: pure functions of floats and arrays.

Losses are in nats per image, accuracies are fractions. An argument that is not as described, not
finite, or leaves the number undefined (a vector or a loss that is zero) raises ValueError.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

__all__ = [
    "BackwardTransfer", "Forgetting", "ForgettingPrediction", "backward_transfer", "forgetting",
    "forgetting_prediction", "gradient_similarity", "quasiconvexity_violation",
]  # fmt: skip

CHUNK = 2**22  # numbers that are copied to float64 at a time: 32 MiB


class BackwardTransfer(NamedTuple):
    """The largest fall of the supported loss per unit of distance, and the alpha that gives it."""

    value: float
    alpha: float


class Forgetting(NamedTuple):
    """What patching costs the supported task: relative rise of the loss, drop of the accuracy."""

    loss: float
    accuracy: float


class ForgettingPrediction(NamedTuple):
    """How a loss rises along a path, to second order at its start, relative to the loss there."""

    slope: float  # per unit of alpha
    fisher: float  # per unit of its square
    slope_stderr: float

    def __call__(self, alpha: float) -> float:
        """Return the predicted rise, L(alpha) / L(0) - 1."""
        return alpha * self.slope + alpha**2 / 2 * self.fisher


def gradient_similarity(displacement: Any, gradient: Any) -> float:
    """Return the cosine of the angle between `w_zs - w_ft` and the gradient: (1.6) eq-gs.

    Positive when the first step towards the fine-tuned weights lowers the supported loss.

    `displacement`, `w_zs - w_ft`, and the `gradient` of the supported loss at `w_zs` are flat,
    `(parameters,)`: two arrays, or torch tensors, which stay on their device. Sums are in float64.

    >>> gradient_similarity([3.0, 0.0], [1.0, 1.0])  # doctest: +ELLIPSIS
    0.7071...
    """
    a, b = _flat("displacement", displacement), _flat("gradient", gradient)
    if len(a) != len(b):
        raise ValueError(f"displacement has {len(a)} numbers, gradient has {len(b)}; flatten both")
    # Unit scale first: squares of tiny gradients would underflow, of huge ones overflow.
    scales = _peak(a), _peak(b)
    if 0 in scales:
        zero = "gradient" if scales[0] else "displacement"
        raise ValueError(f"{zero} is zero and has no direction; do the checkpoints differ?")
    sums, double = np.zeros(3), getattr(type(a), "double", np.asarray)
    for i in range(0, len(a), CHUNK):
        x, y = (double(v[i : i + CHUNK]) / scale for v, scale in zip((a, b), scales, strict=True))
        sums += [float(x @ y), float(x @ x), float(y @ y)]
    return max(-1.0, min(1.0, float(sums[0] / np.sqrt(sums[1] * sums[2]))))


def backward_transfer(alphas: ArrayLike, losses: ArrayLike, length: float,
                      slope_at_zero: float | None = None) -> BackwardTransfer:  # fmt: skip
    """Return the largest fall of the supported loss per unit of distance: (1.7) eq-bkt.

    That is the supremum of (L(0) - L(alpha)) / (alpha length), negative if the loss only rises. At
    alpha = 0 its limit is `-slope_at_zero / length`, which a convex loss attains: (4.3) eq-limit.
    With the slope given, the limit competes with the samples.

    `alphas`, `(n,)`, ascend from 0 within [0, 1]; `losses`, `(n,)`, are the supported task's there;
    `length` is the 2-norm of `w_zs - w_ft`; `slope_at_zero` is dL/dalpha at 0, if known.

    >>> backward_transfer([0.0, 0.5, 1.0], [1.0, 0.5, 0.75], length=2.0, slope_at_zero=-3.0)
    BackwardTransfer(value=1.5, alpha=0.0)
    """
    a = _flat("alphas", np.asarray(alphas, float))
    loss = _flat("losses", np.asarray(losses, float))
    if len(a) != len(loss) or len(a) < 2:
        raise ValueError(f"{len(a)} alphas and {len(loss)} losses; pass pairs, two or more")
    if a[0] != 0.0 or a[-1] > 1.0 or not (np.diff(a) > 0).all():
        raise ValueError(f"alphas run from {a[0]} to {a[-1]}; they must ascend from 0, end by 1")
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"length is {length}, but the two checkpoints must differ: expected > 0")
    if slope_at_zero is not None and not math.isfinite(slope_at_zero):
        raise ValueError(f"slope_at_zero is {slope_at_zero}; pass a finite slope or None")
    limit = -math.inf if slope_at_zero is None else -slope_at_zero / length
    quotients = np.append(limit, (loss[0] - loss[1:]) / (a[1:] * length))
    best = int(quotients.argmax())  # the limit, if there are equals
    return BackwardTransfer(float(quotients[best]), float(a[best]))


def forgetting(zero_shot: Sequence[float], patched: Sequence[float]) -> Forgetting:
    """Return how much of the supported task the patched weights have lost: (4.6) eq-forgetting.

    The paper (section 6) leaves such a measure to future work. Both numbers of this one are
    negative when the supported task has gained. An argument is a loss and an accuracy, or a
    `Score`: at alpha = 0, and at the alpha that was chosen.

    >>> forgetting((0.5, 0.75), (0.625, 0.5))
    Forgetting(loss=0.25, accuracy=0.25)
    """
    for name, (loss, accuracy) in (("zero-shot", zero_shot[:2]), ("patched", patched[:2])):
        if not 0.0 <= loss < math.inf:
            raise ValueError(f"the {name} loss is {loss}; expected a finite loss of at least 0")
        if not (0.0 <= accuracy <= 1.0 or math.isnan(accuracy)):  # NaN: nobody knows
            raise ValueError(f"the {name} accuracy is {accuracy}; expected a fraction, not percent")
    if zero_shot[0] == 0:
        raise ValueError("the zero-shot loss is 0, so no relative rise is defined")
    return Forgetting(float(patched[0] / zero_shot[0] - 1.0), float(zero_shot[1] - patched[1]))


def forgetting_prediction(logits: ArrayLike, change: ArrayLike, labels: ArrayLike
) -> ForgettingPrediction:  # fmt: skip
    """Predict forgetting from two forward passes at the zero-shot weights: (4.7) eq-prediction.

    That is (alpha g.d + alpha^2/2 d^T G d) / L(0), with d = w_ft - w_zs, the gradient g and the
    Fisher information G at w_zs: the Hessian but for the curvature of the logits, so that far from
    there the rise is as a rule underestimated. g.d is the mean of (p - y).z', and d^T G d that of
    the variance of z' = dz/dalpha under the predictions p, without labels: (4.8) eq-fisher.

    `logits` are z at w_zs, and `change` is z' there, a difference of logits over a small one of
    alpha, both `(n, classes)`; `labels`, `(n,)`, are the right classes.

    >>> round(forgetting_prediction([[0.0, 0.0]], [[1.0, -1.0]], [0])(1.0), 6)
    -0.721348
    """
    z, dz, y = np.asarray(logits, float), np.asarray(change, float), np.asarray(labels)
    if z.ndim != 2 or z.shape != dz.shape or y.shape != z.shape[:1] or not len(z):
        raise ValueError(f"logits {z.shape}, change {dz.shape}, labels {y.shape} do not fit")
    if (wrong := (y < 0) | (y >= z.shape[1])).any():
        label = f"label {y[wrong][0]} of image {int(wrong.argmax())}"
        raise ValueError(f"{label} is no class; labels are 0 to {z.shape[1] - 1}")
    logs = special.log_softmax(z, axis=1)
    p, rows = np.exp(logs), np.arange(len(z))
    loss = 0.0 - float(logs[rows, y].mean())
    if not 0.0 < loss < math.inf:
        raise ValueError(f"the zero-shot loss is {loss}, so no relative rise is defined")
    mean = (p * dz).sum(1)
    slopes = (mean - dz[rows, y]) / loss
    fisher = (p * (dz - mean[:, None]) ** 2).sum(1).mean() / loss
    error = float(slopes.std()) / math.sqrt(len(z))
    return ForgettingPrediction(float(slopes.mean()), float(fisher), error)


def quasiconvexity_violation(values: ArrayLike) -> float:
    r"""Return by how much a sampled curve, `(n,)`, fails to be quasi-convex; 0 for one valley.

    $$\max_{i<j<k} \; f_j - \max(f_i, f_k)$$

    >>> quasiconvexity_violation([0.0, 1.0, 0.25, 2.0])
    0.75
    """
    f = _flat("values", np.asarray(values, float))
    # the best partners of j are the lowest values before and after it
    left = np.minimum.accumulate(f)[:-2]
    right = np.minimum.accumulate(f[::-1])[::-1][2:]
    return float((f[1:-1] - np.maximum(left, right)).max(initial=0.0))


def _flat(name: str, values: Any) -> Any:
    """Return an array of float64, or a torch tensor as it is, if it is flat and finite."""
    vector = values.detach() if hasattr(values, "detach") else np.asarray(values, float)
    if vector.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(vector.shape)}; flatten it to one dimension")
    if not math.isfinite(_peak(vector)):
        bad = ~(abs(vector) < math.inf)
        first = int(bad.nonzero()[0][0])
        what = f"{int(bad.sum())} numbers that are not finite, first: {float(vector[first])}"
        raise ValueError(f"{name} has {what} at index {first}")
    return vector


def _peak(vector: Any) -> float:
    """Return the largest magnitude, without a copy of the vector; NaN if there is one."""
    return max(float(vector.max()), -float(vector.min())) if len(vector) else 0.0
