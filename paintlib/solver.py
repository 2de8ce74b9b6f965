"""Find the alpha that minimises a sum of losses: the paper's quintic, the grid, and three peers.

An objective maps alpha to one normalised loss per task (or to their sum) and is expensive. All
solvers return the best point they have seen, as a `Solution`; its status is FLAT if all values are
equal, NOT_QUASICONVEX if the samples have two valleys.
A mark as (3.3) eq-root is the number of an equation of the book, and its label.
"""

import bisect
import enum
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import optimize

from paintlib.fits import POINTS, SAME, fit_parts, fit_quintic
from paintlib.metrics import quasiconvexity_violation
from paintlib.objective import position

__all__ = [
    "Evaluation", "Solution", "Status", "brent", "golden", "grid", "log_quintic", "quintic",
]  # fmt: skip

GOLDEN = (3.0 - math.sqrt(5.0)) / 2.0
NOISE = 1e-6  # bumps below this share of the objective's range are not called minima
FIRST = 0.5  # where to look between the ends, as a share of the bracket
AGREE = 1e-3  # a fit whose last prediction was off by more (relatively) is not believed yet


class Evaluation(NamedTuple):
    """One visit of the objective: summed normalised loss, and each task's share."""

    alpha: float
    value: float
    parts: tuple[float, ...]


Objective = Callable[[float], float | Sequence[float]]
Bracket = tuple[float, float]
Known = Iterable[Evaluation]
XTol = Callable[[Sequence[Evaluation]], float]


class Status(enum.Enum):
    """How a search ended; the value of each member is advice."""

    CONVERGED = (
        "the minimum is inside the bracket, and known to the tolerance as far as the samples tell"
    )
    AT_START = (
        "the minimum is the start of the bracket: patching does not help at these weights if that "
        "is 0, else a wider bracket may lower the sum"
    )
    AT_END = (
        "the minimum is the end of the bracket: the fine-tuned weights can be used as they are if "
        "that is 1, else a wider bracket may lower the sum"
    )
    FLAT = "all values seen are equal: any alpha does, the objective does not depend on it"
    NOT_QUASICONVEX = "two separate minima were seen; the better is returned, try grid(step=0.01)"
    UNVERIFIED = "the minimum of a fit, not evaluated: the value is the fit's; verify=True tests it"
    AT_CEILING = "a ceiling keeps alpha from the minimum of the sum: a higher one lowers the sum"
    ABOVE_CEILING = "no alpha seen obeys every ceiling: raise one, lower its probability, add data"
    NOISE = "the rest is rounding noise: for a finer alpha evaluate in float32, or on more images"
    BUDGET = "evaluations ran out before the tolerance was met; raise max_evals or widen xtol"


@dataclass(frozen=True)
class Solution:
    """The best point a solver has seen, and why it stopped."""

    alpha: float  #: position of the smallest value seen
    value: float  #: sum of the parts there
    bracket: Bracket  #: smallest interval between samples that holds a quasi-convex minimum
    status: Status  #: why the search stopped
    trace: tuple[Evaluation, ...]  #: known samples by alpha, then fresh ones as they came
    evaluations: int  #: number of fresh ones, the price of this answer

    @property
    def fresh(self) -> tuple[Evaluation, ...]:
        """The evaluations this search paid for, in order."""
        return self.trace[len(self.trace) - self.evaluations :]

    @property
    def verified(self) -> bool:
        """Whether `value` was seen at `alpha`; else it is a fit's (`quintic` with verify=False)."""
        return any(sample.alpha == self.alpha for sample in self.trace)


def quintic(objective: Objective, bracket: Bracket = (0.0, 1.0), *, step: float = 0.05,
            known: Known = (), verify: bool = True) -> Solution:  # fmt: skip
    """Minimise as the paper does (section 3): a quintic in the smallest bracket of the minimum.

    Where the paper is silent, the samples are the grid's; the bracket reaches from the lowest to
    its neighbours; the quintic passes through the six around it (`fits.window`); one evaluation
    verifies the root, and the better of it and the lowest sample is returned.

    Args:
        objective: maps alpha to a loss, or to a sequence of one loss per task, to be summed.
        bracket: the ends of the search, ascending.
        step: distance of the samples, as for `grid`.
        known: evaluations already paid for, in the bracket or ignored. Both ends and four more
            stand for the grid; fewer are added to it.
        verify: whether to evaluate the root; else it is the answer, with the fit's value.

    Raises:
        ValueError: an argument or a loss is invalid, or the number of parts changes.

    >>> round(quintic(lambda a: (1 + a, 4 * (1 - a) ** 2 + 0.1)).alpha, 9)
    0.875
    """
    record = Record(objective, bracket, known)
    if len(record.samples) < POINTS or not (record.find(record.low) and record.find(record.high)):
        record.visit(step)  # (1.3) eq-objective: F
    left, right = record.bracket()  # (1.5) eq-bracket: F(l) > F(m) < F(r)
    polynomial = fit_quintic(record.samples)
    roots = polynomial.deriv().roots().real  # (3.3) eq-root: P'(a) = 0
    inside = [float(root) for root in roots if left <= root <= right]
    # the lowest point: P' turns positive there, or P falls or rises from end to end
    root = min([*inside, left, right], key=polynomial)
    if verify or record.find(root):
        record(root)
        return record.solution(record.place())
    return record.solution(Status.UNVERIFIED, (root, float(polynomial(root))))


def log_quintic(objective: Objective, bracket: Bracket = (0.0, 1.0), *, xtol: float | XTol = 1e-3,
                max_evals: int | None = None, known: Known = (),
                noise: float | None = None) -> Solution:  # fmt: skip
    """Minimise in few evaluations by fits to each task's log-loss: (3.4) eq-parts.

    It starts from the ends and the middle, fits each task's log-loss (`fits.fit_parts`), evaluates
    where the fitted *sum* is lowest in the bracket, and fits again, until that is within `xtol` of
    the best point, and the fit without that point had its minimum there too and predicted its value
    (to 1e-3). Where the fits' steps do not shrink, it takes a golden section of the bracket's
    widest gap: it ends on any function. An evaluation `xtol` inside certifies an end.

    `xtol` is a distance of alphas, or a function of the samples so far that returns one
    (`sampling.tolerance`). `max_evals` limits the fresh evaluations: by default six, and one for
    each end that is not `known`. `noise` is the standard deviation of a value's rounding, by
    default the objective's `noise` or 0: a fit that promises less than twice that ends the search.
    The rest as for `quintic`.

    >>> log_quintic(lambda a: (1 + a, 4 * (1 - a) ** 2 + 0.1)).status.name
    'CONVERGED'
    """
    record = Record(objective, bracket, known)
    low, high = record.low, record.high
    missing = sum(not record.find(end) for end in (low, high))
    tolerance = xtol if callable(xtol) else lambda _: xtol
    noise = record.noise = record.noise if noise is None else noise
    budget = 6 + missing if max_evals is None else max_evals
    record.limit(tolerance(record.samples), budget, at_least=missing)
    for end in (low, high):
        record(end)
    if len(record.samples) < 3 and record.budget:
        record(low + FIRST * record.width)
    steps: list[float] = []
    while True:
        best, (a, b), near = record.best(), record.bracket(), tolerance(record.samples)
        narrow = best.alpha - a <= near * (1 + SAME) >= b - best.alpha
        if narrow or (record.flat() and len(record.samples) >= POINTS):
            return record.solution(record.place())
        target = (fit := fit_parts(record.samples)).minimum(a, b)
        steps.append(abs(target - best.alpha))
        still = steps[-1] <= near
        # what rounding hides: the rest of the way down, and xtol where the valley is flat
        quiet = noise > 0 and best.value - float(fit(target)) <= 2 * noise
        blunt = noise > 0 and fit.curvature(target) * near**2 / 2 <= 4 * noise
        if still and record.foreseen(near):
            return record.solution(Status.NOISE if blunt else Status.CONVERGED)
        drowned = max(record(end).value for end in (a, b)) - best.value <= 4 * noise
        drowned = drowned and (quiet or a < best.alpha < b)  # an end has but one neighbour
        if (quiet and (record.foreseen(near, noise) or not record.budget)) or (noise and drowned):
            return record.solution(Status.NOISE)
        if not record.budget:
            return record.solution(Status.BUDGET)
        if still and best.alpha in (low, high):
            # a step of xtol inwards is the cheapest proof that an end is the minimum
            target = min(low + near, b) if best.alpha == low else max(high - near, a)
        if record.find(target) or record.flat() or (len(steps) > 3 and steps[-1] > steps[-4] / 4):
            target = record.widest_gap()
            steps.clear()
        record(target)


def grid(objective: Objective, bracket: Bracket = (0.0, 1.0), *, step: float = 0.05,
         known: Known = ()) -> Solution:  # fmt: skip
    """Minimise by exhaustive search: visit every multiple of `step`, both ends included.

    PAINT's own way. The positions are exact: 0.15, not 0.15000000000000002. `step` must divide the
    bracket; `known` evaluations between the positions compete too. The rest is as for `quintic`.
    """
    record = Record(objective, bracket, known)
    record.visit(step)
    return record.solution(record.place())


def brent(objective: Objective, bracket: Bracket = (0.0, 1.0), *, xtol: float = 1e-3,
          max_evals: int = 50, known: Known = ()) -> Solution:  # fmt: skip
    """Minimise the sum by scipy's bounded Brent, a peer of `log_quintic` with its arguments.

    It never visits the ends, but comes within about `xtol` of a minimum there.
    """
    record = Record(objective, bracket, known)
    record.limit(xtol, max_evals, at_least=2)
    result = optimize.minimize_scalar(
        lambda alpha: record(float(alpha)).value, bounds=(record.low, record.high),
        method="bounded", options={"xatol": xtol, "maxiter": max_evals},
    )  # fmt: skip
    return record.solution(record.place(xtol) if result.success else Status.BUDGET)


def golden(objective: Objective, bracket: Bracket = (0.0, 1.0), *, xtol: float = 1e-3,
           max_evals: int = 50, known: Known = ()) -> Solution:  # fmt: skip
    """Minimise the sum by scipy's golden section, the peer that takes nothing but quasi-convexity.

    It begins with a point below both ends: the middle, or the first that halving towards the lower
    end finds. Arguments as for `brent`.
    """
    record = Record(objective, bracket, known)
    record.limit(xtol, max_evals, at_least=3)
    lower = min(record(record.low), record(record.high), key=lambda end: end.value)
    middle = record(record.low + FIRST * record.width)
    while middle.value >= lower.value and record.budget:
        if abs(middle.alpha - lower.alpha) <= xtol:
            return record.solution(record.place())
        middle = record(0.5 * (middle.alpha + lower.alpha))
    if not record.budget:
        return record.solution(Status.BUDGET)
    result = optimize.minimize_scalar(
        lambda alpha: record(float(alpha - 1.0) * record.width + record.low).value,
        # scipy's tolerance is a share of alpha, which this shift keeps between 1 and 2
        bracket=(1.0, 1.0 + (middle.alpha - record.low) / record.width, 2.0), method="golden",
        options={"xtol": xtol / record.width / 2, "maxiter": record.budget - 1},  # after one point
    )  # fmt: skip
    return record.solution(record.place() if result.success else Status.BUDGET)


if TYPE_CHECKING:
    from paintlib.joint import joint as joint
else:

    def __getattr__(name: str) -> Any:  # paintlib.joint stands on this module
        if name == "joint":
            return importlib.import_module("paintlib.joint").joint
        raise AttributeError(f"module 'paintlib.solver' has no attribute {name!r}")


class Record:
    """What is known about an objective so far; checks, counts and sorts its evaluations.

    The searches over several coefficients keep theirs by it too: their alphas are tuples.
    """

    kind: Callable[..., Any] = Evaluation

    def __init__(self, objective: Callable[[Any], Any], bracket: Bracket,
                 known: Iterable[Any] = ()) -> None:  # fmt: skip
        self.low, self.high = low, high = tuple(map(float, bracket))
        self.objective, self.budget, self.width = objective, 0, high - low
        if not (low < high and math.isfinite(self.width)):
            raise ValueError(f"bracket is ({low}, {high}); give two finite ends, the lower first")
        noise = float(getattr(objective, "noise", 0.0))
        self.noise = noise if noise > 0 else 0.0  # NaN: unknown
        self.samples: list[Any] = []  # ascending in alpha
        self.fresh: list[Any] = []
        inside = (k for k in known if low <= np.min(k.alpha) and np.max(k.alpha) <= high)
        for alpha, value, parts in sorted(inside):
            sample = self._add(position(alpha), parts or value)
            if not math.isclose(sample.value, value, rel_tol=1e-9, abs_tol=1e-12):
                both = f"the value {value}, and by {sample.value} or the parts {parts}"
                raise ValueError(f"alpha = {alpha} is known by {both}; pass this objective's")

    def limit(self, xtol: float, budget: int, *, at_least: int) -> None:
        if not 1e-8 * self.width <= xtol < self.width:
            raise ValueError(f"xtol is {xtol}; give 1e-8 to 1 times the width, {self.width}")
        if budget < at_least:
            raise ValueError(f"max_evals is {budget}, but this search needs at least {at_least}")
        self.budget = budget

    def visit(self, step: float) -> None:
        """Evaluate the multiples of `step`, both ends included, each rounded only once."""
        count = round(self.width / step) if 0 < step <= self.width else 0
        if not count or abs(count * step - self.width) > SAME * self.width:
            use = self.width / (math.ceil(self.width / step) if count else 20)
            raise ValueError(f"step {step} does not divide the width {self.width}; use {use}")
        start, end = Fraction(repr(self.low)), Fraction(repr(self.high))
        for i in range(count + 1):
            self(float(start + i * (end - start) / count))

    def __call__(self, alpha: Any) -> Any:
        if sample := self.find(alpha):
            return sample
        self.budget -= 1
        alpha = position(alpha)
        self.fresh.append(self._add(alpha, self.objective(alpha)))
        return self.fresh[-1]

    def find(self, alpha: Any) -> Any:
        return next((s for s in self.samples if abs(s.alpha - alpha) <= SAME * self.width), None)

    def best(self) -> Any:
        """Return the lowest sample, the first of equals."""
        return min(self.samples, key=lambda sample: sample.value)

    def bracket(self) -> Bracket:
        """Return the neighbours of the lowest samples: they enclose a quasi-convex minimum."""
        alphas, best = [self.low, *(s.alpha for s in self.samples), self.high], self.best()
        lowest = [i for i, s in enumerate(self.samples, 1) if s.value == best.value]
        return alphas[lowest[0] - 1], alphas[lowest[-1] + 1]

    def widest_gap(self) -> float:
        """Return the golden section of the widest gap in the bracket, nearer to its lower side."""
        a, b = self.bracket()
        inside = [sample for sample in self.samples if a <= sample.alpha <= b]
        left, right = max(itertools.pairwise(inside), key=lambda gap: gap[1].alpha - gap[0].alpha)
        share = GOLDEN if left.value <= right.value else 1 - GOLDEN
        return float(left.alpha + share * (right.alpha - left.alpha))

    def foreseen(self, near: float, noise: float = 0.0) -> bool:
        """Return whether a fit that has not seen the best point has its minimum there as well."""
        best = self.best()
        if best.alpha in (self.low, self.high) or len(self.samples) < POINTS - 1:
            return False
        fit = fit_parts(sample for sample in self.samples if sample is not best)
        here, target = float(fit(best.alpha)), fit.minimum(*self.bracket())
        off = max(AGREE * max(abs(best.value), self.span()), 4 * noise)
        there = abs(target - best.alpha) <= near or here - float(fit(target)) <= 2 * noise
        return there and abs(here - best.value) <= off

    def span(self) -> float:
        values: list[float] = [sample.value for sample in self.samples]
        return max(values) - min(values)

    def flat(self) -> bool:
        """Return whether all values are equal up to rounding."""
        scale = max(abs(sample.value) for sample in self.samples)
        return bool(self.span() <= 8 * np.finfo(float).eps * scale)

    def place(self, margin: float = 0.0) -> Status:
        """Return the status of a finished search by where its minimum lies."""
        if (alpha := self.best().alpha) <= self.low + margin:
            return Status.AT_START
        return Status.AT_END if alpha >= self.high - margin else Status.CONVERGED

    def solution(self, status: Status, found: tuple[float, float] | None = None) -> Solution:
        """Return the best sample, or the alpha and value `found` by a fit."""
        # what the samples show goes before `status`; a bump has to stand out of their rounding
        values = [sample.value for sample in self.samples]
        if self.flat() and len(values) >= POINTS:
            status = Status.FLAT
        elif quasiconvexity_violation(values) > max(NOISE * self.span(), 4 * self.noise):
            status = Status.NOT_QUASICONVEX
        alpha, value = found or self.best()[:2]
        return Solution(alpha, value, self.bracket(), status, self.trace(), len(self.fresh))

    def trace(self) -> tuple[Any, ...]:
        return (*(sample for sample in self.samples if sample not in self.fresh), *self.fresh)

    def _add(self, alpha: Any, result: float | Sequence[float]) -> Any:
        parts = tuple(np.atleast_1d(np.asarray(result, float)).tolist())
        if not parts:
            raise ValueError(f"the objective has no part at alpha = {alpha}; return one per task")
        if not all(map(math.isfinite, parts)):
            raise ValueError(f"losses not finite at alpha = {alpha}: {parts}; narrow the bracket")
        sample = self.find(alpha) or self.kind(alpha, math.fsum(parts), parts)
        first = next(iter(self.samples), sample)
        if len(parts) != len(first.parts):
            there = f"{len(first.parts)} at alpha = {first.alpha}; return one loss for each task"
            raise ValueError(f"the objective has {len(parts)} parts at alpha = {alpha} but {there}")
        if sample not in self.samples:
            bisect.insort(self.samples, sample)
        return sample
