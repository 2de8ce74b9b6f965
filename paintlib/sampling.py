"""How sure a sample of images is of alpha*, of the minimum, of a difference; evaluates nothing."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, special

from paintlib.fits import POINTS, fit_parts, log_spline, window
from paintlib.normalisation import normaliser
from paintlib.objective import Alpha, PairObjective
from paintlib.solver import Evaluation, Solution, XTol

__all__ = [
    "Bound", "StandardError", "bootstrap", "bound", "contributions", "difference", "images_needed",
    "second_valley", "standard_error", "tolerance", "variance",
]  # fmt: skip

Samples = Solution | Iterable[Evaluation]
Rows = dict[float, tuple[NDArray[np.float64], ...]]  # what images add, by alpha


class StandardError(NamedTuple):
    """How alpha* and the sum there would vary from one draw of images to another."""

    alpha: float  # NaN at an end of the bracket or without a positive curvature: see `bound`
    value: float


class Bound(NamedTuple):
    """A limit of alpha*: alpha* is at most `alpha` if `below`, else at least."""

    alpha: float
    below: bool


def contributions(objective: PairObjective, alpha: Alpha) -> tuple[NDArray[np.float64], ...] | None:
    """Return what each image adds to its task's part of the sum, an array `(images,)` per task.

    Its mean is the normalised, weighted loss, its variance over the number of images the squared
    sampling error, that of the scale included, to first order (the delta method). Tasks of the same
    images in the same order, by their `digest`, have one array, the sum of theirs: two losses of an
    image vary together. None where `alpha`, or what the scale takes, was not evaluated.
    """
    if not all(map(objective.known, (alpha, *objective.anchors))):
        return None
    rows: dict[object, NDArray[np.float64]] = {}
    start = objective.images(objective.origin)
    for i, (offset, unit) in enumerate(objective.normalisers):
        own = objective.images(alpha)[i].losses
        offsets, units = np.full_like(own, offset), np.full_like(own, unit)  # by image
        if objective.normalisation == "zero_shot":
            units = start[i].losses
        elif objective.normalisation == "minmax":
            curve = [objective.images(sample)[i].losses for sample in objective.samples]
            offsets = min(curve, key=np.mean)
            units = max(curve, key=np.mean) - offsets
        # (L - o) / u, with the error of each of the three added to first order
        value = (own.mean() - offset) / unit
        same = (start[i].digest, len(own)) if start[i].digest else i
        row = objective.weights[i] * ((own - offsets - value * (units - unit)) / unit)
        rows[same] = rows.get(same, 0.0) + row
    return tuple(rows.values())


def difference(objective: PairObjective, first: Alpha,
               second: Alpha) -> tuple[float, float] | None:  # fmt: skip
    """Return F(first) - F(second), F the sum of normalised losses, and its sampling error.

    On the same images most of the error of either cancels. None where one was not evaluated.
    """
    a, b = contributions(objective, first), contributions(objective, second)
    if a is None or b is None:
        return None
    rows = [x - y for x, y in zip(a, b, strict=True)]
    return math.fsum(float(row.mean()) for row in rows), math.sqrt(math.fsum(map(variance, rows)))


def standard_error(objective: PairObjective, samples: Samples) -> StandardError | None:
    """Return the sampling errors of the lowest sample, by the delta method: (3.5) eq-stderr.

    To first order Var(alpha*) = Var(F'(alpha*)) / F''(alpha*)^2, where Var(F') is the sum over the
    tasks (see `contributions`) of Var_i(l_i') / n. An image's slope l_i' is that of the polynomial
    through its losses at the samples around alpha*. None where the lowest sample is not known.
    """
    samples, kept, rows = _known(objective, samples)
    best = kept[0].alpha
    if best not in rows:
        return None
    value = math.sqrt(sum(map(variance, rows[best])))
    if len(rows) < 3 or best in (samples[0].alpha, samples[-1].alpha):
        return StandardError(math.nan, value)
    chosen = [s.alpha for s in window(sorted(s for s in kept if s.alpha in rows))]
    _, spread = _slope(chosen, rows, best)
    curvature = fit_parts(kept).curvature(best)
    return StandardError(spread / curvature if curvature > 0 else math.nan, value)


def bound(objective: PairObjective, samples: Samples, probability: float = 0.95, *,
          below: bool | None = None) -> Bound | None:  # fmt: skip
    """Return the alpha that alpha* is below, or above, with a `probability` from 0.5 to 1.

    It is the first alpha, from the lowest sample on, at which the slope (of the polynomial through
    the six known samples nearest) is above 0 by more than the one-sided quantile of its sampling
    error, as a quasi-convex sum is only above its minimum; or the end of the samples. Unless
    `below` is given, it faces the further end. None where the lowest or two more are not known.
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability is {probability}; give one from 0.5 to 1, 0.95 for instance")
    samples, kept, rows = _known(objective, samples)
    best, low, high = kept[0].alpha, samples[0].alpha, samples[-1].alpha
    if len(rows) < 3 or best not in rows:
        return None
    below = 2 * best <= low + high if below is None else below
    sign, quantile = 1 if below else -1, float(special.ndtri(probability))
    for alpha in np.linspace(best, end := high if below else low, 257).tolist():
        slope, spread = _slope(sorted(rows, key=lambda a: abs(a - alpha))[:POINTS], rows, alpha)
        if sign * slope > quantile * spread:
            return Bound(alpha, below)
    return Bound(end, below)


def tolerance(objective: PairObjective, share: float = 0.1) -> XTol:
    """Return `xtol` for `solver.log_quintic`: a share of the sampling error of alpha*.

    A tenth of it makes the whole error 0.5 % larger. It is at least 0.0001 and at most 0.05 of the
    bracket's width, and 0.001 of that while the samples cannot tell the error.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it is a fraction of the sampling error, say 0.1")

    def xtol(samples: Sequence[Evaluation]) -> float:
        error = standard_error(objective, samples) if len(samples) > 2 else None
        width = samples[-1].alpha - samples[0].alpha if len(samples) > 1 else 1.0
        if error is None or math.isnan(error.alpha):
            return 1e-3 * width
        return float(np.clip(share * error.alpha, 1e-4 * width, 0.05 * width))

    return xtol


def images_needed(stderr: float, images: int, wanted: float) -> int:
    """Return how many images a task give alpha* the standard error `wanted`: (3.6) eq-images.

    `images` gave `stderr`, which falls with the root of their number. A grid of step h errs by
    h / sqrt(12) in the root mean square: fewer images than give that cannot use a finer one.

    >>> images_needed(0.03, 500, wanted=0.05 / 12**0.5)
    2160
    """
    for name, number in (("stderr", stderr), ("images", images), ("wanted", wanted)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name} is {number}; give a positive, finite number")
    return math.ceil(images * (stderr / wanted) ** 2 * (1 - 1e-12))


def second_valley(objective: PairObjective, samples: Samples) -> tuple[float, float] | None:
    """Return how high the ridge before a second valley is, and the sampling error of that height.

    It is the height of a sample between two lower ones over the higher of the two, 0 for a
    quasi-convex sum; above 1.96 errors it is more than noise. None where one of them is not known.
    """
    found = sorted(samples.trace if isinstance(samples, Solution) else samples)
    ridges = [(found[0], found[0])]
    for i in range(1, len(found) - 1):
        valleys = (min(side, key=lambda s: s.value) for side in (found[:i], found[i + 1 :]))
        ridges.append((found[i], max(valleys, key=lambda s: s.value)))
    top, low = max(ridges, key=lambda ridge: ridge[0].value - ridge[1].value)
    return difference(objective, top.alpha, low.alpha)


def bootstrap(alphas: ArrayLike, losses: Sequence[NDArray[np.float64]], classes: Sequence[int],
              normalisation: str, draws: int = 500, seed: int = 0,
              weights: Sequence[float] | None = None) -> StandardError:  # fmt: skip
    """Return the standard deviations of alpha* and of the minimum over redrawn images.

    Each of `draws` takes as many images of each task as there are, with replacement, scales anew,
    and minimises the sum of the curves on [0, 1], by `log_spline`. `alphas` are `(k,)`, ascending,
    the first 0; `losses` are nats, `(k, images)` per task, whose images differ; the rest is as for
    `PairObjective`.
    """
    generator = np.random.default_rng(seed)
    dense = np.linspace(0.0, 1.0, 4001)
    total = np.zeros((draws, len(dense)))
    each = [1.0] * len(losses) if weights is None else weights
    for rows, count, weight in zip(losses, classes, each, strict=True):
        images = rows.shape[1]
        counts = generator.multinomial(images, [1 / images] * images, draws)
        for row, curve in zip(total, counts @ rows.T / images, strict=True):
            offset, unit = normaliser(normalisation, curve.tolist(), count)
            row += weight * ((log_spline(alphas, curve)(dense) - offset) / unit)
    return StandardError(float(dense[total.argmin(1)].std()), float(total.min(1).std()))


def _known(objective: PairObjective,
           samples: Samples) -> tuple[list[Evaluation], list[Evaluation], Rows]:  # fmt: skip
    """Return `samples` by alpha, those apart, the lowest first, and what images add if known."""
    found = sorted(samples.trace if isinstance(samples, Solution) else samples)
    best = min(found, key=lambda sample: sample.value)
    # the noise may cost evaluations
    kept = _spread(found, best, objective.noise if objective.known(best.alpha) else 0.0)
    rows = ((sample.alpha, contributions(objective, sample.alpha)) for sample in kept)
    return found, kept, {alpha: row for alpha, row in rows if row is not None}


def _slope(alphas: Sequence[float], rows: Rows, at: float) -> tuple[float, float]:
    """Return the slope of the sum at an alpha, by what images add at `alphas`, and its error."""
    # the weights of the rows are the slopes of Lagrange's polynomials, each 1 at one alpha
    weights = interpolate.KroghInterpolator(alphas, np.eye(len(alphas))).derivative(at)
    columns = zip(*(rows[alpha] for alpha in alphas), strict=True)
    slopes = [weights @ np.stack(column) for column in columns]
    mean = math.fsum(float(slope.mean()) for slope in slopes)
    return mean, math.sqrt(sum(map(variance, slopes)))


def _spread(samples: list[Evaluation], best: Evaluation, noise: float) -> list[Evaluation]:
    """Return the samples, nearest to the best first, whose differences are more than rounding."""
    width = samples[-1].alpha - samples[0].alpha

    def apart(distance: float) -> list[Evaluation]:
        kept = [best]
        for sample in sorted(samples, key=lambda sample: abs(sample.alpha - best.alpha)):
            if min(abs(sample.alpha - other.alpha) for other in kept) >= distance:
                kept.append(sample)
        return kept

    if not noise:
        return apart(1e-3 * width)
    curvature = fit_parts(apart(0.1 * width)).curvature(best.alpha) if len(samples) > 2 else 0.0
    # a curvature from samples h apart errs by sqrt(6) noise / h^2, here a tenth of it
    known = curvature > 0 and not math.isnan(noise)
    distance = math.sqrt(24 * noise / curvature) if known else width
    return apart(float(np.clip(distance, 1e-3 * width, 0.1 * width)))


def variance(row: NDArray[np.float64]) -> float:
    """Return the squared sampling error of the mean of `row`, `(images,)`; NaN of one image."""
    return float(row.var()) / len(row) if len(row) > 1 else math.nan
