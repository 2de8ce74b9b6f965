"""The objective: normalised, evaluated once, kept in a store, replayed without a model."""

import contextlib
import math

import numpy as np
import pytest
import torch
from small import batches, network

from paintlib import (
    PairObjective,
    Score,
    Store,
    TaskLoss,
    WeightPath,
    normaliser,
    sampling,
    solver,
)
from paintlib.normalisation import NORMALISATIONS, Normaliser
from paintlib.objective import ImageScores


@pytest.fixture
def forwards(monkeypatch):
    """Count the images that go through a model."""
    seen = []
    before = torch.nn.Sequential.forward
    monkeypatch.setattr(
        torch.nn.Sequential, "forward", lambda self, x: (seen.append(len(x)), before(self, x))[1]
    )
    return seen


AGAIN = 60  # the first images of each of two tasks, here all, are scored twice


def scored(*losses):
    return ImageScores(np.array(losses), np.array(losses) < 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("zero_shot", 0.75), ("log_classes", 1.5 / math.log(4)), ("minmax", 0.5), ("none", 1.5)],
)
def test_normaliser_scales_as_defined(kind, expected):
    assert normaliser(kind, [2.0, 1.0, 1.2], classes=4)(1.5) == pytest.approx(expected)


def test_normaliser_subtracts_the_lowest_for_minmax_only():
    assert normaliser("minmax", [2.0, 1.0, 1.2], 4) == Normaliser(1.0, 1.0)
    assert {
        normaliser(kind, [2.0, 1.0], 4).offset for kind in set(NORMALISATIONS) - {"minmax"}
    } == {0}


@pytest.mark.parametrize(
    ("kind", "losses", "classes", "message"),
    [
        ("zeroshot", [1.0], 2, "'zeroshot'; choose from zero_shot, log_classes, minmax, none"),
        ("minmax", [1.0, 1.0], 2, "'minmax' normalisation has the scale 0.0"),
        ("zero_shot", [0.0, 1.0], 2, "scale 0.0: the task's loss is zero"),
        ("zero_shot", [math.nan, 1.0], 2, "scale nan"),
        ("minmax", [1.0, math.inf], 2, "scale inf"),
        ("log_classes", [1.0, 1.0], 1, "choose another$"),
    ],
)
def test_normaliser_refuses(kind, losses, classes, message):
    with pytest.raises(ValueError, match=message):
        normaliser(kind, losses, classes)


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_objective_is_the_normalised_losses(pair, kind):
    objective = pair(kind)
    raw = [objective.score(a)[0].loss for a in objective.samples]
    expected = normaliser(kind, raw, 4)(objective.score(0.55)[0].loss)
    assert objective(0.55)[0] == pytest.approx(expected, rel=1e-12)
    if kind == "zero_shot":
        assert objective(0.0) == (1.0, 1.0)


def test_image_scores_average_to_a_score():
    assert scored(0.5, 1.5, 0.25, 0.75).score == Score(0.75, 0.75, 4)
    assert scored(0.5, 1.5, 0.25, 0.75).score.images == 4


def test_objective_evaluates_each_alpha_once(pair, forwards):
    objective = pair()
    assert objective.evaluated == [0.0] and sum(forwards) == 60 + AGAIN  # the scale needs alpha = 0
    assert objective.known(0.0) and not objective.known(0.5)
    solution = solver.log_quintic(objective)
    assert sum(forwards) == 60 * solution.evaluations + AGAIN
    assert objective.evaluated == list(dict.fromkeys(e.alpha for e in solution.fresh))
    again = solver.log_quintic(objective)
    assert again == solution and sum(forwards) == 60 * solution.evaluations + AGAIN
    assert objective.images(solution.alpha)[0].score == objective.score(solution.alpha)[0]


def test_minmax_evaluates_its_samples_when_first_needed_and_counts_them(pair):
    objective = pair("minmax")
    assert objective.evaluated == [] and sampling.contributions(objective, 0.3) is None
    objective.score(0.31)
    assert objective.evaluated == [0.31]
    assert sampling.contributions(objective, 0.31) is None  # evaluates no scale for an error
    objective(0.31), objective(0.35)
    assert objective.evaluated == [0.31, *PairObjective.samples]
    assert PairObjective.samples == tuple(np.linspace(0.0, 1.0, 21).round(12).tolist())
    assert pair("none").evaluated == [0.0]


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_weights_are_factors_of_the_normalised_losses(pair, kind):
    plain, weighed = pair(kind), pair(kind, weights=(1, 3))
    assert plain.weights == (1.0, 1.0) and weighed.weights == (1.0, 3.0)
    for alpha in (0.0, 0.35):
        first, second = plain(alpha)
        assert weighed(alpha) == (first, 3 * second)
    assert weighed.normalisers == plain.normalisers
    assert pair(kind, weights=(1, 1))(0.35) == plain(0.35)


def test_weights_move_the_minimum_as_a_sum_of_weighed_parts_does(pair):
    plain = pair()
    for weights in ((1, 3), (5, 1), (0, 1)):
        found = solver.grid(pair(weights=weights))
        dense = [
            sum(w * p for w, p in zip(weights, plain(s.alpha), strict=True)) for s in found.trace
        ]
        assert found.value == pytest.approx(min(dense), rel=1e-12)
    assert solver.grid(pair(weights=(7, 7))).alpha == solver.grid(plain).alpha


def test_replay_takes_weights(pair, tmp_path):
    live = pair(store=Store(tmp_path / "s.npz"), weights=(2, 0.5))
    expected = live(0.5)
    stored = Store(tmp_path / "s.npz", writable=False)
    assert PairObjective.replay(stored, "01", [4, 4], weights=(2, 0.5))(0.5) == expected


@pytest.mark.parametrize(
    "weights", [(1,), (1, 2, 3), (1, -1), (0, 0), (1, math.nan), (math.inf, 1)]
)
def test_weights_that_are_no_factors_are_refused(pair, weights):
    with pytest.raises(
        ValueError, match=r"2 tasks but the weights \(.*; give each task a positive"
    ):
        pair(weights=weights)


def test_search_resumes_from_its_store_without_repeating_an_evaluation(pair, forwards, tmp_path):
    class Killed(Exception):
        pass

    def dies_after(objective, count):
        def call(alpha):
            if len(objective.evaluated) >= count and not objective.known(alpha):
                raise Killed
            return objective(alpha)

        return call

    whole = solver.log_quintic(pair())
    forwards.clear()
    with pytest.raises(Killed):
        solver.log_quintic(dies_after(pair(store=Store(tmp_path / "s.npz")), 3))
    assert sum(forwards) == 3 * 60 + AGAIN
    resumed = pair(store=Store(tmp_path / "s.npz"))
    assert solver.log_quintic(resumed) == whole
    assert len(resumed.evaluated) == whole.evaluations - 3
    confirmed = 60  # once more at alpha = 0, to compare
    assert sum(forwards) == 60 * whole.evaluations + 2 * AGAIN + confirmed
    assert solver.log_quintic(pair(store=Store(tmp_path / "s.npz", writable=False))) == whole
    assert sum(forwards) == 60 * whole.evaluations + 2 * AGAIN + 2 * confirmed


def test_store_of_other_weights_or_tasks_is_refused(tmp_path):
    def objective(seed=2, images=5, key=None, **options):
        path, model = WeightPath(network(1), network(seed)), network(3)
        tasks = [TaskLoss(model, batches(s)) for s in (4, images)]
        store = Store(tmp_path / "s.npz", key)
        return PairObjective(path, tasks, [4, 4], store=store, **options)

    value = objective().score(0.5)
    assert objective().score(0.5) == value and objective(normalisation="none").score(0.5) == value
    with pytest.raises(ValueError, match=r"s\.npz holds evaluations with end = "):
        objective(seed=4)
    with pytest.raises(ValueError, match=r"s\.npz has other losses at alpha = 0: data, model or"):
        objective(images=6)
    (tmp_path / "s.npz").rename(tmp_path / "memory")  # what a store without a file is called
    with (
        contextlib.chdir(tmp_path),
        pytest.raises(ValueError, match="holds evaluations with end = "),
    ):
        PairObjective(WeightPath(network(1), network(4)), [TaskLoss(network(3), batches(4))], [4],
                      store=Store("memory"))  # fmt: skip
    objective(key={"data": "mine"})
    objective(seed=4, key={"data": "mine"})  # a key of one's own tells what is evaluated
    (tmp_path / "s.npz").unlink()
    Store(tmp_path / "s.npz").put(0.0, {"0": scored(*[1.0] * 30)})
    with pytest.raises(ValueError, match="with end = None, not"):
        objective()


def test_task_that_is_stored_is_not_evaluated_again(forwards, tmp_path):
    path, model = WeightPath(network(1), network(2)), network(3)
    tasks = [TaskLoss(model, batches(seed)) for seed in (4, 5, 6)]
    first = PairObjective(path, tasks[:2], [4, 4], names="ab", store=Store(tmp_path / "s.npz"))
    first.score(0.5)
    assert sum(forwards) == 120 + AGAIN
    second = PairObjective(path, tasks[1:], [4, 4], names="bc", store=Store(tmp_path / "s.npz"))
    assert second.score(0.5)[0] == first.score(0.5)[1]
    assert sum(forwards) == 180 + AGAIN * 3 / 2 + 30  # task c at 0 and 0.5, b compared
    assert second.evaluated == [0.0, 0.5]
    assert Store(tmp_path / "s.npz").tasks == ("a", "b", "c")


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_replay_gives_the_numbers_of_the_run(pair, kind, tmp_path):
    live = pair(kind, store=Store(tmp_path / "s.npz"))
    solutions = [solve(live) for solve in (solver.grid, solver.quintic, solver.log_quintic)]
    stored = Store(tmp_path / "s.npz", writable=False)
    replayed = PairObjective.replay(stored, ["0", "1"], [4, 4], kind)
    assert [
        solve(replayed) for solve in (solver.grid, solver.quintic, solver.log_quintic)
    ] == solutions
    assert replayed.normalisers == live.normalisers
    assert replayed.evaluated == []


def test_replay_says_what_is_missing_and_where(pair, tmp_path):
    pair(store=Store(tmp_path / "s.npz")).score(0.5)
    objective = PairObjective.replay(Store(tmp_path / "s.npz"), "01", [4, 4])
    assert objective.known(0.5) and objective.known(0.5 + 1e-12) and not objective.known(0.25)
    with pytest.raises(
        ValueError, match=r"task '0' is not stored at alpha = 0.25 in .*s\.npz; evalu"
    ):
        objective(0.25)
    with pytest.raises(ValueError, match="task 'x' is not stored at alpha = 0.0"):
        PairObjective.replay(Store(tmp_path / "s.npz"), ["0", "x"], [4, 4])


def test_replay_asks_for_what_is_missing_and_keeps_it(pair, tmp_path):
    store = Store(tmp_path / "s.npz")
    pair(store=store).score(0.5)
    store.put(0.25, {"1": scored(*[0.5] * 30)})
    asked = []

    def evaluate(alpha, names):
        asked.append((alpha, list(names)))
        return [scored(*[1.5] * 30) for _ in names]

    objective = PairObjective.replay(store, "01", [4, 4], "none", evaluate=evaluate)
    assert objective(0.25) == (1.5, 0.5)
    assert objective(0.75) == (1.5, 1.5)
    assert asked == [(0.25, ["0"]), (0.75, ["0", "1"])] and objective.evaluated == [0.25, 0.75]
    assert Store(tmp_path / "s.npz").alphas("0") == (0.0, 0.25, 0.5, 0.75)


def test_objective_names_the_alpha_of_a_loss_that_is_not_finite(tmp_path):
    store = Store(tmp_path / "s.npz")
    store.put(0.0, {"a": scored(1.0)})
    store.put(0.5, {"a": scored(math.nan)})
    with pytest.raises(ValueError, match=r"alpha = 0.5 is not finite: \[nan\]"):
        PairObjective.replay(store, ["a"], [2])(0.5)


def test_objective_needs_one_model_and_matching_classes_and_names():
    path, model = WeightPath(network(1), network(2)), network(3)
    tasks = [TaskLoss(model, batches(4)), TaskLoss(model, batches(5))]
    with pytest.raises(ValueError, match="share one model"):
        PairObjective(path, [tasks[0], TaskLoss(network(3), batches(5))], [4, 4])
    with pytest.raises(ValueError, match="2 tasks but 1 class counts"):
        PairObjective(path, tasks, [4])
    for names in (["a"], ["a", "a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="2 tasks but the names .*; give each task its own"):
            PairObjective(path, tasks, [4, 4], names=names)
    with pytest.raises(ValueError, match="2 tasks but the names .*; give each task its own"):
        PairObjective.replay(None, ["a", "a"], [4, 4])
    with pytest.raises(ValueError, match="unknown normalisation 'l2'"):
        PairObjective(path, tasks, [4, 4], "l2")
