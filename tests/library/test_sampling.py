"""Sampling errors: of a loss, of alpha*, of a difference; against formulas and a bootstrap."""

import math

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar

from paintlib import PairObjective, Store, metrics, normaliser, sampling, solver
from paintlib.normalisation import NORMALISATIONS
from paintlib.objective import ImageScores

IMAGES = (400, 300)
ALPHAS = np.array(PairObjective.samples)


class Drawn:
    """Two tasks whose images have parabolas of their own, (alpha - place)^2 scaled."""

    def __init__(self, shift=0.0, copies=1):
        generator = np.random.default_rng(0)
        self.shape = [
            (np.tile(generator.normal(place, 0.25, n), copies) + shift,
             np.tile(generator.gamma(4.0, 0.25, n) + 0.2, copies))
            for n, place in zip(IMAGES, (0.25, 0.8), strict=True)
        ]  # fmt: skip

    def at(self, alpha):
        return tuple(0.1 + scale * (alpha - place) ** 2 for place, scale in self.shape)


@pytest.fixture
def build(tmp_path):
    """Return the objective of drawn images, which can be evaluated anywhere."""
    files = (tmp_path / f"{i}.npz" for i in range(100))

    def objective(kind="zero_shot", drawn=None, at=None):
        at = at or (drawn or Drawn()).at

        def evaluate(alpha, names):
            rows = at(alpha)
            return [ImageScores(rows[int(n)], np.ones(len(rows[int(n)]), bool)) for n in names]

        return PairObjective.replay(Store(next(files)), "01", [4, 4], kind, evaluate=evaluate)

    return objective


def resampled(drawn, kind, alpha, draws=600):
    """Return the spread of alpha* and of the sum at `alpha`, by a bootstrap in plain steps."""
    generator = np.random.default_rng(1)
    dense, found = np.linspace(0.0, 1.0, 2001), []
    losses = np.array([[*drawn.at(a)[0], *drawn.at(a)[1]] for a in ALPHAS])
    for _ in range(draws):
        total, there, begin = np.zeros_like(dense), 0.0, 0
        for n in IMAGES:
            curve = losses[:, begin + generator.integers(0, n, n)].mean(1)
            offset, unit = {
                "zero_shot": (0.0, curve[0]), "log_classes": (0.0, math.log(4)),
                "minmax": (curve.min(), np.ptp(curve)), "none": (0.0, 1.0),
            }[kind]  # fmt: skip
            total += (CubicSpline(ALPHAS, curve)(dense) - offset) / unit
            there += (curve[ALPHAS.tolist().index(alpha)] - offset) / unit
            begin += n
        found.append((dense[total.argmin()], there))
    return np.std(found, axis=0)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_contributions_of_images_average_to_the_normalised_loss(build, kind):
    objective = build(kind)
    for alpha in (0.0, 0.35, 1.0):
        expected = objective(alpha)
        rows = sampling.contributions(objective, alpha)
        assert [len(row) for row in rows] == list(IMAGES)
        assert [row.mean() for row in rows] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_contributions_are_the_influence_of_each_image(build, kind):
    """A little more weight on one image moves the normalised loss by its contribution."""
    drawn, step = Drawn(), 1e-6
    objective = build(kind, drawn)
    objective(0.35)
    for task, image in ((0, 0), (0, 123), (1, 7)):
        losses = np.stack([drawn.at(alpha)[task] for alpha in (*ALPHAS, 0.35)])
        values = []
        for push in (step, -step):
            weights = np.full(losses.shape[1], (1 - push) / losses.shape[1])
            weights[image] += push
            curve = losses @ weights
            values.append(normaliser(kind, curve[:-1].tolist(), 4)(curve[-1]))
        row = sampling.contributions(objective, 0.35)[task]
        influence = (values[0] - values[1]) / (2 * step)
        assert row[image] - row.mean() == pytest.approx(influence, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_standard_errors_agree_with_a_bootstrap(build, kind):
    drawn = Drawn()
    objective = build(kind, drawn)
    solution = solver.grid(objective, step=0.05)
    error = sampling.standard_error(objective, solution)
    assert error == pytest.approx(resampled(drawn, kind, solution.alpha), rel=0.25)
    assert error == sampling.standard_error(objective, solution.trace)


@pytest.mark.parametrize("together", [1, -1])
def test_two_losses_of_the_same_images_vary_together(together):
    """Parabolas s (alpha - place)^2 of an image: alpha* is the mean of (s p + r q) / (s + r)."""
    place = np.random.default_rng(0).normal(0.25, 0.25, 400)
    shapes = ((1.0, place), (2.0, 0.8 + together * (place - 0.25)))

    def losses(alpha):
        return [0.1 + scale * (alpha - place) ** 2 for scale, place in shapes]

    def errors(*digests):
        def evaluate(alpha, names):
            pairs = zip(losses(alpha), digests, strict=True)
            return [ImageScores(row, np.ones(400, bool), digest) for row, digest in pairs]

        objective = PairObjective.replay(None, "01", [4, 4], "none", evaluate=evaluate)
        found = solver.log_quintic(objective, xtol=1e-6)
        _, error = sampling.difference(objective, 0.0, found.alpha)
        return found.alpha, *sampling.standard_error(objective, found), error

    alpha, *apart = errors("a", "b")
    alpha, *one = errors("a", "a")
    moves = [scale / 3 * place for scale, place in shapes]
    differences = [a - b for a, b in zip(losses(0.0), losses(alpha), strict=True)]
    parts = (moves, losses(alpha), differences)
    assert one == pytest.approx([np.std(sum(part)) / 20 for part in parts], rel=1e-4)
    assert apart == pytest.approx([math.hypot(*np.std(part, 1)) / 20 for part in parts], rel=1e-4)
    assert abs(one[0] / apart[0] - 1) > 0.3 and apart == [*errors("", "")][1:]


@pytest.mark.parametrize("kind", ["zero_shot", "minmax", "log_classes"])
def test_bootstrap_agrees_with_one_in_plain_steps(build, kind):
    drawn = Drawn()
    losses = [np.stack([drawn.at(a)[i] for a in ALPHAS]) for i in range(2)]
    found = sampling.bootstrap(ALPHAS, losses, [4, 4], kind)
    objective = build(kind, drawn)
    expected = sampling.standard_error(objective, solver.grid(objective))
    assert found == pytest.approx(expected, rel=0.25)
    assert found.alpha == pytest.approx(resampled(drawn, kind, 0.5)[0], rel=0.2)
    few = [sampling.bootstrap(ALPHAS, losses, [4, 4], kind, draws=80, **options)
           for options in ({}, {"seed": 0}, {"weights": np.ones(2)}, {"seed": 1})]  # fmt: skip
    assert few[0] == few[1] == few[2] != few[3]
    assert few[3] == pytest.approx(found, rel=0.4)


def test_bootstrap_of_equal_images_has_no_spread():
    losses = [np.repeat(0.1 + (ALPHAS[:, None] - place) ** 2, 9, axis=1) for place in (0.2, 0.7)]
    found = sampling.bootstrap(ALPHAS, losses, [2, 2], "none", draws=20)
    assert found == pytest.approx((0.0, 0.0), abs=1e-12)


def test_bootstrap_does_not_leave_the_bracket():
    drawn = Drawn(shift=0.75)  # falls up to the end, and a little beyond
    losses = [np.stack([drawn.at(a)[i] for a in ALPHAS]) for i in range(2)]
    found = sampling.bootstrap(ALPHAS, losses, [4, 4], "none", draws=50)
    assert found.alpha == 0 < found.value


def test_standard_error_does_not_depend_on_which_solver_sampled(build):
    objective = build()
    expected = sampling.standard_error(objective, solver.grid(objective))
    for solve in (solver.quintic, solver.log_quintic, solver.brent):
        found = sampling.standard_error(objective, solve(objective))
        assert found == pytest.approx(expected, rel=0.05), solve


def test_samples_that_all_but_coincide_do_no_harm(build):
    drawn, noise = Drawn(), np.random.default_rng(3)
    best = solver.grid(build(drawn=drawn))
    twin = best.alpha + 1e-7

    def at(alpha):
        rows = drawn.at(alpha)  # float32 rounds losses of images by this much
        return (
            [row + 1e-7 * noise.standard_normal(len(row)) for row in rows]
            if alpha == twin
            else rows
        )

    objective = build(at=at)
    expected = sampling.standard_error(objective, solver.grid(objective))
    parts = objective(twin)
    samples = [*best.trace, solver.Evaluation(twin, sum(parts), parts)]
    found = sampling.standard_error(objective, samples)
    assert found == pytest.approx(expected, rel=1e-3)


def test_standard_error_shrinks_with_the_root_of_the_images(build):
    one, four = build(), build(drawn=Drawn(copies=4))
    whole = sampling.standard_error(one, solver.grid(one))
    fourfold = sampling.standard_error(four, solver.grid(four))
    assert fourfold == pytest.approx([error / 2 for error in whole], rel=1e-9)


def test_difference_of_two_alphas_is_measured_on_the_same_images(build):
    objective = build()
    expected = sum(objective(0.5)) - sum(objective(0.55))
    value, error = sampling.difference(objective, 0.5, 0.55)
    assert value == pytest.approx(expected, abs=1e-12)
    apart = sampling.standard_error(objective, solver.grid(objective)).value
    assert 0 < error < 0.5 * apart
    assert sampling.difference(objective, 0.5, 0.5) == (0.0, 0.0)


def test_difference_has_the_error_of_its_images(build):
    objective = build("none")
    objective(0.2), objective(0.8)
    rows = [a - b for a, b in zip(Drawn().at(0.2), Drawn().at(0.8), strict=True)]
    expected = math.sqrt(sum(row.var() / len(row) for row in rows))
    value, error = sampling.difference(objective, 0.2, 0.8)
    assert (value, error) == pytest.approx((sum(row.mean() for row in rows), expected), rel=1e-12)


def test_nothing_is_evaluated_for_a_sampling_error(build):
    objective = build()
    objective(0.6)
    assert sampling.contributions(objective, 0.5) is None
    assert sampling.difference(objective, 0.5, 0.6) is None
    assert sampling.difference(objective, 0.6, 0.5) is None
    elsewhere = solver.grid(build())
    assert sampling.standard_error(objective, elsewhere) is None
    assert objective.evaluated == [0.0, 0.6]


def test_an_end_or_two_known_samples_give_an_error_of_the_value_only(build):
    objective = build(drawn=Drawn(shift=1.0))  # falls up to the end
    solution = solver.grid(objective)
    error = sampling.standard_error(objective, solution)
    assert solution.status is solver.Status.AT_END
    assert math.isnan(error.alpha) and error.value > 0
    objective, samples = build(), solver.grid(build(), step=0.25).trace  # the lowest is at 0.5
    for alpha in (0.25, 0.5):
        objective(alpha)
    assert sampling.standard_error(objective, samples[:3]).value > 0  # 0.5 is an end here
    known = sampling.standard_error(objective, samples)  # by the images at 0, 0.25 and 0.5
    assert known.alpha > 0
    two = sampling.standard_error(objective, samples[1:])
    assert math.isnan(two.alpha) and two.value == known.value


def test_an_error_is_unknown_where_the_fit_does_not_bend_upwards():
    values = {0.0: 0.301, 0.564: 0.135, 0.911: 0.943, 1.0: 0.194}  # two valleys
    noise = np.random.default_rng(0).normal(0.0, 0.01, (2, 50))
    noise -= noise.mean(1, keepdims=True)
    objective = objective_of(lambda a: values[a] / 2 + noise * (1 + a))
    samples = [solver.Evaluation(a, math.fsum(p := objective(a)), p) for a in values]
    error = sampling.standard_error(objective, samples)
    assert math.isnan(error.alpha) and error.value > 0


def test_fresh_evaluations_of_a_model_know_their_images(pair):
    objective = pair()
    solution = solver.log_quintic(objective)
    assert sampling.standard_error(objective, solution).value > 0
    rows = sampling.contributions(objective, solution.alpha)
    assert all(len(row) == 30 for row in rows)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_weights_are_carried_through_every_error(build, kind):
    plain = build(kind)
    weighed = build(kind)
    weighed.weights = (2.0, 2.0)
    for objective in (plain, weighed):
        objective(0.35), objective(0.6)
    rows = zip(*(sampling.contributions(o, 0.35) for o in (weighed, plain)), strict=True)
    assert all(np.array_equal(row, 2 * other) for row, other in rows)
    twice = [2 * x for x in sampling.difference(plain, 0.35, 0.6)]
    assert sampling.difference(weighed, 0.35, 0.6) == pytest.approx(twice, rel=1e-12)
    found, other = (sampling.standard_error(o, solver.grid(o)) for o in (weighed, plain))
    assert found == pytest.approx((other.alpha, 2 * other.value), rel=1e-9)


def test_error_of_a_weighed_sum_agrees_with_a_bootstrap(build):
    drawn, weights = Drawn(), (1.0, 3.0)
    losses = [np.stack([drawn.at(a)[i] for a in ALPHAS]) for i in range(2)]
    objective = build("zero_shot", drawn)
    objective.weights = weights
    found = sampling.standard_error(objective, solver.grid(objective))
    expected = sampling.bootstrap(ALPHAS, losses, [4, 4], "zero_shot", weights=weights)
    plain = sampling.bootstrap(ALPHAS, losses, [4, 4], "zero_shot")
    assert found == pytest.approx(expected, rel=0.25)
    assert expected.value > 1.4 * plain.value


# A bound near an end ------------------------------------------------------------------------------


def near_an_end(seed, place, images=100):
    """Two tasks of parabolas about places whose means have their middle at `place`."""
    noise = np.random.default_rng(seed).normal(0.0, 0.3, (2, images))
    places = place + np.array([[-0.4], [0.4]]) + noise
    return objective_of(lambda a: [1 + (a - row) ** 2 for row in places])


@pytest.mark.parametrize(("place", "below"), [(0.01, True), (0.99, False)])
def test_bound_holds_with_its_probability_where_the_error_is_unknown(place, below):
    """The slope is linear in alpha with a known spread: the bound is exact."""
    held, unknown, bounds = 0, 0, []
    for seed in range(200):
        objective = near_an_end(seed, place)
        solution = solver.log_quintic(objective)
        unknown += math.isnan(sampling.standard_error(objective, solution).alpha)
        found = sampling.bound(objective, solution)
        assert found.below is below and math.isfinite(found.alpha)
        held += found.alpha >= place if below else found.alpha <= place
        bounds.append(found.alpha)
    assert unknown > 40  # "+- nan" before
    assert 180 <= held <= 199  # 190 expected, with a standard deviation of 3
    spread = 0.3 / math.sqrt(200)
    assert np.median(bounds) == pytest.approx(
        place + (1.645 if below else -1.645) * spread, abs=0.01
    )


def test_bound_inside_is_so_many_errors_away(build):
    objective = build()
    solution = solver.grid(objective)
    error = sampling.standard_error(objective, solution).alpha
    for below, sign in ((True, 1), (False, -1)):
        found = sampling.bound(objective, solution, 0.975, below=below)
        assert found.below is below
        assert found.alpha == pytest.approx(solution.alpha + sign * 1.96 * error, abs=0.6 * error)
    wide, tight = (sampling.bound(objective, solution, p, below=True).alpha for p in (0.99, 0.8))
    assert solution.alpha < tight < wide


def test_bound_without_a_sure_slope_is_the_end_of_the_bracket():
    flat = np.random.default_rng(0).normal(0.0, 5.0, (2, 9))
    objective = objective_of(lambda a: [10 + a * (row - row.mean()) + a * a / 100 for row in flat])
    for low, high in ((0.0, 1.0), (-3.0, -1.0), (2.0, 6.0)):
        solution = solver.grid(objective, (low, high), step=(high - low) / 8)
        assert sampling.bound(objective, solution, below=True).alpha == high
        assert sampling.bound(objective, solution, below=False).alpha == low


@pytest.mark.parametrize(
    ("place", "below"), [(0.3, True), (0.4, True), (0.5, True), (0.6, False), (0.7, False)]
)
def test_bound_faces_the_further_end(place, below):
    for spread in (0.1, 50.0):  # inside the bracket, or its end
        rows = np.random.default_rng(0).normal(0.0, spread, (2, 100))
        rows += place - rows.mean(1, keepdims=True)
        objective = objective_of(lambda a, rows=rows: [9 + (a - row) ** 2 for row in rows])
        solution = solver.grid(objective, step=0.1)
        assert solution.alpha == place
        assert sampling.bound(objective, solution).below is below


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("middle", [0.3, 0.5, 0.7])
def test_bound_is_where_the_slope_first_exceeds_its_error(middle, below):
    """A sharp bend is no polynomial from end to end: the six samples nearest tell the slope."""
    places = middle + np.random.default_rng(0).normal(0.0, 0.1, (2, 50))
    objective = objective_of(lambda a: np.sqrt((a - places) ** 2 + 0.02))
    solution, sign = solver.grid(objective), 1 if below else -1
    for alpha in np.linspace(solution.alpha, float(below), 2001):
        slopes = (alpha - places) / np.sqrt((alpha - places) ** 2 + 0.02)
        if sign * slopes.mean(1).sum() > 1.645 * math.sqrt((slopes.var(1) / 50).sum()):
            break
    assert sampling.bound(objective, solution, below=below).alpha == pytest.approx(alpha, abs=0.005)


def test_bound_evaluates_nothing_and_refuses_what_is_no_probability():
    objective, samples = near_an_end(0, 0.01), solver.grid(near_an_end(0, 0.01)).trace
    assert sampling.bound(objective, samples) is None and objective.evaluated == [0.0]
    for bad in (0.0, 0.4, 1.0, math.nan):
        with pytest.raises(ValueError, match="probability is .*; give one from 0.5 to 1"):
            sampling.bound(objective, samples, bad)


# What the error is good for -----------------------------------------------------------------------


def objective_of(at, kind="none"):
    """Return the objective of images that cost `at(alpha)`, which can be evaluated anywhere."""

    def evaluate(alpha, names):
        rows = at(alpha)
        return [ImageScores(rows[int(n)], np.ones(len(rows[int(n)]), bool)) for n in names]

    return PairObjective.replay(None, "01", [4, 4], kind, evaluate=evaluate)


class Pair:
    """Two tasks whose images have log-losses that are parabolas of their own."""

    def __init__(self, seed, images=100, low=0.0, width=1.0):
        generator = np.random.default_rng(seed)
        self.low, self.width, self.rows = low, width, []
        for sign in (1, -2):  # patching spoils one task and repairs the other
            level, slope = generator.uniform(-1.5, 0.3), sign * generator.uniform(0.3, 1.5)
            middles = level, slope, generator.uniform(0.3, 1.5)
            self.rows.append([generator.normal(m, s, images)
                              for m, s in zip(middles, (0.8, 0.8, 0.4), strict=True)])  # fmt: skip

    def at(self, alpha):
        a = np.clip((alpha - self.low) / self.width, -0.5, 1.5)
        return [np.exp(level + slope * a + bend * a * a) for level, slope, bend in self.rows]

    def sum(self, alpha):
        return sum(
            row.mean() / base.mean() for row, base in zip(self.at(alpha), self.at(0.0), strict=True)
        )

    def minimum(self):
        """Return alpha* of these images and the curvature there, by a dense scan."""
        dense = np.linspace(0.0, 1.0, 201)
        best = int(np.argmin([self.sum(a) for a in dense]))
        if best in (0, 200):
            return None
        near, h = (dense[best - 1], dense[best + 1]), 1e-4
        alpha = minimize_scalar(self.sum, bounds=near, method="bounded", options={"xatol": 1e-9}).x
        return alpha, (self.sum(alpha + h) - 2 * self.sum(alpha) + self.sum(alpha - h)) / h**2


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_tolerance_is_a_share_of_the_standard_error(build, share):
    objective = build()
    solution = solver.grid(objective)
    error = sampling.standard_error(objective, solution).alpha
    found = sampling.tolerance(objective, share)(solution.trace)
    assert 1e-4 < found < 0.05
    assert found == share * error
    assert sampling.tolerance(objective)(solution.trace) == 0.1 * error


@pytest.mark.parametrize(("spread", "share_of_width"), [(0.0, 1e-4), (4.0, 0.05)])
@pytest.mark.parametrize(("low", "width"), [(0.0, 1.0), (2.0, 1.0), (-8.0, 4.0)])
def test_tolerance_stays_between_its_limits(low, width, spread, share_of_width):
    places = np.random.default_rng(0).normal(0.0, spread, 20)
    middle = low + 0.4 * width
    objective = objective_of(
        lambda a: [0.1 + (a - middle - width * (places - places.mean())) ** 2, np.ones(9)]
    )
    solution = solver.grid(objective, (low, low + width), step=width / 20)
    error = sampling.standard_error(objective, solution).alpha
    assert not 1e-4 <= 0.1 * error / width <= 0.05
    found = sampling.tolerance(objective)(solution.trace)
    assert found == pytest.approx(share_of_width * width, rel=1e-12)


@pytest.mark.parametrize(("low", "width"), [(0.0, 1.0), (2.0, 1.0), (-5.0, 8.0), (100.0, 0.125)])
def test_tolerance_is_a_thousandth_of_the_width_while_the_error_is_unknown(low, width):
    def at(alpha):
        places = np.random.default_rng(0).normal(0.7, 0.1, 50)
        return [1 + ((alpha - low) / width - places) ** 2] * 2

    objective = objective_of(at)
    tolerance = sampling.tolerance(objective)
    assert tolerance([]) == 1e-3
    trace = solver.grid(objective, (low, low + width), step=width / 8).trace
    assert tolerance(trace) == 0.1 * sampling.standard_error(objective, trace).alpha
    assert tolerance(trace[:1]) == 1e-3
    assert tolerance([trace[0], trace[-1]]) == 1e-3 * width
    assert tolerance(trace[:5]) == 1e-3 * width / 2  # the lowest of these is their end
    assert sampling.tolerance(objective_of(at))(trace) == 1e-3 * width  # not evaluated there


@pytest.mark.parametrize(("low", "width"), [(2.0, 1.0), (-5.0, 1.0), (3.0, 8.0)])
def test_tolerance_moves_and_widens_with_the_bracket(low, width):
    here, there = Pair(1), Pair(1, low=low, width=width)
    found = []
    for pair, bracket in ((here, (0.0, 1.0)), (there, (low, low + width))):
        objective = objective_of(pair.at)
        tolerance = sampling.tolerance(objective)
        solution = solver.log_quintic(objective, bracket, xtol=tolerance)
        shares = [(sample.alpha - bracket[0]) / pair.width for sample in solution.trace]
        found.append((shares, tolerance(sorted(solution.trace)) / pair.width))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan, math.inf])
def test_tolerance_refuses_what_is_no_share(build, share):
    with pytest.raises(ValueError, match=r"share is .*; it is a fraction of the sampling error"):
        sampling.tolerance(build(), share)
    assert sampling.tolerance(build(), 1.0)([]) == 1e-3


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_search_within_its_tolerance_errs_by_less_than_a_share_of_the_sampling_error(share):
    """On random pairs: off by less than tau, at an excess of less than F'' tau^2 / 2."""
    checked, saved = 0, 0
    for seed in range(60):
        pair = Pair(seed)
        if (place := pair.minimum()) is None or not 0.05 < place[0] < 0.95:
            continue
        alpha, curvature = place
        objective = objective_of(pair.at, "zero_shot")
        solution = solver.log_quintic(objective, xtol=sampling.tolerance(objective, share))
        error = sampling.standard_error(objective, solution).alpha
        tau = sampling.tolerance(objective, share)(sorted(solution.trace))
        assert solution.status is solver.Status.CONVERGED
        assert abs(solution.alpha - alpha) <= tau * 1.01
        excess = pair.sum(solution.alpha) - pair.sum(alpha)
        assert -1e-12 < excess <= curvature * tau**2 / 2 * 1.05 + 1e-12
        if 1e-4 < tau < 0.05:
            assert tau == share * error
            assert excess <= share**2 * (curvature * error**2 / 2) * 1.05 + 1e-12
        finer = solver.log_quintic(objective_of(pair.at, "zero_shot"), xtol=1e-3)
        if tau >= 1e-3:
            assert solution.evaluations <= finer.evaluations
        checked, saved = checked + 1, saved + finer.evaluations - solution.evaluations
    assert checked >= 30
    assert saved > 0 or share < 0.1


@pytest.mark.parametrize(
    ("noise", "low", "width"), [(1e-4, 0.0, 1.0), (5e-4, 0.0, 1.0), (5e-4, 2.0, 8.0)]
)
def test_standard_error_is_found_through_rounding_noise(noise, low, width):
    """Samples too close together tell the noise, those too far apart not the curvature."""
    Noisy = type("Noisy", (PairObjective,), {"noise": noise})
    ratios = []
    for seed in range(40):
        pair, generator = Pair(seed, 400, low, width), np.random.default_rng(seed)

        def evaluate(alpha, names, pair=pair, generator=generator):
            shift = generator.normal(0, noise / math.sqrt(2), 2)  # of a mean, all images have it
            rows = [row + own for row, own in zip(pair.at(alpha), shift, strict=True)]
            return [ImageScores(rows[int(n)], np.ones(400, bool)) for n in names]

        exact, bracket = objective_of(pair.at), (low, low + width)
        reference = solver.grid(exact, bracket, step=width / 20)
        if reference.status is solver.Status.CONVERGED:
            noisy = Noisy.replay(None, "01", [4, 4], "none", evaluate=evaluate)
            found = solver.log_quintic(noisy, bracket, xtol=sampling.tolerance(noisy))
            errors = [sampling.standard_error(*of) for of in ((noisy, found), (exact, reference))]
            ratios.append(errors[0].alpha / errors[1].alpha)
    assert len(ratios) > 20 and min(ratios) > 0.7 and max(ratios) < 1.3


def test_images_needed_is_the_closed_form():
    step, error = 0.05, 0.03
    expected = 500 * 12 * error**2 / step**2
    assert sampling.images_needed(error, 500, step / math.sqrt(12)) == round(expected) == 2160
    assert sampling.images_needed(0.05, 100, 0.01 / math.sqrt(12)) == 30_000  # but for rounding
    assert sampling.images_needed(0.02, 100, 0.02) == 100
    assert sampling.images_needed(0.02, 100, 0.01) == 400
    assert sampling.images_needed(0.01, 400, 0.02) == 100
    assert sampling.images_needed(0.01, 1, 1.0) == 1  # never none


def test_images_needed_are_enough_and_one_less_is_not():
    generator = np.random.default_rng(0)
    for _ in range(300):
        error, wanted = generator.uniform(0.001, 0.1, 2)
        images = int(generator.integers(1, 2000))
        assert sampling.images_needed(error, images, error) == images  # rounding adds no image
        needed = sampling.images_needed(error, images, wanted)
        assert error * math.sqrt(images / needed) <= wanted * (1 + 1e-11)
        assert needed == 1 or error * math.sqrt(images / (needed - 1)) > wanted
        assert abs(sampling.images_needed(error, images, wanted / 2) - 4 * needed) <= 4


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["stderr", "images", "wanted"])
def test_images_needed_refuses_what_is_not_positive(name, bad):
    with pytest.raises(ValueError, match=f"{name} is {bad}; give a positive, finite number"):
        sampling.images_needed(**{"stderr": 0.1, "images": 100, "wanted": 0.01, name: bad})


def test_images_needed_give_the_error_that_was_wanted():
    """Parabolas about places of known spread: alpha* is the mean of all places."""
    generator = np.random.default_rng(0)

    def spread(images):  # of alpha* over draws of as many images a task
        centres = [generator.normal(place, 0.3, (3000, images)) for place in (0.3, 0.7)]
        return float(np.mean(centres, axis=(0, 2)).std())

    places = [generator.normal(place, 0.3, 100) for place in (0.3, 0.7)]
    objective = objective_of(lambda a: [1 + (a - place) ** 2 for place in places])
    error = sampling.standard_error(objective, solver.grid(objective)).alpha
    exact = math.sqrt(sum(place.var() for place in places) / 100) / 2
    assert error == pytest.approx(exact, rel=1e-9) == pytest.approx(0.3 / math.sqrt(200), rel=0.1)
    assert (spread(200) / spread(100)) ** 2 == pytest.approx(1 / 2, rel=0.1)
    for wanted in (0.01, 0.03):
        needed = sampling.images_needed(0.3 / math.sqrt(200), 100, wanted)
        assert spread(needed) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("function", [lambda a: (a - 0.4) ** 2, lambda a: a, lambda a: -a, abs])
def test_one_valley_has_no_second(function):
    noise = np.random.default_rng(0).normal(size=30)
    objective = objective_of(lambda a: [3 + function(a) + noise, 3 + noise])
    solution = solver.grid(objective)
    assert sampling.second_valley(objective, solution) == (0.0, 0.0)
    for few in (solution.trace[:1], solution.trace[:2]):
        assert sampling.second_valley(objective, few) == (0.0, 0.0)


class Ridge:
    """Valleys at 1/4 and 3/4 with a ridge of 0.1 between, and a noise that waves in each image."""

    def __init__(self, images, depth=0.0):
        generator = np.random.default_rng(4)
        self.waves, self.depth = generator.normal(0.0, 0.3, (2, 2, images)), depth

    def at(self, alpha):
        turn, valleys = 2 * math.pi * alpha, 1 + 0.05 * math.cos(4 * math.pi * alpha)
        tilt = (valleys - self.depth * alpha, 1.0)
        return [level + a * math.cos(turn) + b * math.sin(turn)
                for level, (a, b) in zip(tilt, self.waves, strict=True)]  # fmt: skip


def test_second_valley_is_the_violation_and_its_error_that_of_a_difference():
    objective = objective_of(Ridge(10_000, depth=0.02).at)
    solution = solver.grid(objective)
    height, error = sampling.second_valley(objective, solution)
    values = [sample.value for sample in solution.trace]
    assert height == pytest.approx(metrics.quasiconvexity_violation(values), rel=1e-9)
    assert height == pytest.approx(0.095, abs=0.02)  # from the higher valley, the left one
    assert (height, error) == sampling.difference(objective, 0.5, 0.25)
    assert sampling.second_valley(objective, reversed(solution.trace)) == (height, error)
    three = [sample for sample in solution.trace if sample.alpha in (0.25, 0.5, 0.75)]
    assert sampling.second_valley(objective, three) == (height, error)


@pytest.mark.parametrize(("images", "sure"), [(8, False), (4000, True)])
def test_second_valley_is_told_from_noise_by_many_images(images, sure):
    objective = objective_of(Ridge(images).at)
    height, error = sampling.second_valley(objective, solver.grid(objective))
    assert height > 0
    assert (height > 1.96 * error) is sure


def test_second_valley_of_another_objectives_samples_is_unknown():
    ridge = Ridge(50)
    samples = solver.grid(objective_of(ridge.at)).trace
    objective = objective_of(ridge.at)
    assert sampling.second_valley(objective, samples) is None
    top = next(s for s in samples if s.alpha == 0.5)
    objective(top.alpha)
    assert sampling.second_valley(objective, samples) is None  # the valley beside is missing
    before = list(objective.evaluated)
    for sample in samples:
        objective(sample.alpha)
    assert sampling.second_valley(objective, samples)[0] > 0
    assert before == [0.0, 0.5] and len(objective.evaluated) == 21
