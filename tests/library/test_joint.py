"""Several patches at once: the weights, their evaluations in a store, and three searches."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from small import batches, network

from paintlib import PairObjective, Store, TaskLoss, WeightPath, sampling, solver
from paintlib.joint import (
    JointEvaluation,
    WeightPatches,
    coordinatewise,
    joint,
    shared,
)
from paintlib.solver import Status


class Losses:
    """Log-losses that are nearly quadratics: of a kept task, and one that each patch fixes."""

    def __init__(self, seed, patches):
        g = np.random.default_rng(seed)
        self.slopes = np.vstack([g.uniform(-0.3, 0.6, patches), -g.uniform(1, 3) * np.eye(patches)])
        self.slopes += g.normal(0, 0.2, self.slopes.shape)
        roots = g.normal(0, 0.7, (patches + 1, patches, patches))
        self.bends = roots @ roots.transpose(0, 2, 1) + g.uniform(0.3, 1.5) * np.eye(patches)
        self.waves, self.calls = g.normal(0, 1, (patches + 1, patches)), 0

    def __call__(self, alpha):
        self.calls += 1
        a = np.array(alpha)
        logs = self.slopes @ a + (self.bends @ a) @ a / 2 + 0.05 * np.sin(3 * self.waves * a).sum(1)
        return np.exp(logs).tolist()

    def best(self):
        patches = self.slopes.shape[1]
        found = [
            optimize.minimize(
                lambda a: sum(self(a)), start, bounds=[(0, 1)] * patches, method="L-BFGS-B"
            )
            for start in np.random.default_rng(0).uniform(size=(5, patches))
        ]
        return min(found, key=lambda one: one.fun)


@pytest.mark.parametrize("patches", [2, 3])
def test_joint_is_as_good_as_a_search_by_coordinates_for_half_the_price(patches):
    spent, excess, average = [], [], []
    for seed in range(10 - 2 * patches):
        losses = Losses(seed, patches)
        best = losses.best()
        losses.calls = 0
        found = joint(losses, patches)
        assert found.evaluations == losses.calls == len(found.trace)
        assert found.status is Status.CONVERGED
        assert found.value == min(sample.value for sample in found.trace)
        peer = coordinatewise(losses, patches)
        assert peer.evaluations == losses.calls - found.evaluations
        together = shared(losses, patches)
        assert len(set(together.alpha)) == 1
        spent.append((found.evaluations, peer.evaluations))
        excess.append((found.value - best.fun, peer.value - best.fun))
        average.append(together.value - best.fun)
    assert np.max(excess, axis=0) == pytest.approx([0, 0], abs=1e-3)
    ours, theirs = np.mean(spent, axis=0)
    assert ours < 0.55 * theirs and ours < 8 * patches
    assert np.mean(average) > 10 * np.mean(excess, axis=0)[0]


@pytest.mark.parametrize("low", [0.0, 2.0, -5.0])
def test_joint_is_translation_invariant(low):
    losses = Losses(1, 2)
    expected, found = (
        joint(losses, 2),
        joint(lambda a: losses(np.array(a) - low), 2, (low, low + 1)),
    )
    assert np.array(found.alpha) - low == pytest.approx(expected.alpha, abs=1e-3)
    assert found.evaluations == expected.evaluations


def test_joint_of_one_patch_is_the_search_along_its_path():
    losses = Losses(3, 1)
    path = solver.log_quintic(lambda a: losses((a,)))
    assert joint(losses, 1).alpha[0] == pytest.approx(path.alpha, abs=5e-3)
    assert solver.joint is joint
    with pytest.raises(AttributeError, match="no attribute 'joints'"):
        _ = solver.joints


def test_minimum_at_a_corner_is_found_and_ends_the_search():
    found = joint(lambda a: [1 + a[0], 3 - a[1]], 2)
    assert found.alpha == (0.0, 1.0) and found.status is Status.CONVERGED


def test_known_evaluations_are_not_paid_for_again():
    losses = Losses(0, 2)
    first = joint(losses, 2)
    axes = [
        JointEvaluation(tuple(e), 0.0, ())
        for e in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.5), (0.0, 1.0))
    ]
    axes = [JointEvaluation(s.alpha, sum(losses(s.alpha)), tuple(losses(s.alpha))) for s in axes]
    found = joint(losses, 2, known=axes)
    assert found.alpha == pytest.approx(first.alpha, abs=1e-3)
    assert found.evaluations == first.evaluations - 5
    assert coordinatewise(losses, 2, known=axes).evaluations < coordinatewise(losses, 2).evaluations


def test_budget_is_kept_and_arguments_are_checked():
    losses = Losses(0, 2)
    found = joint(losses, 2, max_evals=7)
    assert found.evaluations == 7 and found.status is Status.BUDGET
    assert coordinatewise(losses, 2, rounds=1).status is Status.BUDGET
    for options, message in (
        ({"max_evals": 5}, "max_evals is 5, but this search needs at least 6"),
        ({"bracket": (1.0, 0.0)}, "two finite ends, the lower first"),
        ({"xtol": 0.0}, "xtol is 0.0; give 1e-8 to 1 times the width"),
    ):
        with pytest.raises(ValueError, match=message):
            joint(losses, 2, **options)
    with pytest.raises(ValueError, match=r"losses not finite at alpha = \(0.0, 0.0\): \(nan,\)"):
        joint(lambda a: math.nan, 2)


@pytest.fixture
def patches():
    """Return two patches of one start, and the paths of each."""
    start, ends = network(1), [network(2), network(3)]
    return WeightPatches(start, ends), [WeightPath(start, end) for end in ends]


def test_patches_are_the_sum_of_their_steps_on_one_buffer(patches):
    both, paths = patches
    model = network(4)
    steps = [path.end - path.start for path in paths]
    both.set_(model, (0.3, 0.6))
    place = next(model.parameters()).data_ptr()
    for alpha in ((0.3, 0.6), (0.6, 0.3), (-0.2, 1.4), (0.5, 0.5)):
        both.set_(model, alpha)
        flat = paths[0].flatten(model.state_dict())
        expected = paths[0].start + sum(a * step for a, step in zip(alpha, steps, strict=True))
        torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-6)
        assert next(model.parameters()).data_ptr() == place


def test_patches_along_an_axis_are_the_path_bit_for_bit(patches):
    both, paths = patches
    model, other = network(4), network(5)
    for k, path in enumerate(paths):
        for value in (0.0, 0.37, 1.0, 1.5):
            both.set_(model, tuple(value if i == k else 0.0 for i in range(2)))
            path.set_(other, value)
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name]), (k, value, name)


def test_patches_of_tied_tensors_move_them_once():
    def tied(seed):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).eval()
        torch.manual_seed(seed)
        torch.nn.init.normal_(model[0].weight)
        model[1].weight = model[0].weight
        return model

    start, first, second, model = (tied(seed) for seed in range(4))
    WeightPatches(start, [first, second]).set_(model, (0.25, 0.5))
    steps = [end[0].weight - start[0].weight for end in (first, second)]
    expected = start[0].weight + 0.25 * steps[0] + 0.5 * steps[1]
    torch.testing.assert_close(model[1].weight, expected)


def test_patches_in_half_precision_are_rounded_once_each():
    start = network(1)
    ends = [network(seed) for seed in (2, 3)]
    for end in ends:
        for own, first in zip(end.parameters(), start.parameters(), strict=True):
            own.data.lerp_(first.data, 0.99)  # small beside the weights
    start, *ends = (model.bfloat16() for model in (start, *ends))
    model = WeightPatches(start, ends).set_(network(4).bfloat16(), (0.5, 0.5))
    for name, first in start.state_dict().items():
        expected = first
        for end in ends:
            step = end.state_dict()[name].float() - first.float()
            expected = (expected.float() + 0.5 * step).bfloat16()
        assert (model.state_dict()[name] == expected).float().mean() > 0.95, name


def test_patches_call_what_comes_after_and_refuse_other_coefficients():
    seen = []
    both = WeightPatches(network(1), [network(2), network(3), network(4)], after=seen.append)
    model = both.set_(network(5), (0.1, 0.2, 0.3))
    assert seen == [model] and both.origin == (0.0, 0.0, 0.0)
    for bad in ((0.1, 0.2), 0.5, (0.1, 0.2, math.inf)):
        with pytest.raises(ValueError, match="give each of 3 patches a number"):
            both.set_(model, bad)
    with pytest.raises(ValueError, match="no fine-tuned weights"):
        WeightPatches(network(1), [])


def test_joint_search_of_a_model_is_kept_replayed_and_has_its_errors(patches, tmp_path):
    model = network(4)
    tasks = [TaskLoss(model, batches(seed)) for seed in (4, 5, 6)]
    store = Store(tmp_path / "joint.npz")
    objective = PairObjective(
        patches[0], tasks, [4] * 3, names="abc", store=store, weights=(2, 1, 1)
    )
    found = joint(objective, 2)
    assert objective.evaluated == list(dict.fromkeys(s.alpha for s in found.trace))
    stored = Store(tmp_path / "joint.npz", writable=False)
    replayed = PairObjective.replay(stored, "abc", [4] * 3, weights=(2, 1, 1), origin=(0, 0))
    assert joint(replayed, 2) == found and replayed.evaluated == []
    for first, second in ((found.alpha, (0.0, 0.0)), (found.alpha, (0.5, 0.5))):
        value, error = sampling.difference(replayed, first, second)
        assert value == pytest.approx(sum(objective(first)) - sum(objective(second)), abs=1e-9)
        assert error >= 0
    with pytest.raises(ValueError, match="minmax scales by samples of one path"):
        PairObjective(patches[0], tasks, [4] * 3, "minmax")
