"""Sampling errors: of a loss, of alpha*, of a difference; against formulas and a bootstrap."""

import math

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from paintlib import PairObjective, Store, normaliser, sampling, solver
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


@pytest.mark.parametrize("kind", ["zero_shot", "minmax", "log_classes"])
def test_bootstrap_agrees_with_one_in_plain_steps(build, kind):
    drawn = Drawn()
    losses = [np.stack([drawn.at(a)[i] for a in ALPHAS]) for i in range(2)]
    found = sampling.bootstrap(ALPHAS, losses, [4, 4], kind)
    objective = build(kind, drawn)
    expected = sampling.standard_error(objective, solver.grid(objective))
    assert found == pytest.approx(expected, rel=0.25)
    assert found.alpha == pytest.approx(resampled(drawn, kind, 0.5)[0], rel=0.2)
    assert found == sampling.bootstrap(ALPHAS, losses, [4, 4], kind, draws=500, seed=0)
    other = sampling.bootstrap(ALPHAS, losses, [4, 4], kind, draws=500, seed=1)
    assert other != found and other == pytest.approx(found, rel=0.25)


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


def test_fresh_evaluations_of_a_model_know_their_images(pair):
    objective = pair()
    solution = solver.log_quintic(objective)
    assert sampling.standard_error(objective, solution).value > 0
    rows = sampling.contributions(objective, solution.alpha)
    assert all(len(row) == 30 for row in rows)
