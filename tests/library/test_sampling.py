"""Sampling errors: of a loss, of alpha*, of a difference; against formulas and a bootstrap."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from experiment import results
from paintlib import solver
from paintlib.losses import NORMALISATIONS, Score

IMAGES = (400, 300)
ALPHAS = np.linspace(0.0, 1.0, 21).round(12)


class Drawn:
    """Two tasks whose images have parabolas of their own: a PairObjective without a model."""

    def __init__(self, build, normalisation="zero_shot", seed=0):
        generator = np.random.default_rng(seed)
        self.shape = [
            (generator.normal(place, 0.25, n), generator.gamma(4.0, 0.25, n) + 0.2)
            for n, place in zip(IMAGES, (0.25, 0.8), strict=True)
        ]
        every = {float(a): self.at(a) for a in ALPHAS}
        scores = {a: tuple(Score(float(r.mean()), 0.5, len(r)) for r in rows)
                  for a, rows in every.items()}  # fmt: skip
        self.objective = build(normalisation, scores=scores, losses=every)

    def at(self, alpha):
        return tuple(0.1 + scale * (alpha - place) ** 2 for place, scale in self.shape)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_contributions_of_images_average_to_the_normalised_loss(pair, kind):
    objective = Drawn(pair, kind).objective
    for alpha in (0.0, 0.35, 1.0):
        rows = objective.per_image(alpha)
        assert [len(row) for row in rows] == list(IMAGES)
        assert [row.mean() for row in rows] == pytest.approx(objective(alpha), abs=1e-12)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_standard_errors_agree_with_a_bootstrap(pair, kind):
    drawn = Drawn(pair, kind)
    solution = solver.grid(drawn.objective, step=0.05)
    generator = np.random.default_rng(1)
    dense = np.linspace(0.0, 1.0, 2001)
    found = []
    for _ in range(600):
        total = np.zeros_like(dense)
        sampled = 0.0
        for i, n in enumerate(IMAGES):
            rows = generator.integers(0, n, n)
            curve = np.array([drawn.objective.losses[float(a)][i][rows].mean() for a in ALPHAS])
            offset, unit = {
                "zero_shot": (0.0, curve[0]), "log_classes": (0.0, math.log(4)),
                "minmax": (curve.min(), np.ptp(curve)), "none": (0.0, 1.0),
            }[kind]  # fmt: skip
            total += (CubicSpline(ALPHAS, curve)(dense) - offset) / unit
            sampled += (curve[ALPHAS.tolist().index(solution.alpha)] - offset) / unit
        found.append((dense[total.argmin()], sampled))
    spread = np.std(found, axis=0)
    assert solution.stderr.alpha == pytest.approx(spread[0], rel=0.25)
    assert solution.stderr.value == pytest.approx(spread[1], rel=0.25)


def test_standard_error_does_not_depend_on_which_solver_sampled(pair):
    drawn = Drawn(pair)

    class Anywhere:
        """The same objective where a solver may ask for any alpha."""

        def per_image(self, alpha):
            zero = drawn.at(0.0)
            values = [row.mean() / z.mean() for row, z in zip(drawn.at(alpha), zero, strict=True)]
            return tuple(
                (row - value * (z - z.mean())) / z.mean()
                for row, value, z in zip(drawn.at(alpha), values, zero, strict=True)
            )

        def __call__(self, alpha):
            return tuple(row.mean() for row in self.per_image(alpha))

    expected = solver.grid(drawn.objective).stderr
    for solve in (solver.quintic, solver.brent, solver.grid):
        assert solve(Anywhere()).stderr == pytest.approx(expected, rel=0.05), solve


def test_samples_that_all_but_coincide_do_no_harm(pair):
    drawn = Drawn(pair)
    expected = solver.grid(drawn.objective).stderr
    best = solver.grid(drawn.objective).alpha
    noise = np.random.default_rng(3)
    twin = best + 1e-7
    rows = [row + 1e-7 * noise.standard_normal(len(row)) for row in drawn.at(twin)]  # float32
    drawn.objective.losses[twin] = tuple(rows)
    drawn.objective.scores[twin] = tuple(Score(float(r.mean()), 0.5, len(r)) for r in rows)
    samples = [
        solver.Evaluation(a, sum(drawn.objective(a)), drawn.objective(a))
        for a in sorted({*ALPHAS.tolist(), twin})
    ]
    found = solver.standard_error(drawn.objective, samples)
    assert found.alpha == pytest.approx(expected.alpha, rel=1e-3)
    assert found.value == pytest.approx(expected.value, rel=1e-3)


def test_standard_error_shrinks_with_the_root_of_the_images(pair):
    drawn = Drawn(pair)
    whole = solver.grid(drawn.objective).stderr
    for alpha, rows in drawn.objective.losses.items():
        drawn.objective.losses[alpha] = tuple(np.tile(row, 4) for row in rows)
    fourfold = solver.grid(drawn.objective).stderr
    assert fourfold == pytest.approx([error / 2 for error in whole], rel=1e-9)


def test_difference_of_two_alphas_is_measured_on_the_same_images(pair):
    objective = Drawn(pair).objective
    value, error = objective.difference(0.5, 0.55)
    assert value == pytest.approx(sum(objective(0.5)) - sum(objective(0.55)), abs=1e-12)
    apart = solver.grid(objective).stderr.value
    assert 0 < error < 0.5 * apart
    assert objective.difference(0.5, 0.5) == (0.0, 0.0)


def test_errors_are_absent_where_single_images_are_unknown(pair):
    assert solver.quintic(lambda a: (1 + a, 4 * (1 - a) ** 2 + 0.1)).stderr is None
    drawn = Drawn(pair)
    del drawn.objective.losses[0.0]  # the scale of zero_shot
    assert drawn.objective.per_image(0.5) is None
    assert drawn.objective.difference(0.5, 0.6) is None
    assert solver.grid(drawn.objective).stderr is None


def test_an_end_has_an_error_of_its_value_only(pair):
    drawn = Drawn(pair)
    for alpha in drawn.objective.losses:
        rows = drawn.at(alpha - 1.0)  # falls up to the end
        drawn.objective.losses[alpha] = rows
        drawn.objective.scores[alpha] = tuple(Score(float(r.mean()), 0.5, len(r)) for r in rows)
    solution = solver.grid(drawn.objective)
    assert solution.status is solver.Status.AT_END
    assert math.isnan(solution.stderr.alpha) and solution.stderr.value > 0
    assert solution.record()["stderr"][0] is None


def test_fresh_evaluations_know_their_images_and_count_forward_passes(pair):
    objective = pair()
    assert objective.forwards == 60  # the scale needs alpha = 0
    solution = solver.quintic(objective)
    assert objective.forwards == 60 * (solution.evaluations)
    assert solution.stderr.value > 0
    assert all(len(row) == 30 for row in objective.per_image(solution.alpha))


@pytest.fixture(scope="module")
def micro():
    return results.read_pairs(Path(__file__).resolve().parent.parent / "results" / "micro")


def test_standard_errors_of_the_micro_pairs_agree_with_their_bootstrap(micro):
    for record in micro:
        alpha, value = record["solutions"]["quintic"]["stderr"]
        name = record["supported"], record["patching"]
        assert alpha == pytest.approx(record["sampling"]["bootstrap_alpha"], rel=0.25), name
        assert value == pytest.approx(record["sampling"]["bootstrap_value"], rel=0.25), name


def test_micro_pairs_are_solved_economically(micro):
    paid = [record["solutions"]["quintic"]["evaluations"] for record in micro]
    assert np.mean(paid) <= 4 and max(paid) <= 6
    for record in micro:
        found = record["solutions"]
        assert found["quintic"]["value"] <= found["exhaustive"]["value"] * (1 + 1e-6)
