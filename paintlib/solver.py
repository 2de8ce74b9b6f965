"""Find the alpha that minimises a sum of losses in few evaluations: quintic, grid and two peers.

Floats in, floats out: an objective maps alpha to one normalised loss per task (or to their sum)
and is expensive, since each call is a pass over the data sets. All solvers return the same frozen
`Solution`, and none returns a point worse than the best one it has seen.
"""

from __future__ import annotations

import bisect
import enum
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize

from paintlib.fits import POINTS, SAME, Fit, fit_parts, fit_quintic, window
from paintlib.metrics import quasiconvexity_violation

__all__ = [
    "Evaluation", "Fit", "Solution", "StandardError", "Status", "brent", "fit_parts",
    "fit_quintic", "golden", "grid", "quintic", "standard_error",
]  # fmt: skip

Objective = Callable[[float], float | Sequence[float]]

GOLDEN = (3.0 - math.sqrt(5.0)) / 2.0
NOISE = 1e-6  # bumps below this share of the objective's range are not called minima
GAIN = 1e-6  # a relative gain below this is not worth an evaluation
FIRST = 0.5  # where to look between the ends, as a share of the bracket
AGREE = 1e-3  # a fit whose last prediction was off by more (relatively) is not believed yet


class Evaluation(NamedTuple):
    """One visit of the objective: summed normalised loss, and each task's share."""

    alpha: float
    value: float
    parts: tuple[float, ...]


class StandardError(NamedTuple):
    """Sampling errors: how alpha* and the minimum would vary from one draw of images to another.

    Attributes:
        alpha: of alpha*; NaN where it is an end of the bracket, or the curvature is not positive.
        value: of the summed normalised loss there.
    """

    alpha: float
    value: float


class Status(enum.Enum):
    """How a search ended; the value of each member is advice."""

    CONVERGED = "the minimum is inside the bracket, located to the tolerance asked for"
    AT_START = "the minimum is the start of the bracket: patching does not pay at these weights"
    AT_END = "the minimum is the end of the bracket: the fine-tuned weights can be used as they are"
    FLAT = "all values seen are equal: any alpha does, the objective does not depend on it"
    NOT_QUASICONVEX = "two separate minima were seen; the better is returned, try grid(step=0.01)"
    BUDGET = "evaluations ran out before the tolerance was met; raise max_evals or widen xtol"


@dataclass(frozen=True)
class Solution:
    """The best point a solver has seen, and why it stopped.

    Attributes:
        alpha: position of the smallest value seen.
        value: the sum of the parts there.
        bracket: smallest interval between samples that holds the minimum if the objective is
            quasi-convex; one of its ends is `alpha` where the minimum is an end of the search.
        status: how the search ended, as advice.
        trace: all samples the answer rests on: the known ones by alpha, then the fresh ones in
            the order of their evaluation.
        evaluations: number of fresh ones, the price of this answer.
        stderr: sampling errors by the delta method, see `standard_error`; None where the objective
            does not tell the losses of single images.
    """

    alpha: float
    value: float
    bracket: tuple[float, float]
    status: Status
    trace: tuple[Evaluation, ...]
    evaluations: int
    stderr: StandardError | None = None

    @property
    def fresh(self) -> tuple[Evaluation, ...]:
        """The evaluations this search paid for, in order."""
        return self.trace[len(self.trace) - self.evaluations :]

    def record(self, evaluations: int | None = None) -> dict[str, Any]:
        """Return the solution as plain numbers, for a results file.

        Args:
            evaluations: the price to state, where it is not the number of fresh evaluations
                because known ones are charged to this answer too.
        """
        return {
            "alpha": self.alpha,
            "value": self.value,
            "bracket": list(self.bracket),
            "status": self.status.name,
            "evaluations": self.evaluations if evaluations is None else evaluations,
            "stderr": self.stderr and [x if math.isfinite(x) else None for x in self.stderr],
            "trace": [[s.alpha, s.value, list(s.parts)] for s in self.trace],
        }


def quintic(
    objective: Objective,
    bracket: tuple[float, float] = (0.0, 1.0),
    *,
    xtol: float = 1e-3,
    max_evals: int | None = None,
    known: Iterable[Evaluation] = (),
    variant: Literal["parts", "paper"] = "parts",
) -> Solution:
    """Minimise a sum of losses by the root of the derivative of a fitted quintic.

    Two variants share the idea of the paper (section 3): find the smallest interval that brackets
    the minimum, approximate the function there by a polynomial of degree five, and take the root
    of the derivative.

    `parts` (default) spends few evaluations. It starts from the ends and the middle, fits each
    task's log-loss by a polynomial through the (at most six) samples around the lowest one, takes
    the root of the derivative of the fitted *sum* inside the bracket, evaluates there, and fits
    again. It stops when the root is within `xtol` of the best point and promises a gain of at most
    1e-6 of the value, and the fit without that point had its root there too (within `xtol`) and
    foretold its value (to 1e-3): a root is verified before it is believed. Where the steps of the
    fits do not shrink, a golden section of the widest gap in the bracket is evaluated instead, so
    that the search ends on any function. A minimum at an end is certified by an evaluation at
    distance `xtol` from it.

    `paper` follows the text. The paper's: the smallest bracketing interval, the quintic of the
    sum, the root of its derivative. Our choices where it is silent: the samples are those of the
    exhaustive search (step 1/20 of the bracket; or `known`, if it holds both ends and at least six
    points); the interval reaches from the lowest sample to its neighbours; the quintic passes
    through the six samples around it (`fit_quintic`); the lowest root inside is verified by one
    evaluation, and the better of it and the lowest sample is returned.

    Args:
        objective: maps alpha to a loss, or to a sequence of one loss per task, to be summed.
        bracket: the ends of the search, in ascending order.
        xtol: tolerance on alpha, in its own unit; `paper` does not iterate and ignores it.
        max_evals: largest number of fresh evaluations. By default six, plus one for each end that
            is not known (`parts`), or as many as the missing samples and the verification need
            (`paper`).
        known: evaluations already paid for, such as the ends that several pairs share. All inside
            the bracket are used; those outside are ignored.
        variant: `parts` or `paper`.

    Returns:
        The best point seen, known ones included. The status is CONVERGED, AT_START or AT_END after
        success. Independent of how the search went, it is FLAT if all values are equal, and
        NOT_QUASICONVEX if the samples show two valleys.

    Raises:
        ValueError: the bracket, `xtol`, `max_evals`, `known` or `variant` is invalid; a loss is
            not finite (its alpha is named); the number of parts changes between calls.

    >>> quintic(lambda a: (1 + a, 4 * (1 - a) ** 2 + 0.1)).status.name
    'CONVERGED'
    """
    if variant not in ("parts", "paper"):
        raise ValueError(f"unknown variant {variant!r}; choose 'parts' or 'paper'")
    record = _Record(objective, bracket, known)
    _check_xtol(xtol, record)
    if variant == "paper":
        return _paper(record, max_evals)
    missing = sum(not record.has(end) for end in (record.low, record.high))
    record.limit(6 + missing if max_evals is None else max_evals, at_least=missing)
    return record.solution(_search(record, xtol))


def _search(record: _Record, xtol: float) -> Status:
    """Spend evaluations until the fitted minimum stands still; return how that ended."""
    low, high = record.low, record.high
    for end in (low, high):
        record(end)
    if len(record.samples) < 3:
        if not record.budget:
            return Status.BUDGET
        record(low + FIRST * (high - low))
    steps: list[float] = []
    while True:
        best, (a, b) = record.best(), record.bracket()
        if best.alpha - a <= xtol * (1 + SAME) >= b - best.alpha:
            return record.place()
        if record.flat() and len(record.samples) >= POINTS:
            return Status.FLAT
        fit = fit_parts(record.samples)
        target = fit.minimum(a, b)
        still = abs(target - best.alpha) <= xtol
        gain = best.value - float(fit(target))
        if still and gain <= GAIN * record.scale() and _foreseen(record, xtol):
            return Status.CONVERGED
        if not record.budget:
            return Status.BUDGET
        steps.append(abs(target - best.alpha))
        trial = target
        if still and best.alpha in (low, high):
            # A step of xtol inwards is the cheapest proof that an end is the minimum.
            trial = min(low + xtol, b) if best.alpha == low else max(high - xtol, a)
        if record.has(trial) or record.flat() or (len(steps) > 3 and steps[-1] > steps[-4] / 4):
            trial = record.widest_gap()
            steps.clear()
        record(trial)


def _foreseen(record: _Record, xtol: float) -> bool:
    """Return whether a fit that has not seen the best point puts its minimum there all the same."""
    best = record.best()
    if best.alpha in (record.low, record.high) or len(record.samples) < POINTS - 1:
        return False
    fit = fit_parts(sample for sample in record.samples if sample is not best)
    near = abs(fit.minimum(*record.bracket()) - best.alpha) <= xtol
    return near and abs(float(fit(best.alpha)) - best.value) <= AGREE * record.scale()


def _paper(record: _Record, max_evals: int | None) -> Solution:
    """Fit the sum on samples of a grid, evaluate the root once, return the best point."""
    sampled = len(record.samples) >= POINTS and record.has(record.low) and record.has(record.high)
    alphas = [] if sampled else _divide(record.low, record.high, 20)
    missing = [alpha for alpha in alphas if not record.has(alpha)]
    needed = len(missing) + 1
    record.limit(needed if max_evals is None else max_evals, at_least=needed)
    for alpha in missing:
        record(alpha)
    root = Fit((fit_quintic(record.samples),), (False,)).minimum(*record.bracket())
    if not record.has(root):
        record(root)
    return record.solution(record.place())


def grid(
    objective: Objective,
    bracket: tuple[float, float] = (0.0, 1.0),
    *,
    step: float = 0.05,
    known: Iterable[Evaluation] = (),
) -> Solution:
    """Minimise by exhaustive search: visit every multiple of `step`, both ends included.

    This is how PAINT chooses alpha. The positions are exact: 0.15, not 0.15000000000000002.

    Args:
        objective: as for `quintic`.
        bracket: the ends of the search, in ascending order.
        step: distance of the samples; must divide the bracket.
        known: evaluations already paid for; those within 1e-9 of a position (as a share of the
            bracket) stand for it, and the others inside the bracket compete for the minimum too.

    Returns:
        The lowest sample; its neighbours are the bracket. A minimum at an end is known to `step`.

    Raises:
        ValueError: the step does not divide the bracket, or as for `quintic`.

    >>> [round(e.alpha, 3) for e in grid(lambda a: a * a, (-1.0, 1.0), step=0.5).trace]
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    record = _Record(objective, bracket, known)
    width = record.high - record.low
    if not (math.isfinite(step) and 0 < step <= width):
        raise ValueError(f"step is {step}; it must be positive and at most {width}, the bracket")
    count = round(width / step)
    if abs(count * step - width) > SAME * width:
        raise ValueError(
            f"step {step} does not divide the bracket of width {width}, so its end would be "
            f"missed; use {width / math.ceil(width / step)}"
        )
    missing = [x for x in _divide(record.low, record.high, count) if not record.has(x)]
    record.limit(len(missing), at_least=0)
    for alpha in missing:
        record(alpha)
    return record.solution(record.place())


def brent(
    objective: Objective,
    bracket: tuple[float, float] = (0.0, 1.0),
    *,
    xtol: float = 1e-3,
    max_evals: int = 50,
) -> Solution:
    """Minimise by scipy's bounded Brent (golden section and parabolas), the peer of `quintic`.

    It sees only the sum, and never visits the ends: where the minimum is an end, it comes within
    about `xtol` of it and the status says so.

    Args:
        objective: as for `quintic`.
        bracket: the ends of the search, in ascending order.
        xtol: tolerance on alpha, in its own unit.
        max_evals: largest number of evaluations, at least 2.

    Raises:
        ValueError: as for `quintic`.
    """
    record = _Record(objective, bracket, ())
    _check_xtol(xtol, record)
    record.limit(max_evals, at_least=2)
    result = optimize.minimize_scalar(
        lambda alpha: record(float(alpha)).value,
        bounds=(record.low, record.high),
        method="bounded",
        options={"xatol": xtol, "maxiter": max_evals},
    )
    return record.solution(record.place(xtol) if result.success else Status.BUDGET)


def golden(
    objective: Objective,
    bracket: tuple[float, float] = (0.0, 1.0),
    *,
    xtol: float = 1e-3,
    max_evals: int = 50,
) -> Solution:
    """Minimise by scipy's golden section, the peer that takes nothing but quasi-convexity.

    It needs a point below both ends to begin with: the middle, or else the first that halving
    towards the lower end finds. Arguments and errors are those of `brent`, but for `max_evals`,
    which is at least 3.
    """
    record = _Record(objective, bracket, ())
    _check_xtol(xtol, record)
    record.limit(max_evals, at_least=3)
    width = record.high - record.low
    lower = min(record(record.low), record(record.high), key=lambda end: end.value)
    middle = record(record.low + FIRST * width)
    while middle.value >= lower.value and record.budget:
        if abs(middle.alpha - lower.alpha) <= xtol:
            return record.solution(record.place())
        middle = record(0.5 * (middle.alpha + lower.alpha))
    if not record.budget:
        return record.solution(Status.BUDGET)
    result = optimize.minimize_scalar(
        lambda alpha: record(float(alpha - 1.0) * width + record.low).value,
        # scipy's tolerance is a share of alpha, which this shift keeps between 1 and 2
        bracket=(1.0, 1.0 + (middle.alpha - record.low) / width, 2.0),
        method="golden",
        options={"xtol": xtol / width / 2, "maxiter": record.budget - 1},  # one point comes first
    )
    return record.solution(record.place() if result.success else Status.BUDGET)


def standard_error(objective: Objective, samples: Iterable[Evaluation]) -> StandardError | None:
    """Return the sampling errors of the lowest sample, by the delta method.

    alpha* solves J'(alpha) = 0, so to first order its error is that of the slope over the
    curvature: Var(alpha*) = Var(J'(alpha*)) / J''(alpha*)^2. Tasks have images of their own, so
    their variances add: Var(J') = sum over tasks of Var_i(l_i') / n. An image's slope l_i' is that
    of the polynomial through its losses at the samples around alpha*.

    Args:
        objective: has a method `per_image(alpha)`, as `losses.PairObjective` does, that returns
            one array per task of what each image adds to the mean, or None where it is not known.
        samples: evaluations of it.

    Returns:
        None if the objective has no such method or knows too few samples by image.
    """
    if not hasattr(objective, "per_image"):
        return None
    samples, per_image = sorted(samples), objective.per_image
    best = min(samples, key=lambda sample: sample.value)
    lowest = per_image(best.alpha)
    if lowest is None:
        return None
    value = math.sqrt(sum(float(row.var()) / len(row) for row in lowest))
    # differences of samples that all but coincide would be differences of rounding errors
    apart = 1e-3 * (samples[-1].alpha - samples[0].alpha)
    kept = [best]
    for sample in sorted(samples, key=lambda sample: abs(sample.alpha - best.alpha)):
        if min(abs(sample.alpha - other.alpha) for other in kept) >= apart:
            kept.append(sample)
    known = [sample for sample in kept if per_image(sample.alpha) is not None]
    if len(known) < 3 or best.alpha in (samples[0].alpha, samples[-1].alpha):
        return StandardError(math.nan, value)
    chosen = window(sorted(known))
    centre = np.array([s.alpha for s in chosen]) - best.alpha
    # weights d with sum_k d_k f(alpha_k) = f'(alpha*) for every polynomial f of this degree
    scale = np.abs(centre).max()
    powers = np.vander(centre / scale, increasing=True).T
    weights = np.linalg.solve(powers, np.eye(len(centre))[1]) / scale
    columns = zip(*(per_image(s.alpha) for s in chosen), strict=True)
    slopes = [weights @ np.stack(column) for column in columns]
    spread = math.sqrt(sum(float(row.var()) / len(row) for row in slopes))
    curvature = fit_parts(kept).curvature(best.alpha)
    return StandardError(spread / curvature if curvature > 0 else math.nan, value)


class _Record:
    """What is known about the objective so far; checks, counts and sorts its evaluations."""

    def __init__(
        self, objective: Objective, bracket: tuple[float, float], known: Iterable[Evaluation]
    ) -> None:
        low, high = (float(end) for end in bracket)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bracket is ({low}, {high}); give two finite ends, the lower first")
        self.objective, self.low, self.high = objective, low, high
        self.samples: list[Evaluation] = []  # ascending in alpha
        self.fresh: list[Evaluation] = []
        self.budget = 0
        for alpha, value, parts in sorted(known):
            if low <= alpha <= high:
                sample = _evaluation(float(alpha), parts or value)
                if not math.isclose(sample.value, value, rel_tol=1e-9, abs_tol=1e-12):
                    raise ValueError(
                        f"known value {value} at alpha = {alpha} is not the sum of its parts "
                        f"{parts}; pass evaluations of this objective"
                    )
                self._add(sample)

    def limit(self, budget: int, *, at_least: int) -> None:
        """Set the number of fresh evaluations that may be spent."""
        if budget < at_least:
            raise ValueError(
                f"max_evals is {budget}, but this search needs at least {at_least}; raise it, or "
                "pass more evaluations by `known`"
            )
        self.budget = budget

    def __call__(self, alpha: float) -> Evaluation:
        """Return the evaluation at `alpha`: a known one, or a fresh one, which is charged."""
        for sample in self.samples:
            if self._same(sample.alpha, alpha):
                return sample
        self.budget -= 1
        sample = _evaluation(alpha, self.objective(alpha))
        self._add(sample)
        self.fresh.append(sample)
        return sample

    def has(self, alpha: float) -> bool:
        """Return whether `alpha` was evaluated."""
        return any(self._same(sample.alpha, alpha) for sample in self.samples)

    def best(self) -> Evaluation:
        """Return the lowest sample, the first of equals."""
        return min(self.samples, key=lambda sample: sample.value)

    def bracket(self) -> tuple[float, float]:
        """Return the neighbours of the lowest samples: they enclose a quasi-convex minimum."""
        values = [sample.value for sample in self.samples]
        first = values.index(min(values))
        last = len(values) - 1 - values[::-1].index(min(values))
        low = self.samples[first - 1].alpha if first else self.low
        high = self.samples[last + 1].alpha if last + 1 < len(values) else self.high
        return low, high

    def widest_gap(self) -> float:
        """Return the golden section of the widest gap in the bracket, nearer to its lower side."""
        a, b = self.bracket()
        inside = [sample for sample in self.samples if a <= sample.alpha <= b]
        left, right = max(itertools.pairwise(inside), key=lambda gap: gap[1].alpha - gap[0].alpha)
        share = GOLDEN if left.value <= right.value else 1 - GOLDEN
        return left.alpha + share * (right.alpha - left.alpha)

    def span(self) -> float:
        """Return the difference of the largest and the smallest value."""
        values = [sample.value for sample in self.samples]
        return max(values) - min(values)

    def scale(self) -> float:
        """Return the size against which small differences of values are judged."""
        return max(abs(self.best().value), self.span())

    def flat(self) -> bool:
        """Return whether all values are equal up to rounding."""
        scale = max(abs(sample.value) for sample in self.samples)
        return bool(self.span() <= 8 * np.finfo(float).eps * scale)

    def place(self, margin: float = 0.0) -> Status:
        """Return the status of a finished search by where its minimum lies."""
        alpha = self.best().alpha
        if alpha <= self.low + margin:
            return Status.AT_START
        return Status.AT_END if alpha >= self.high - margin else Status.CONVERGED

    def solution(self, status: Status) -> Solution:
        """Return the best sample; what the samples show about the objective goes before `status`.

        A bump is held against quasi-convexity only if it stands out of the rounding of the values.
        """
        values = [sample.value for sample in self.samples]
        if self.flat() and len(values) >= POINTS:
            status = Status.FLAT
        elif quasiconvexity_violation(values) > NOISE * self.span():
            status = Status.NOT_QUASICONVEX
        best = self.best()
        paid = set(self.fresh)
        trace = (*(sample for sample in self.samples if sample not in paid), *self.fresh)
        return Solution(
            best.alpha,
            best.value,
            self.bracket(),
            status,
            trace,
            len(self.fresh),
            standard_error(self.objective, self.samples),
        )

    def _same(self, a: float, b: float) -> bool:
        return abs(a - b) <= SAME * (self.high - self.low)

    def _add(self, sample: Evaluation) -> None:
        if self.samples and len(sample.parts) != len(self.samples[0].parts):
            raise ValueError(
                f"the objective has {len(sample.parts)} parts at alpha = {sample.alpha} but "
                f"{len(self.samples[0].parts)} at alpha = {self.samples[0].alpha}; return one loss "
                "per task, the same tasks each time"
            )
        for other in self.samples:
            if self._same(other.alpha, sample.alpha):
                if other.value != sample.value:
                    raise ValueError(
                        f"alpha = {sample.alpha} is known twice, with the values {other.value} and "
                        f"{sample.value}; keep the one that belongs to this objective"
                    )
                return
        bisect.insort(self.samples, sample)


def _evaluation(alpha: float, result: float | Sequence[float]) -> Evaluation:
    """Return the checked evaluation of one call's result."""
    parts = tuple(float(part) for part in np.atleast_1d(np.asarray(result, float)))
    if not parts:
        raise ValueError(f"the objective has no part at alpha = {alpha}; return at least one loss")
    if not all(map(math.isfinite, parts)):
        raise ValueError(
            f"the objective is not finite at alpha = {alpha}: {parts}; check the weights there, or "
            "narrow the bracket"
        )
    return Evaluation(alpha, math.fsum(parts), parts)


def _divide(low: float, high: float, count: int) -> list[float]:
    """Return the ends and the inner points of `count` equal intervals, each rounded only once."""
    start, end = Fraction(repr(low)), Fraction(repr(high))
    inner = [float(start + i * (end - start) / count) for i in range(1, count)]
    return [low, *inner, high]


def _check_xtol(xtol: float, record: _Record) -> None:
    width = record.high - record.low
    if not (math.isfinite(xtol) and 1e-8 * width <= xtol < width):
        raise ValueError(
            f"xtol is {xtol}; it must be below the bracket's width {width}, and at least 1e-8 of "
            "it, since rounding hides the minimum beyond"
        )
