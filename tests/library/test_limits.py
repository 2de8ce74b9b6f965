"""Ceilings: found in few evaluations, verified, held on other images with their probability."""

import math

import numpy as np
import pytest
from scipy import optimize, special

from paintlib import PairObjective, limits, solver
from paintlib.limits import Ceiling
from paintlib.objective import ImageScores
from paintlib.solver import Status

NAMES = ("keep", "fix", "also")
MIDDLES = (
    (-0.5, 0.6, 1.0),
    (0.0, -2.0, 1.0),
    (-1.0, 0.2, 0.5),
)  # of log-losses: level + s a + b a^2

SPREADS = (0.8, 0.3, 0.2)


class Tasks:
    """Tasks whose images have log-losses that are parabolas of their own."""

    def __init__(self, seed, images=300, low=0.0, width=1.0, tasks=2):
        generator = np.random.default_rng(seed)
        self.low, self.width = low, width
        own = [zip(middles, SPREADS, strict=True) for middles in MIDDLES[:tasks]]
        self.rows = [[generator.normal(m, s, images) for m, s in numbers] for numbers in own]

    def losses(self, alpha, task):
        level, slope, bend = self.rows[task]
        a = (alpha - self.low) / self.width
        return np.exp(level + slope * a + bend * a * a)

    def objective(self, kind="zero_shot", **options):
        def evaluate(alpha, names):
            rows = [self.losses(alpha, NAMES.index(name)) for name in names]
            return [ImageScores(row, row < 1) for row in rows]

        names = NAMES[: len(self.rows)]
        return PairObjective.replay(
            None, names, [4] * len(names), kind, evaluate=evaluate, **options
        )


def true_rise(alpha, task=0):
    """Return L(alpha) / L(0) - 1 over endlessly many images: a Gaussian integral of exp."""

    def log_mean(a):
        level, slope, bend = MIDDLES[task]
        return level + slope * a + bend * a * a + (0.8**2 + (0.3 * a) ** 2 + (0.2 * a * a) ** 2) / 2

    return math.exp(log_mean(alpha) - log_mean(0.0)) - 1


def test_highest_rise_is_the_limit_of_a_ratio():
    tasks = Tasks(0)
    objective = tasks.objective(weights=(5, 1))
    start, here = tasks.losses(0.0, 0), tasks.losses(0.3, 0)
    ratio = here.mean() / start.mean()
    assert limits.highest_rise(objective, "keep", 0.3, 0.5) == pytest.approx(ratio - 1, rel=1e-12)
    generator, draws = np.random.default_rng(0), []
    for _ in range(2000):
        chosen = generator.integers(0, 300, 300)
        draws.append(here[chosen].mean() / start[chosen].mean() - 1)
    limit = limits.highest_rise(objective, "keep", 0.3)
    assert limit == pytest.approx(ratio - 1 + 1.645 * np.std(draws), abs=0.3 * np.std(draws))
    assert limits.highest_rise(objective, "keep", 0.0) == 0.0


@pytest.mark.parametrize("kind", ["zero_shot", "log_classes", "minmax", "none"])
def test_ceiling_is_met_and_verified_in_one_or_two_more_evaluations(kind):
    tasks, ceiling = Tasks(0), Ceiling("keep", 0.1)
    objective = tasks.objective(kind)
    free = solver.log_quintic(tasks.objective(kind))
    assert limits.highest_rise(objective, "keep", free.alpha) > 0.1
    found = limits.under(objective, [ceiling])
    assert found.status is Status.AT_CEILING and found.verified
    assert free.evaluations < found.evaluations <= free.evaluations + 2
    assert -0.02 < limits.highest_rise(objective, "keep", found.alpha) - 0.1 <= 0
    met = optimize.brentq(lambda a: limits.highest_rise(objective, "keep", a) - 0.1, 0.01, 0.9)
    assert met - 0.006 <= found.alpha <= met
    assert found.bracket[0] < found.alpha < found.bracket[1]


def test_ceiling_that_is_not_met_changes_nothing():
    tasks = Tasks(0)
    free = solver.log_quintic(tasks.objective())
    assert limits.under(tasks.objective(), [Ceiling("keep", 5.0), Ceiling("fix", 0.0)]) == free


def test_ceiling_holds_on_other_images_with_its_probability():
    met = optimize.brentq(lambda a: true_rise(a) - 0.1, 0.01, 0.9)
    for probability, least, most in ((0.95, 46, 50), (0.5, 20, 42)):
        kept = 0
        for seed in range(50):
            found = limits.under(Tasks(seed).objective(), [Ceiling("keep", 0.1, probability)])
            assert found.status is Status.AT_CEILING
            kept += true_rise(found.alpha) <= 0.1
            assert found.alpha == pytest.approx(met, abs=0.03)
        assert least <= kept <= most


@pytest.mark.parametrize(("low", "width"), [(0.0, 1.0), (-0.5, 2.0), (-3.0, 4.0)])
def test_ceiling_is_met_in_brackets_outside_of_0_and_1(low, width):
    tasks = Tasks(1)
    expected = limits.under(tasks.objective(), [Ceiling("keep", 0.1)])
    found = limits.under(tasks.objective(), [Ceiling("keep", 0.1)], (low, low + width))
    assert found.status is Status.AT_CEILING
    assert found.alpha == pytest.approx(expected.alpha, abs=0.005 * width + 0.005)
    assert limits.highest_rise(tasks.objective(), "keep", found.alpha) <= 0.1


def test_ceilings_of_several_of_three_tasks_all_hold():
    tasks = Tasks(2, tasks=3)
    ceilings = [Ceiling("keep", 0.5), Ceiling("also", 0.03, 0.9)]
    objective = tasks.objective(weights=(1, 2, 1))
    found = limits.under(objective, ceilings)
    alone = [limits.under(tasks.objective(weights=(1, 2, 1)), [own]).alpha for own in ceilings]
    assert found.alpha == pytest.approx(min(alone), abs=0.01) and alone[1] < alone[0] - 0.02
    for ceiling in ceilings:
        rise = limits.highest_rise(objective, ceiling.task, found.alpha, ceiling.probability)
        assert rise <= ceiling.rise
    assert len(found.trace[0].parts) == 3


def test_task_of_weight_0_has_nothing_but_its_ceiling():
    tasks = Tasks(0)
    objective = tasks.objective(weights=(0, 1))
    found = limits.under(objective, [Ceiling("keep", 0.3)])
    assert found.status is Status.AT_CEILING and found.trace[0].parts == (0.0, 1.0)
    met = optimize.brentq(lambda a: limits.highest_rise(objective, "keep", a) - 0.3, 0.01, 0.9)
    assert met - 0.006 <= found.alpha <= met


def test_fall_that_is_asked_for_is_found_between_the_samples():
    def evaluate(alpha, names):
        rows = {"keep": 0.8 + 5 * (alpha - 0.2) ** 2, "fix": (1.5 - alpha) ** 2}
        return [ImageScores(np.full(9, rows[name]), np.ones(9, bool)) for name in names]

    objective = PairObjective.replay(None, NAMES[:2], [4, 4], evaluate=evaluate)
    found = limits.under(objective, [Ceiling("keep", -0.18)])
    assert found.status is Status.AT_CEILING
    assert objective.score(found.alpha)[0].loss <= 0.82
    none = limits.under(objective, [Ceiling("keep", -0.5)])
    assert none.status is Status.ABOVE_CEILING and none.alpha == pytest.approx(0.2, abs=0.02)


def test_start_that_just_obeys_does_not_hide_that_the_loss_falls_first():
    def evaluate(alpha, names):
        rows = {"keep": math.exp(-0.4 * alpha + 2 * alpha**2), "fix": math.exp(-2 * alpha)}
        return [ImageScores(np.full(9, rows[name]), np.ones(9, bool)) for name in names]

    objective = PairObjective.replay(None, NAMES[:2], [4, 4], evaluate=evaluate, weights=(0, 1))
    found = limits.under(objective, [Ceiling("keep", 0.0)])
    assert found.status is Status.AT_CEILING and 0.194 <= found.alpha <= 0.2


def test_start_is_left_alone_where_nothing_may_rise():
    found = limits.under(Tasks(0).objective(), [Ceiling("keep", 0.0)])
    assert found.status is Status.AT_CEILING and 0 <= found.alpha < 0.01


def test_ceilings_that_make_no_sense_are_refused_before_anything_is_paid_for():
    objective = Tasks(0).objective()
    for ceilings, message in (
        ([], "no ceiling is given"),
        ([Ceiling("kept", 0.1)], "no task is called 'kept'; choose from keep, fix"),
        ([Ceiling("keep", -1.0)], "the rise is a fraction of the loss above -1"),
        ([Ceiling("keep", math.nan)], "the rise is a fraction"),
        ([Ceiling("keep", 0.1, 95)], "probability is 95; give one between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            limits.under(objective, ceilings)
    assert objective.evaluated == [0.0]


def test_ceiling_on_one_image_is_its_mean_or_refused():
    one = PairObjective.replay(None, ["keep"], [4], "none", evaluate=lambda alpha, _: [
        ImageScores(np.array([1 + alpha**2]), np.ones(1, bool))])  # fmt: skip
    assert limits.highest_rise(one, "keep", 0.5, 0.5) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="task 'keep' has one image, .*or the probability 0.5"):
        limits.highest_rise(one, "keep", 0.5)


def test_ceiling_of_a_start_that_alpha_0_does_not_have():
    tasks, rise = Tasks(0), 0.1
    lower = ImageScores(0.97 * tasks.losses(0.0, 0), np.ones(300, bool))
    ceiling, objective = Ceiling("keep", rise, 0.95, lower), tasks.objective()
    found = limits.under(objective, [ceiling])
    there = tasks.losses(found.alpha, 0)
    ratio = there.mean() / lower.losses.mean()
    error = np.std(there - ratio * lower.losses) / lower.losses.mean() / math.sqrt(299)
    highest = ratio - 1 + special.stdtrit(299, 0.95) * error
    assert rise - 0.02 < highest <= rise
    told = limits.highest_rise(objective, "keep", found.alpha, 0.95, lower)
    assert told == pytest.approx(highest)
    plain = limits.under(tasks.objective(), [ceiling._replace(start=None)])
    assert found.status is plain.status is Status.AT_CEILING and found.alpha < plain.alpha - 0.01
    named = PairObjective.replay(None, ["keep"], [4], evaluate=lambda alpha, _: [
        lower._replace(digest="a")])  # fmt: skip
    few = ImageScores(lower.losses[1:], lower.correct[1:])
    for other in (few, lower._replace(digest="b")):
        with pytest.raises(ValueError, match="start of the ceiling on 'keep' is of other images"):
            limits.under(named, [ceiling._replace(start=other)])


@pytest.mark.parametrize("images", (3, 10, 100))
def test_highest_rise_holds_with_its_probability_for_few_images(images):
    generator, inside = np.random.default_rng(0), []
    for _ in range(2000):
        start = generator.normal(1, 0.05, images)
        rows = {0.0: start, 1.0: start + generator.normal(0.01, 0.02, images)}
        scores = {alpha: [ImageScores(row, row > 0)] for alpha, row in rows.items()}
        objective = PairObjective.replay(
            None, ["keep"], [4], "none", evaluate=lambda alpha, _, scores=scores: scores[alpha]
        )
        inside.append(limits.highest_rise(objective, "keep", 1.0) >= 0.01)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("rise", (0.0, 1e-3))
def test_zero_shot_end_within_the_bracket_obeys_its_ceiling(rise):
    """A bracket that begins below 0 need not have it among its samples."""
    for seed in range(10):
        found = limits.under(Tasks(seed).objective(), [Ceiling("keep", rise)], (-0.3, 1.2))
        assert found.status is Status.AT_CEILING and 0.0 in [sample.alpha for sample in found.trace]
        objective = Tasks(seed).objective()
        again = limits.under(objective, [Ceiling("keep", rise)], (-0.3, 1.2), known=found.trace)
        assert [sample.alpha for sample in again.trace].count(0.0) == 1


def test_known_evaluations_are_not_paid_for_again():
    objective = Tasks(0).objective()
    first = limits.under(objective, [Ceiling("keep", 0.1)])
    again = limits.under(objective, [Ceiling("keep", 0.1)], known=first.trace)
    assert again.evaluations <= 1 and again.alpha == pytest.approx(first.alpha, abs=0.01)
    elsewhere = Tasks(0).objective()  # knows the images at 0 only
    found = limits.under(elsewhere, [Ceiling("keep", 0.1)], known=first.trace)
    assert found.alpha == first.alpha and found.evaluations == first.evaluations - 1


@pytest.mark.parametrize("shift", [-9.0, "zero"])
def test_rise_of_a_loss_that_is_not_positive_is_refused(shift):
    def evaluate(alpha, names):
        row = np.zeros(30) if shift == "zero" else np.linspace(1, 2, 30) + alpha + shift
        return [ImageScores(row, row < 1) for _ in names]

    objective = PairObjective.replay(None, ["keep", "fix"], [4, 4], "none", evaluate=evaluate)
    with pytest.raises(ValueError, match="task 'keep' has a zero-shot loss of"):
        limits.under(objective, [Ceiling("keep", 0.01)])


def test_error_of_an_alpha_at_its_ceiling_is_the_spread_over_redrawn_images():
    for ceiling in (Ceiling("keep", 0.05), Ceiling("keep", 0.3), Ceiling("keep", 0.3, 0.5)):
        alphas, errors = [], []
        for seed in range(80):
            objective = Tasks(seed).objective(weights=(1, 8))
            found = limits.under(objective, [ceiling])
            assert found.status is Status.AT_CEILING
            error, distance = limits.errors(objective, [ceiling], found)
            assert distance <= limits.NEAR
            alphas.append(found.alpha), errors.append(error)
        assert np.std(alphas) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.25)


@pytest.mark.parametrize("own", (False, True))
def test_error_of_the_ceiling_is_that_of_the_jackknife(own):
    """And not at an end, where a ceiling of 0 leaves alpha."""
    objective, ceiling = Tasks(3, images=40).objective(weights=(1, 8)), Ceiling("keep", 0.2)
    if own:  # a start that has its own losses, as of a checkpoint before `after`
        first = objective.images(0.0)[0]
        other = first.losses * np.random.default_rng(0).uniform(0.6, 1.4, 40)
        ceiling = ceiling._replace(start=first._replace(losses=other))
    found = limits.under(objective, [ceiling])
    start, here = (objective.images(a)[0].losses for a in (0.0, found.alpha))
    start = ceiling.start.losses if own else start
    pairs = [(np.delete(start, i), np.delete(here, i)) for i in range(40)]
    ratios = [(b.mean() / a.mean(), a, b) for a, b in pairs]
    quantile = special.stdtrit(38, 0.95)
    rises = [r + quantile * np.std(b - r * a) / 38**0.5 / a.mean() for r, a, b in ratios]
    error, _ = limits.errors(objective, [ceiling], found)
    slope = np.std(rises) * 39**0.5 / error
    rise = [
        limits.highest_rise(objective, "keep", found.alpha + h, 0.95, ceiling.start)
        for h in (-0.01, 0.01)
    ]
    assert slope == pytest.approx((rise[1] - rise[0]) / 0.02, rel=0.1)
    none = Ceiling("keep", 0.0)
    at_start = limits.under(objective, [none])
    assert at_start.alpha > 0 or math.isnan(limits.errors(objective, [none], at_start)[0])
