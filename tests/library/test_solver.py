"""The solvers: oracles, budgets, invariances, safety on hard functions, refusals."""

import collections
import itertools
import math
import signal
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy import optimize

from paintlib import solver
from paintlib.fits import fit_parts, fit_quintic, log_spline
from paintlib.solver import Evaluation, Status, brent, golden, grid, log_quintic, quintic

BRACKETS = [(0.0, 1.0), (2.0, 3.0), (-5.0, -4.0)]
DONE = {Status.CONVERGED, Status.AT_START, Status.AT_END}
SOLVERS = {
    "quintic": quintic, "log_quintic": log_quintic, "grid": grid, "brent": brent, "golden": golden,
}  # fmt: skip
# Distance to the true minimum that each may have on a smooth function, and relative excess.
ACCURACY = {
    "quintic": (2e-3, 1e-4),
    "log_quintic": (2e-3, 1e-5),
    "grid": (0.025 + 1e-9, 2e-2),
    "brent": (2e-3, 1e-5),
    "golden": (2e-3, 1e-5),
}


@pytest.fixture(autouse=True)
def _endless_search_fails():
    """Turn a search that never ends into a failure."""

    def stop(*_):
        raise TimeoutError("the search does not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Counted:
    """An objective that remembers where it was called."""

    def __init__(self, function, shift=0.0, scale=1.0):
        self.function, self.shift, self.scale = function, shift, scale
        self.calls = []

    def __call__(self, alpha):
        self.calls.append(alpha)
        return self.function((alpha - self.shift) / self.scale)


def pair(supported=(-0.9, 0.5, 1.4, 0.1), patching=(0.2, -2.6, 0.4, 0.5), offset=0.0):
    """Two tasks whose log-losses are polynomials: one is spoilt by patching, one repaired."""

    def losses(a):
        return tuple(math.exp(np.polyval(c[::-1], a)) + offset for c in (supported, patching))

    return losses


PROBLEMS = {
    "pair": pair(),
    "early": pair((0.3, 0.4, 2.0, 0.0), (0.1, -1.2, 0.5, 0.2)),
    "late": pair((-1.9, 0.1, 0.6, 0.2), (0.2, -3.0, 0.3, 0.4)),
    "offset": pair(offset=0.05),
    "float": lambda a: sum(pair()(a)),
    "parabola": lambda a: 1.0 + (a - 0.37) ** 2,
    "quartic": lambda a: 1.0 + 3 * (a - 0.61) ** 2 + (a - 0.61) ** 4,
    "cosh": lambda a: math.cosh(3 * (a - 0.42)),
    "three": lambda a: (1 + a, (1 - a) ** 2 + 0.1, math.exp(-a)),
}


def truth(function, low=0.0, high=1.0):
    """Return the minimum by a dense scan refined by golden section."""
    x = np.linspace(low, high, 101)
    total = [float(np.sum(function(a))) for a in x]
    i = int(np.argmin(total))
    if i in (0, len(x) - 1):
        return float(x[i]), total[i]
    result = optimize.minimize_scalar(
        lambda a: float(np.sum(function(a))),
        bounds=(x[i - 1], x[i + 1]),
        method="bounded",
        options={"xatol": 1e-11},
    )
    return float(result.x), min(float(result.fun), total[i])


def evaluations(function, alphas):
    return [
        Evaluation(
            float(a), math.fsum(np.atleast_1d(function(a))), tuple(np.atleast_1d(function(a)))
        )
        for a in alphas
    ]


@pytest.mark.parametrize("bracket", BRACKETS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_solves_every_problem(name, problem, bracket):
    function = Counted(PROBLEMS[problem], shift=bracket[0])
    solution = SOLVERS[name](function, bracket)
    alpha, value = truth(PROBLEMS[problem])
    near, excess = ACCURACY[name]
    assert solution.status is Status.CONVERGED
    assert solution.alpha - bracket[0] == pytest.approx(alpha, abs=near)
    assert value * (1 - 1e-12) <= solution.value <= value * (1 + excess)
    assert solution.bracket[0] < solution.alpha < solution.bracket[1]
    assert solution.bracket[0] - 1e-9 <= alpha + bracket[0] <= solution.bracket[1] + 1e-9
    assert solution.evaluations == len(function.calls) == len(set(function.calls))
    assert [e.alpha for e in solution.fresh] == function.calls
    assert solution.value == min(e.value for e in solution.trace)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_log_quintic_needs_six_evaluations_beyond_the_ends_at_worst(problem):
    function = Counted(PROBLEMS[problem])
    known = evaluations(PROBLEMS[problem], (0.0, 1.0))
    solution = log_quintic(function, known=known)
    assert solution.evaluations == len(function.calls) <= 6
    assert solution.status is Status.CONVERGED
    assert {0.0, 1.0}.isdisjoint(function.calls)


def test_log_quintic_is_economical_on_log_polynomial_pairs():
    rng = np.random.default_rng(0)
    counts, excess, over_grid = [], [], []
    while len(counts) < 100:
        supported = (rng.uniform(-2, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.5, 2), 0.2)
        patching = (
            rng.uniform(-0.5, 0.7),
            -rng.uniform(1, 4),
            rng.uniform(0, 1),
            rng.uniform(0, 0.5),
        )
        function = pair(supported, patching)
        alpha, value = truth(function)
        if not 0.02 < alpha < 0.98:
            continue
        solution = log_quintic(function, known=evaluations(function, (0.0, 1.0)))
        counts.append(solution.evaluations)
        excess.append(solution.value / value - 1)
        over_grid.append(solution.value / grid(function).value - 1)
    assert np.mean(counts) <= 4.0 and max(counts) <= 6
    assert max(excess) <= 1e-5
    assert max(over_grid) <= 1e-6


def test_log_quintic_beats_brent_in_evaluations():
    for function in (PROBLEMS["pair"], PROBLEMS["early"], PROBLEMS["late"]):
        ends = evaluations(function, (0.0, 1.0))
        assert log_quintic(function, known=ends).evaluations < brent(function).evaluations


@pytest.mark.parametrize("problem", PROBLEMS)
def test_quintic_improves_on_its_grid_by_one_evaluation(problem):
    samples = grid(PROBLEMS[problem])
    solution = quintic(PROBLEMS[problem], known=samples.trace)
    assert solution.evaluations == 1
    assert solution.value < samples.value
    assert solution.trace[:-1] == samples.trace


@pytest.mark.parametrize("bracket", BRACKETS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_quintic_is_what_the_equations_of_the_book_say(problem, bracket):
    """The steps of the chapter on the solver again, by other means: Vandermonde and Newton."""

    def total(alpha):
        return math.fsum(np.atleast_1d(PROBLEMS[problem](alpha - bracket[0])))

    grid_points = [bracket[0] + i / 20 for i in range(21)]
    middle = min(range(21), key=lambda i: total(grid_points[i]))
    left, right = grid_points[middle - 1], grid_points[middle + 1]
    assert total(left) > total(grid_points[middle]) < total(right)  # (1.5) eq-bracket
    side = -1 if total(grid_points[middle - 3]) <= total(grid_points[middle + 3]) else 1
    six = sorted(middle + i for i in (-2, -1, 0, 1, 2, 3 * side))
    x = np.array([(grid_points[i] - grid_points[middle]) * 20 for i in six])  # in steps
    coefficients = np.linalg.solve(np.vander(x), [total(grid_points[i]) for i in six])
    slope, bend = np.poly1d(coefficients).deriv(), np.poly1d(coefficients).deriv(2)
    root = 0.0
    for _ in range(50):
        root -= slope(root) / bend(root)  # (3.3) eq-root
    solution = quintic(Counted(PROBLEMS[problem], shift=bracket[0]), bracket)
    assert left < solution.fresh[-1].alpha < right
    assert solution.fresh[-1].alpha == pytest.approx(grid_points[middle] + root / 20, abs=1e-9)
    assert solution.value == min(total(solution.fresh[-1].alpha), total(grid_points[middle]))


def test_quintic_takes_the_root_of_the_quintic_in_the_smallest_bracket():
    function = PROBLEMS["cosh"]
    samples = grid(function)
    low, high = samples.bracket
    roots = fit_quintic(samples.trace).deriv().roots()
    roots = [z.real for z in roots if abs(z.imag) < 1e-9 and low <= z.real <= high]
    assert (low, high) == (0.35, 0.45)
    assert len(roots) == 1
    assert quintic(function).fresh[-1].alpha == pytest.approx(roots[0], abs=1e-9)


def test_quintic_samples_the_grid_itself():
    function = Counted(PROBLEMS["pair"])
    solution = quintic(function, known=evaluations(function.function, (0.0, 1.0)))
    assert len(function.calls) == solution.evaluations == 20
    assert sorted([0.0, 1.0, *function.calls[:-1]]) == [i / 20 for i in range(21)]


def test_quintic_samples_the_grid_of_its_step():
    function = Counted(PROBLEMS["pair"])
    quintic(function, step=0.1)
    assert function.calls[:-1] == [i / 10 for i in range(11)]
    assert quintic(lambda a: (a - 0.3) ** 2, step=0.5).alpha == pytest.approx(0.3, abs=1e-12)


def test_quintic_takes_six_known_evaluations_with_both_ends_for_its_grid():
    function = Counted(PROBLEMS["pair"])
    known = evaluations(PROBLEMS["pair"], (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0))
    for enough in (known, known[:-2] + known[-1:]):
        function.calls.clear()
        assert quintic(function, known=enough).evaluations == len(function.calls) == 1
    for few in (known[1:], known[:-1], known[:1] + known[3:]):  # all on the grid
        assert len(quintic(function, known=few).trace) == 22


@pytest.mark.parametrize("problem", PROBLEMS)
def test_quintic_without_verification_returns_the_root_and_the_value_of_the_fit(problem):
    function, sure = Counted(PROBLEMS[problem]), quintic(PROBLEMS[problem])
    solution = quintic(function, verify=False)
    assert solution.alpha == sure.alpha and solution.bracket[0] < solution.alpha
    assert solution.evaluations == len(function.calls) == 21
    assert solution.trace == sure.trace[:-1]
    assert solution.value == float(fit_quintic(solution.trace)(solution.alpha))
    assert solution.value == pytest.approx(sure.value, rel=1e-4)
    assert solution.status is Status.UNVERIFIED and "verify=True" in solution.status.value
    assert sure.verified and not solution.verified


def test_quintic_without_verification_can_end_above_the_grid():
    def kink(alpha):
        return 1 + abs(alpha - 0.5) + 3 * max(0.0, alpha - 0.5)

    solution = quintic(kink, verify=False)
    assert solution.value < grid(kink).value < kink(solution.alpha)  # promised, had, and got
    assert quintic(kink).value == grid(kink).value


def test_quintic_without_verification_knows_an_end_a_plain_and_a_second_valley():
    assert quintic(lambda a: 1 + a, verify=False).status is Status.AT_START
    assert quintic(lambda a: 1 + a, verify=False).verified
    assert quintic(lambda a: 1.0, verify=False).status is Status.FLAT
    waves = quintic(lambda a: 1 + math.cos(4 * math.pi * (a + 0.013)) - 0.2 * a, verify=False)
    assert waves.status is Status.NOT_QUASICONVEX and not waves.verified


def test_fit_quintic_recovers_a_quintic():
    exact = Polynomial([1.0, -2.0, 0.5, 1.0, 0.3, 0.2])
    samples = evaluations(exact, np.linspace(0, 1, 21))
    fitted = fit_quintic(reversed(samples))
    assert fitted.degree() == 5
    np.testing.assert_allclose(fitted.convert().coef, exact.coef, atol=1e-7)


def test_fit_quintic_passes_through_the_six_samples_around_the_lowest():
    samples = evaluations(lambda a: (a - 0.52) ** 2, np.linspace(0, 1, 11))
    window = fit_quintic(samples).domain
    assert tuple(window) == pytest.approx((0.3, 0.8))
    for middle, expected in (
        (-1.0, (0.0, 0.5)),
        (0.12, (0.0, 0.5)),
        (0.88, (0.5, 1.0)),
        (2.0, (0.5, 1.0)),
    ):
        samples = evaluations(lambda a, middle=middle: (a - middle) ** 2, np.linspace(0, 1, 11))
        assert tuple(fit_quintic(samples).domain) == pytest.approx(expected)
    for lower, expected in ((0.51, (0.3, 0.8)), (0.49, (0.2, 0.7))):  # at equal distance, the lower
        samples = evaluations(lambda a, lower=lower: (a - lower) ** 2, np.linspace(0, 1, 11))
        assert tuple(fit_quintic(samples).domain) == pytest.approx(expected)


@pytest.mark.parametrize("points", [2, 3, 4, 5, 6])
def test_fit_quintic_has_one_degree_less_than_points(points):
    samples = evaluations(math.cosh, np.linspace(0, 1, points))
    polynomial = fit_quintic(samples)
    assert polynomial.degree() == points - 1
    for sample in samples:
        assert polynomial(sample.alpha) == pytest.approx(sample.value, rel=1e-12)


def test_fit_parts_is_exact_for_log_polynomials():
    function = pair()
    fit = fit_parts(evaluations(function, np.linspace(0, 1, 6)))
    assert fit.logs == (True, True)
    x = np.linspace(0, 1, 50)
    np.testing.assert_allclose(fit(x), [sum(function(a)) for a in x], rtol=1e-10)


def test_log_spline_passes_through_its_samples_and_is_exact_for_log_cubics():
    alphas = np.linspace(0, 1, 7)
    losses = np.exp(np.polyval([0.3, -1.0, 0.2, 0.1], alphas))
    curve = log_spline(alphas, losses)
    np.testing.assert_allclose(curve(alphas), losses, rtol=1e-14)
    assert float(curve(0.4)) == pytest.approx(math.exp(np.polyval([0.3, -1, 0.2, 0.1], 0.4)))
    both = log_spline(alphas, np.stack([losses, 2 * losses], axis=1))(0.3)
    assert both == pytest.approx([float(curve(0.3)), 2 * float(curve(0.3))])


def test_fit_slope_is_the_derivative():
    step = 1e-5
    for function in (pair(), lambda a: (a - 0.5, math.exp(a))):
        fit = fit_parts(evaluations(function, np.linspace(0, 1, 5)))
        x = np.linspace(0.1, 0.9, 9)
        difference = (fit(x + step) - fit(x - step)) / (2 * step)
        np.testing.assert_allclose(fit.slope(x), difference, rtol=1e-6, atol=1e-8)


def test_fit_curvature_is_the_derivative_of_the_slope():
    step = 1e-5
    for function in (pair(), lambda a: (a - 0.5, math.exp(a))):
        fit = fit_parts(evaluations(function, np.linspace(0, 1, 5)))
        for x in (0.1, 0.5, 0.9):
            difference = (fit.slope(x + step) - fit.slope(x - step)) / (2 * step)
            assert fit.curvature(x) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("low", [0.0, -5.0, -0.5, 1000.0])
def test_fit_finds_its_minimum_to_rounding(low):
    def valley(a):
        return (1 + (a - low - 0.3712) ** 2, math.exp(a - low - 0.3712) - (a - low))

    fit = fit_parts(evaluations(valley, low + np.linspace(0, 1, 6)))
    found = fit.minimum(low, low + 1.0)
    assert abs(float(fit.slope(found))) < 1e-11 * max(1.0, abs(low))
    assert fit.minimum(low + 0.5, low + 1.0) == low + 0.5
    assert fit.minimum(low, low + 0.25) == low + 0.25


def test_fit_drops_the_logarithm_where_a_part_touches_zero():
    fit = fit_parts(evaluations(lambda a: (a * a, 1 + a), (0.0, 0.5, 1.0)))
    assert fit.logs == (False, True)
    valley = fit_parts(evaluations(lambda a: ((a - 0.3) ** 2 + 1e-4,), (0.0, 0.25, 0.5, 0.75, 1.0)))
    assert valley.logs == (False,)


@pytest.mark.parametrize("step", [0.1, 0.05, 0.01, 0.25, 1.0, 0.125])
@pytest.mark.parametrize("bracket", [*BRACKETS, (0.0, 3.0)])
def test_grid_visits_exact_multiples_and_both_ends(bracket, step):
    visited = [e.alpha for e in grid(lambda a: a * a, bracket, step=step).trace]
    count = round((bracket[1] - bracket[0]) / step)
    assert len(visited) == count + 1
    assert (visited[0], visited[-1]) == bracket
    assert all(float(f"{alpha:.10g}") == alpha for alpha in visited)
    assert visited == sorted(visited)


def test_grid_returns_the_lowest_sample():
    function = PROBLEMS["cosh"]
    solution = grid(function, step=0.1)
    assert solution.alpha == 0.4
    assert solution.bracket == (0.3, 0.5)
    assert solution.value == min(function(i / 10) for i in range(11))


@pytest.mark.parametrize("step", [1 / 3, 1 / 7])
def test_grid_accepts_a_step_without_short_decimals(step):
    visited = [e.alpha for e in grid(lambda a: a, step=step).trace]
    np.testing.assert_allclose(visited, np.arange(round(1 / step) + 1) * step, rtol=1e-15)
    assert visited[-1] == 1.0


@pytest.mark.parametrize("name", ["brent", "golden"])
def test_peers_do_not_pay_again_for_known_evaluations(name):
    first = SOLVERS[name](PROBLEMS["pair"])
    function = Counted(PROBLEMS["pair"])
    again = SOLVERS[name](function, known=first.trace)
    assert (again.evaluations, function.calls) == (0, [])
    assert again.alpha == first.alpha


@pytest.mark.parametrize("name", ["quintic", "log_quintic", "grid"])
def test_known_evaluations_are_not_paid_twice(name):
    function = Counted(PROBLEMS["pair"])
    first = SOLVERS[name](function)
    again = Counted(PROBLEMS["pair"])
    second = SOLVERS[name](again, known=first.trace)
    assert second.evaluations == len(again.calls) <= (1 if name != "grid" else 0)
    assert second.value <= first.value
    assert {e.alpha for e in first.trace}.isdisjoint(again.calls)


@pytest.mark.parametrize("name", ["quintic", "log_quintic", "grid"])
def test_a_known_minimum_is_returned(name):
    function = PROBLEMS["pair"]
    alpha, _ = truth(function)
    known = evaluations(function, (0.0, alpha, 1.0))
    assert SOLVERS[name](function, known=known).value <= known[1].value


@pytest.mark.parametrize("name", ["quintic", "log_quintic", "grid"])
def test_known_drifted_grid_points_count(name):
    known = evaluations(PROBLEMS["pair"], [0.05 * i for i in range(21)])
    assert SOLVERS[name](PROBLEMS["pair"], known=known).evaluations <= (0 if name == "grid" else 1)


@pytest.mark.parametrize("name", ["quintic", "log_quintic", "grid"])
def test_known_evaluations_outside_the_bracket_are_ignored(name):
    known = evaluations(PROBLEMS["pair"], (-1.0, 0.0, 1.0, 2.0))
    inner = known[1:3]
    assert SOLVERS[name](PROBLEMS["pair"], known=known) == SOLVERS[name](
        PROBLEMS["pair"], known=inner
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bracket", BRACKETS)
@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_minimum_at_an_end_is_found(name, bracket, slope):
    solution = SOLVERS[name](lambda a: (2 + slope * (a - bracket[0]), 1.0), bracket)
    end = bracket[0] if slope > 0 else bracket[1]
    assert solution.status is (Status.AT_START if slope > 0 else Status.AT_END)
    assert solution.alpha == (pytest.approx(end, abs=1e-3) if name == "brent" else end)
    assert end in solution.bracket


def test_log_quintic_certifies_an_end_by_a_step_of_xtol():
    solution = log_quintic(lambda a: 1 + a + a * a, xtol=1e-3)
    assert solution.bracket == (0.0, 1e-3)
    hidden = log_quintic(lambda a: 1 + (a - 0.004) ** 2)
    assert hidden.status is Status.CONVERGED
    assert hidden.alpha == pytest.approx(0.004, abs=1e-3)


@pytest.mark.parametrize("bracket", BRACKETS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_xtol_may_be_a_function_of_the_samples(problem, bracket):
    function, seen = Counted(PROBLEMS[problem], shift=bracket[0]), []

    def xtol(samples):
        seen.append([sample.alpha for sample in samples])
        return 1e-2 if len(samples) < 5 else 1e-3

    assert log_quintic(function, bracket, xtol=lambda _: 1e-3) == log_quintic(function, bracket)
    function.calls.clear()
    solution = log_quintic(function, bracket, xtol=xtol)
    assert solution.status is Status.CONVERGED
    assert solution.alpha - bracket[0] == pytest.approx(truth(PROBLEMS[problem])[0], abs=1e-2)
    assert seen[0] == [] and seen[-1] == sorted(function.calls)
    assert all(alphas == sorted(alphas) for alphas in seen)
    assert [len(alphas) for alphas in seen[1:]] == list(range(3, len(function.calls) + 1))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_wider_xtol_costs_no_more_and_stays_within_it(problem):
    alpha, _ = truth(PROBLEMS[problem])
    found = [log_quintic(PROBLEMS[problem], xtol=xtol) for xtol in (1e-4, 1e-3, 1e-2, 5e-2)]
    counts = [solution.evaluations for solution in found]
    assert counts == sorted(counts, reverse=True)
    for solution, xtol in zip(found, (1e-4, 1e-3, 1e-2, 5e-2), strict=True):
        assert abs(solution.alpha - alpha) <= xtol


@pytest.mark.parametrize("edge", [0.2, 0.6, 0.95])
def test_a_plateau_at_an_end_does_not_trap_log_quintic(edge):
    for function in (lambda a: 1.0 + (a > edge), lambda a: 1.0 + (a < 1 - edge)):
        solution = log_quintic(function, max_evals=40)
        assert solution.value == 1.0
        assert solution.evaluations <= 40


@pytest.mark.parametrize("name", SOLVERS)
def test_a_flat_objective_says_so(name):
    solution = SOLVERS[name](lambda a: (0.3, 0.7))
    assert solution.status is Status.FLAT
    assert solution.value == 1.0


def test_flat_is_a_matter_of_rounding_at_any_scale():
    above = float(np.nextafter(1e6, 2e6))
    assert grid(lambda a: above if a > 0.3 else 1e6).status is Status.FLAT
    assert grid(lambda a: 1e-6 + 1e-12 * a).status is Status.AT_START


@pytest.mark.parametrize("name", ["quintic", "log_quintic", "grid"])
def test_two_valleys_are_reported(name):
    samples = grid(lambda a: 1 + math.cos(4 * math.pi * a) - 0.2 * a).trace
    solution = SOLVERS[name](
        lambda a: 1 + math.cos(4 * math.pi * a) - 0.2 * a,
        known=[Evaluation(e.alpha, e.value, e.parts) for e in samples],
    )
    assert solution.status is Status.NOT_QUASICONVEX
    assert "grid(step=0.01)" in solution.status.value
    assert solution.alpha == pytest.approx(0.755, abs=0.02)


def test_rounding_is_not_called_a_second_valley():
    def trough(noise):
        rng = np.random.default_rng(0)
        return lambda a: 1 + max(abs(a - 0.5), 0.2) + noise * rng.normal()

    assert grid(trough(1e-9)).status is Status.CONVERGED
    assert grid(trough(1e-4)).status is Status.NOT_QUASICONVEX


def test_an_exhausted_budget_is_reported():
    def kink(a):
        return 1 + abs(a - 0.3)

    for solve in (log_quintic, brent, golden):
        solution = solve(kink, xtol=1e-6, max_evals=5)
        assert solution.status is Status.BUDGET
        assert solution.evaluations <= 5
        assert "raise max_evals" in solution.status.value
    assert log_quintic(kink, max_evals=60).status is Status.CONVERGED
    for budget in (3, 4, 5):  # spent before golden has a point below both ends
        solution = golden(lambda a: a, max_evals=budget)
        assert (solution.status, solution.evaluations) == (Status.BUDGET, budget)


@pytest.mark.parametrize("max_evals", [2, 3, 4, 5, 6, 7, 20])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_log_quintic_keeps_any_budget(problem, max_evals):
    function = Counted(PROBLEMS[problem])
    solution = log_quintic(function, max_evals=max_evals)
    assert len(function.calls) == solution.evaluations <= max_evals


@pytest.mark.parametrize("bracket", [(2.0, 3.0), (-5.0, -4.0), (1000.0, 1001.0)])
@pytest.mark.parametrize("name", ["quintic", "log_quintic", "grid"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_translation_changes_nothing(name, problem, bracket):
    here = SOLVERS[name](PROBLEMS[problem])
    there = SOLVERS[name](Counted(PROBLEMS[problem], shift=bracket[0]), bracket)
    assert there.evaluations == here.evaluations
    visited = [e.alpha - bracket[0] for e in there.trace]
    np.testing.assert_allclose(visited, [e.alpha for e in here.trace], atol=2e-6)


@pytest.mark.parametrize("scale", [1e-6, 7.0, 1e6])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_scale_changes_nothing(problem, scale):
    here = log_quintic(PROBLEMS[problem])
    there = log_quintic(Counted(PROBLEMS[problem], scale=scale), (0.0, scale), xtol=1e-3 * scale)
    np.testing.assert_allclose(
        [e.alpha / scale for e in there.trace], [e.alpha for e in here.trace], atol=1e-6
    )
    weighted = log_quintic(lambda a: [scale * part for part in np.atleast_1d(PROBLEMS[problem](a))])
    np.testing.assert_allclose(
        [e.alpha for e in weighted.trace], [e.alpha for e in here.trace], atol=1e-6
    )


@pytest.mark.parametrize("scale", [0.125, 8.0])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_width_and_place_of_the_bracket_change_nothing(name, problem, scale):
    here, there = Counted(PROBLEMS[problem]), Counted(PROBLEMS[problem], 3 * scale, scale)
    option = "step" if name in ("quintic", "grid") else "xtol"
    first = SOLVERS[name](here, **{option: 0.01})
    second = SOLVERS[name](there, (3 * scale, 4 * scale), **{option: 0.01 * scale})
    assert second.status is first.status and len(there.calls) == len(here.calls)
    np.testing.assert_allclose([a / scale - 3 for a in there.calls], here.calls, atol=2e-6)


@pytest.mark.parametrize(
    ("bends", "price"),
    [((0.0, 0.0), 3.2), ((1e-4, 3e-3), 3.2), ((3e-3, 0.1), 5.5), ((0.3, 3.0), 6.2)],
)
def test_a_search_in_noise_says_so_and_soon(bends, price):
    """From a flat sum, whose ends are as low as its minimum, to one that noise spoils late."""
    noise, ends, paid = 5e-4, collections.Counter(), []
    for seed in range(150):
        generator = np.random.default_rng(seed)
        place, bend = generator.uniform(0.2, 0.8), generator.uniform(*bends)

        def parts(alpha, place=place, bend=bend, generator=generator):
            fall, slope = 0.5 + bend * (alpha - place) ** 2 / 2, bend * (alpha - place) / 5
            return np.array([fall + slope, fall - slope]) + generator.normal(0, noise / 2**0.5, 2)

        solution = log_quintic(parts, noise=noise)
        ends[solution.status] += 1
        paid.append(solution.evaluations)
    assert ends[Status.NOISE] >= 144 and not ends[Status.CONVERGED]
    assert np.mean(paid) < price


def test_equal_heights_of_an_end_and_the_middle_hide_no_valley_between_them():
    """F(0) and F(1/2) differ by less than the noise, but F(1) tells of a curve."""
    solution = log_quintic(lambda a: (2 - a / 2 + 1.002 * a * a, 1.0), noise=1e-3)
    assert solution.alpha == pytest.approx(0.25, abs=0.03)
    assert log_quintic(lambda a: (2 + 1e-3 * a * a, 1.0), noise=1e-3).evaluations == 3


@pytest.mark.parametrize("bracket", [(0.0, 1.0), (-4.0, 12.0)])
@pytest.mark.parametrize("xtol", [0.02, 0.003])
def test_golden_ends_where_its_bracket_is_twice_the_tolerance(xtol, bracket):
    width = bracket[1] - bracket[0]
    solution = golden(lambda a: abs(a - 0.3 * width - bracket[0]), bracket, xtol=xtol * width)
    low, high = solution.bracket
    assert 0.4 * xtol < (high - low) / width <= 2 * xtol  # a step more takes 38 % off


def test_golden_sees_nothing_but_the_order_of_values():
    def steeper(alpha):
        return math.exp(5 * sum(pair()(alpha)))

    assert [e.alpha for e in golden(pair()).fresh] == [e.alpha for e in golden(steeper).fresh]
    assert [e.alpha for e in brent(pair()).fresh] != [e.alpha for e in brent(steeper).fresh]


def test_mirrored_objective_has_the_mirrored_minimum():
    for function in PROBLEMS.values():
        ahead = log_quintic(function).alpha
        assert log_quintic(lambda a, f=function: f(1 - a)).alpha == pytest.approx(
            1 - ahead, abs=2e-3
        )


# Generated functions -----------------------------------------------------------------------------

unit = st.floats(0.0, 1.0)


@st.composite
def nasty(draw):
    """Return a function on [0, 1] of a kind that solvers get wrong."""
    kind = draw(st.integers(0, 8))
    centre, width, height = draw(unit), draw(st.floats(1e-3, 1.0)), draw(st.floats(0.0, 2.0))
    seed = draw(st.integers(0, 2**16))
    return [
        lambda a: 1.0 + height,
        lambda a: 1.0 + height * a,
        lambda a: 3.0 - height * a**3,
        lambda a: 1.0 + abs(a - centre),
        lambda a: 1.0 + math.exp(-min(a / width * 20, 700)) + height * a,
        lambda a: (
            2.0 - math.exp(-(((a - centre) / width) ** 2)) - 0.5 * math.exp(-50 * (a - 0.9) ** 2)
        ),
        lambda a: 1.0 + (a - centre) ** 2 + 0.1 * height * math.sin(1e4 * (a + seed)),
        lambda a: float(np.random.default_rng([seed, round(a * 2**40)]).random()),
        lambda a: float(a < centre) + 0.5,
    ][kind]


@settings(max_examples=500)
@given(nasty(), st.sampled_from(BRACKETS), st.booleans())
def test_log_quintic_is_safe_on_nasty_functions(function, bracket, two_parts):
    def objective(a):
        value = function(min(max(a - bracket[0], 0.0), 1.0))
        return (0.5 * value, value) if two_parts else value

    counted = Counted(objective)
    known = evaluations(objective, bracket)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = log_quintic(counted, bracket, known=known)
    assert len(counted.calls) == solution.evaluations <= 6
    assert all(bracket[0] < a < bracket[1] for a in counted.calls)
    assert len(set(counted.calls)) == len(counted.calls)
    assert solution.value == min(e.value for e in solution.trace) <= min(e.value for e in known)
    assert math.fsum(np.atleast_1d(objective(solution.alpha))) == solution.value
    assert solution.bracket[0] <= solution.alpha <= solution.bracket[1]


@settings(max_examples=300)
@given(nasty(), st.lists(unit, max_size=12, unique_by=lambda a: round(a, 6)), st.integers(2, 30))
def test_log_quintic_is_never_worse_than_known(function, alphas, max_evals):
    known = evaluations(function, alphas)
    solution = log_quintic(function, known=known, max_evals=max_evals)
    assert solution.evaluations <= max_evals
    assert all(solution.value <= sample.value for sample in known)
    assert set(known) <= set(solution.trace)


@settings(max_examples=300)
@given(nasty(), st.sampled_from(BRACKETS), st.sampled_from([brent, golden]), st.integers(3, 40))
def test_peers_keep_their_budget_and_the_best_they_saw(function, bracket, solve, max_evals):
    counted = Counted(lambda a: function(min(max(a - bracket[0], 0.0), 1.0)))
    solution = solve(counted, bracket, max_evals=max_evals)
    assert len(counted.calls) == solution.evaluations <= max_evals
    assert all(bracket[0] <= a <= bracket[1] for a in counted.calls)
    assert solution.value == min(e.value for e in solution.trace)


@settings(max_examples=300)
@given(nasty())
def test_quintic_is_never_worse_than_its_grid(function):
    samples = grid(function)
    solution = quintic(function, known=samples.trace)
    assert solution.evaluations <= 1
    assert solution.value <= samples.value


@st.composite
def smooth(draw):
    """Return a smooth quasi-convex pair: convex log-losses, one rising and one falling."""
    rise, bend = draw(st.floats(0.2, 2.0)), draw(st.floats(0.2, 2.0))
    fall, curl = draw(st.floats(0.5, 3.5)), draw(st.floats(0.0, 0.6))
    level = draw(st.floats(-2.0, 1.0))
    return pair((level, rise - bend / 2, bend, 0.1), (0.3, -fall, curl, 0.1))


@settings(max_examples=300)
@given(smooth())
def test_log_quintic_finds_the_minimum_of_smooth_pairs(function):
    solution = log_quintic(function, known=evaluations(function, (0.0, 1.0)))
    _, value = truth_fast(function)
    assert solution.status in DONE or solution.evaluations == 6
    assert solution.evaluations <= 6
    assert solution.value <= value * (1 + 1e-5)


def truth_fast(function):
    """Return the minimum of a convex function by Brent to rounding."""
    result = optimize.minimize_scalar(
        lambda a: sum(function(a)), bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-9}
    )
    candidates = [(sum(function(a)), a) for a in (0.0, float(result.x), 1.0)]
    value, alpha = min(candidates)
    return alpha, value


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bracket", [(1.0, 0.0), (0.5, 0.5), (0.0, math.inf), (math.nan, 1.0)])
def test_a_bad_bracket_is_refused(name, bracket):
    with pytest.raises(ValueError, match="give two finite ends, the lower first"):
        SOLVERS[name](lambda a: a, bracket)


@pytest.mark.parametrize("name", ["log_quintic", "brent", "golden"])
@pytest.mark.parametrize("xtol", [0.0, -1e-3, math.nan, 2.0, 1e-12])
def test_a_bad_xtol_is_refused(name, xtol):
    message = r"xtol is .*; give 1e-8 to 1 times the width, 1.0"
    with pytest.raises(ValueError, match=message):
        SOLVERS[name](lambda a: a, xtol=xtol)
    if name == "log_quintic":
        with pytest.raises(ValueError, match=message):
            log_quintic(lambda a: a, xtol=lambda _: xtol)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (0.3, "does not divide .* use 0.25"),
        (0.0, "step 0.0 does not divide"),
        (-0.1, "use 0.05"),
        (2.0, "the width 1.0; use"),
        (math.nan, "step nan does not divide"),
        (math.inf, "step inf does not divide"),
    ],
)
def test_a_bad_step_is_refused(step, message):
    with pytest.raises(ValueError, match=message):
        grid(lambda a: a, step=step)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_alpha(name, bad):
    with pytest.raises(ValueError, match=r"not finite at alpha = 0\.\d+: \(1.0, (nan|-?inf)\)"):
        SOLVERS[name](lambda a: (1.0, bad if 0.2 < a < 0.9 else 1.0 + a))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_changing_number_of_parts_is_refused(name):
    lengths = itertools.cycle([2, 2, 3])
    with pytest.raises(ValueError, match=r"has 3 parts at alpha = .* but 2 at"):
        SOLVERS[name](lambda a: [1.0 + a] * next(lengths))
    with pytest.raises(ValueError, match="has no part"):
        SOLVERS[name](lambda a: ())


def test_bad_known_evaluations_are_refused():
    with pytest.raises(ValueError, match=r"not finite at alpha = 0.5"):
        log_quintic(lambda a: a, known=[Evaluation(0.5, math.nan, (math.nan,))])
    with pytest.raises(ValueError, match=r"has 1 parts at alpha = 1.0 but 2 at alpha = 0.0"):
        log_quintic(lambda a: a, known=[Evaluation(0.0, 2.0, (1.0, 1.0))], max_evals=2)
    with pytest.raises(ValueError, match=r"value 2.0, and by 0.5 or the parts \(0.5,\)"):
        grid(lambda a: a, known=[Evaluation(0.5, 2.0, (0.5,))])
    with pytest.raises(ValueError, match=r"alpha = 0.5 is known by the value 2.0, and by 1.0"):
        grid(lambda a: a, known=[Evaluation(0.5, 1.0, (1.0,)), Evaluation(0.5, 2.0, (2.0,))])


def test_a_budget_too_small_is_refused():
    with pytest.raises(ValueError, match="max_evals is 1, but this search needs at least 2"):
        log_quintic(lambda a: a, max_evals=1)
    with pytest.raises(ValueError, match="needs at least 2"):
        brent(lambda a: a, max_evals=1)
    with pytest.raises(ValueError, match="needs at least 3"):
        golden(lambda a: a, max_evals=2)


def test_widest_gap_is_cut_nearer_to_its_lower_side():
    flat = log_quintic(lambda a: 1.0)
    assert flat.fresh[3].alpha == pytest.approx(0.5 * 0.381966, abs=1e-6)
    for edge, expected in ((0.8, 0.8 - 0.8 * 0.381966), (0.2, 0.2 + 0.8 * 0.381966)):
        samples = evaluations(lambda a, edge=edge: 1 + abs(a - edge), (0.0, edge, 1.0))
        record = solver.Record(len, (0.0, 1.0), samples)
        assert record.widest_gap() == pytest.approx(expected, abs=1e-6)


def test_a_fit_refuses_too_few_or_equal_samples():
    with pytest.raises(ValueError, match="1 samples given"):
        fit_quintic([Evaluation(0.0, 1.0, (1.0,))])
    with pytest.raises(ValueError, match="sampled twice"):
        fit_parts([Evaluation(0.5, 1.0, (1.0,))] * 2)


def test_a_solution_is_frozen():
    with pytest.raises(AttributeError):
        grid(lambda a: a).alpha = 0.5


def test_every_status_gives_advice():
    assert all(" " in status.value for status in solver.Status)
