"""The metrics: exact small cases, invariances, brute-force oracles, refusals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small import batches, network

from paintlib import TaskLoss, WeightPath, metrics
from paintlib.metrics import (
    ForgettingPrediction,
    backward_transfer,
    forgetting,
    forgetting_prediction,
    gradient_similarity,
    quasiconvexity_violation,
)

finite = st.floats(-1e3, 1e3, allow_nan=False)
curves = hnp.arrays(np.float64, st.integers(0, 12), elements=finite)


def test_gradient_similarity_is_the_cosine():
    assert gradient_similarity([2.0, 0.0], [5.0, 0.0]) == 1.0
    assert gradient_similarity([2.0, 0.0], [-5.0, 0.0]) == -1.0
    assert gradient_similarity([2.0, 0.0], [0.0, 3.0]) == 0.0
    assert gradient_similarity([1.0, 0.0], [3.0, 4.0]) == pytest.approx(0.6, rel=1e-15)


def test_gradient_similarity_agrees_between_numpy_and_torch():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1000, generator=generator)
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
    assert gradient_similarity(a, b.requires_grad_()) == pytest.approx(expected, rel=1e-12)
    numbers = gradient_similarity(a.numpy(), b.detach().numpy())
    assert numbers == pytest.approx(expected, rel=1e-12)
    assert gradient_similarity(a.bfloat16(), b) == pytest.approx(expected, abs=1e-2)


class OnDevice(torch.Tensor):
    """A tensor that says no when more than a number leaves the device, and notes large copies."""

    largest = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        leaves = {"cpu", "numpy", "tolist", "__array__", "to", "item", "__float__", "__bool__"}
        result = super().__torch_function__(function, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            size = args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0
            if size > 1 and function.__name__ in leaves:
                raise AssertionError(f"{function.__name__} of {size} numbers")
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                OnDevice.largest = max(OnDevice.largest, result.numel())
        return result


def test_gradient_similarity_leaves_tensors_on_their_device(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1000, generator=generator)
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
    OnDevice.largest = 0
    found = gradient_similarity(a.as_subclass(OnDevice), b.as_subclass(OnDevice))
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 < OnDevice.largest <= 64
    with pytest.raises(AssertionError, match="cpu of 1000 numbers"):
        a.as_subclass(OnDevice).cpu()


@pytest.mark.parametrize("size", [63, 64, 65, 129])
def test_gradient_similarity_sums_all_chunks(monkeypatch, size):
    monkeypatch.setattr(metrics, "CHUNK", 64)
    a, b = np.random.default_rng(0).normal(size=(2, size))
    expected = a @ b / np.sqrt((a @ a) * (b @ b))
    assert gradient_similarity(a, b) == pytest.approx(expected, rel=1e-12)
    assert gradient_similarity(torch.tensor(a), torch.tensor(b)) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("place", [0, 70, 99])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradient_similarity_names_a_bad_number_of_a_tensor(bad, place):
    vector = torch.ones(100)
    vector[place] = bad
    message = f"gradient has 1 numbers that are not finite, first: {bad} at index {place}"
    with pytest.raises(ValueError, match=message):
        gradient_similarity(torch.ones(100), vector)
    with pytest.raises(ValueError, match=r"displacement has shape \(2, 2\); flatten"):
        gradient_similarity(torch.ones(2, 2), torch.ones(4))


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e200])
def test_gradient_similarity_ignores_length(scale):
    a, b = np.array([1.0, 2.0, -1.0]), np.array([0.5, 1.0, 1.0])
    assert gradient_similarity(a * scale, b) == pytest.approx(gradient_similarity(a, b), rel=1e-14)


def test_gradient_similarity_is_a_cosine_in_spite_of_rounding():
    for vector in np.random.default_rng(0).normal(size=(300, 7)):
        assert 1 - 1e-15 < gradient_similarity(vector, vector) <= 1.0
        assert -1.0 <= gradient_similarity(vector, -3 * vector) < -1 + 1e-15


@pytest.mark.parametrize(
    ("displacement", "gradient", "message"),
    [
        ([0.0, 0.0], [1.0, 0.0], "displacement is zero"),
        ([1.0, 0.0], [0.0, 0.0], "gradient is zero"),
        ([1.0], [1.0, 2.0], "has 1 numbers, gradient has 2; flatten both"),
        ([1.0, np.nan], [1.0, 2.0], "1 numbers that are not finite.*index 1"),
        ([[1.0]], [1.0], r"shape \(1, 1\); flatten"),
        ([], [], "displacement is zero"),
    ],
)
def test_gradient_similarity_refuses(displacement, gradient, message):
    with pytest.raises(ValueError, match=message):
        gradient_similarity(displacement, gradient)


def test_backward_transfer_of_a_parabola_is_its_limit():
    alphas = np.linspace(0, 1, 21)
    losses = 2.0 - 0.8 * alphas + alphas**2
    sampled = backward_transfer(alphas, losses, length=4.0)
    assert sampled.alpha == 0.05
    assert sampled.value == pytest.approx((0.8 - 0.05) / 4.0)
    limit = backward_transfer(alphas, losses, length=4.0, slope_at_zero=-0.8)
    assert limit == (0.2, 0.0)


def test_backward_transfer_of_a_late_fall_is_sampled():
    assert backward_transfer([0.0, 0.5, 1.0], [1.0, 1.2, 0.5], 2.0, 0.4) == (0.25, 1.0)


def test_backward_transfer_takes_the_larger_of_limit_and_samples():
    sampled = ([0.0, 0.5, 1.0], [1.0, 1.2, 0.5], 2.0)  # 0.25 at alpha = 1
    assert backward_transfer(*sampled, slope_at_zero=-0.4) == (0.25, 1.0)
    assert backward_transfer(*sampled, slope_at_zero=-0.6) == (0.3, 0.0)
    assert backward_transfer(*sampled, slope_at_zero=-0.5) == (0.25, 0.0)  # the limit if equal


def test_backward_transfer_of_a_rising_loss_is_negative():
    assert backward_transfer([0.0, 0.5, 1.0], [1.0, 2.0, 4.0], 1.0, 1.5) == (-1.5, 0.0)


def test_backward_transfer_limit_is_similarity_times_gradient_norm():
    rng = np.random.default_rng(0)
    start, end, centre = rng.normal(size=(3, 50))
    alphas = np.linspace(0, 1, 101)
    losses = [((start + a * (end - start) - centre) ** 2).sum() for a in alphas]
    gradient = 2 * (start - centre)
    length = float(np.linalg.norm(start - end))
    slope = float(gradient @ (end - start))
    transfer = backward_transfer(alphas, losses, length, slope)
    expected = gradient_similarity(start - end, gradient) * np.linalg.norm(gradient)
    assert transfer.alpha == 0.0
    assert transfer.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("alphas", "losses", "length", "slope", "message"),
    [
        (
            [0.1, 0.4, 1.0],
            [1.0] * 3,
            1.0,
            None,
            "alphas run from 0.1 to 1.0; they must ascend from 0",
        ),
        ([0.0, 0.5, 2.0], [1.0] * 3, 1.0, None, "from 0.0 to 2.0"),
        ([[0.0, 1.0]], [1.0, 1.0], 1.0, None, r"^alphas has shape \(1, 2\)"),
        ([0.0, 0.5, 1.0], [1.0, 1.0], 1.0, None, "3 alphas and 2 losses"),
        ([0.0, 2.0], [1.0, 1.0], 1.0, None, "end by 1"),
        ([0.0, 0.5, 0.5], [1.0] * 3, 1.0, None, "must ascend"),
        ([0.0], [1.0], 1.0, None, "1 alphas and 1 losses; pass pairs, two or more"),
        ([0.0, 1.0], [1.0], 1.0, None, "2 alphas and 1 losses"),
        ([0.0, 1.0], [1.0, np.inf], 1.0, None, "losses has 1 numbers that are not finite"),
        ([0.0, 1.0], [1.0, 1.0], 0.0, None, "length is 0.0"),
        ([0.0, 1.0], [1.0, 1.0], np.inf, None, "length is inf"),
        ([0.0, 1.0], [1.0, 1.0], 1.0, np.nan, "slope_at_zero is nan"),
    ],
)
def test_backward_transfer_refuses(alphas, losses, length, slope, message):
    with pytest.raises(ValueError, match=message):
        backward_transfer(alphas, losses, length, slope)


def test_forgetting_has_the_sign_of_the_harm():
    assert forgetting((0.5, 0.75), (0.5, 0.75)) == (0.0, 0.0)
    worse = forgetting((0.5, 0.75), (1.0, 0.5))
    assert worse.loss == 1.0 and worse.accuracy == 0.25
    assert forgetting((0.5, 1.0), (0.0, 0.0)) == (-1.0, 1.0)
    better = forgetting((0.5, 0.75, 1000), (0.25, 0.875, 1000))
    assert better == (-0.5, -0.125)


@pytest.mark.parametrize(
    ("zero_shot", "patched", "message"),
    [
        ((0.0, 1.0), (0.1, 1.0), "zero-shot loss is 0"),
        ((0.5, 75.0), (0.5, 0.5), "zero-shot accuracy is 75.0; expected a fraction"),
        ((0.5, 0.5), (np.nan, 0.5), "patched loss is nan"),
        ((0.5, 0.5), (np.inf, 0.5), "patched loss is inf"),
        ((-0.5, 0.5), (0.5, 0.5), "zero-shot loss is -0.5"),
        ((0.5, 0.5), (0.5, -0.1), "patched accuracy is -0.1"),
        ((0.5, 0.5), (0.5, 1.1), "patched accuracy is 1.1"),
    ],
)
def test_forgetting_refuses(zero_shot, patched, message):
    with pytest.raises(ValueError, match=message):
        forgetting(zero_shot, patched)


class Linear:
    """A softmax of W x, whose loss has the Fisher information for its Hessian, exactly."""

    def __init__(self, seed, images=40, features=5, classes=4, copies=1):
        generator = np.random.default_rng(seed)
        self.x = np.tile(generator.normal(size=(images, features)), (copies, 1))
        self.labels = np.tile(generator.integers(0, classes, images), copies)
        self.start, self.change = generator.normal(size=(2, classes, features))

    @property
    def given(self):
        return self.x @ self.start.T, self.x @ self.change.T, self.labels

    def probabilities(self, alpha=0.0):
        odds = np.exp(self.x @ (self.start + alpha * self.change).T)
        return odds / odds.sum(1, keepdims=True)

    def losses(self, alpha=0.0):
        return -np.log(self.probabilities(alpha)[np.arange(len(self.x)), self.labels])

    def rise(self, alpha):
        return self.losses(alpha).mean() / self.losses().mean() - 1


@pytest.mark.parametrize("seed", range(5))
def test_forgetting_prediction_is_the_second_order_of_a_linear_softmax(seed):
    model, step = Linear(seed), 1e-3
    found = forgetting_prediction(*model.given)
    assert found.slope == pytest.approx((model.rise(step) - model.rise(-step)) / (2 * step), 1e-5)
    assert found.fisher == pytest.approx((model.rise(step) + model.rise(-step)) / step**2, 1e-5)
    for alpha in (0.1, 0.03, -0.03, 0.01):
        assert abs(found(alpha) - model.rise(alpha)) < abs(alpha) ** 3


@pytest.mark.parametrize("seed", range(5))
def test_forgetting_prediction_agrees_with_the_dense_gradient_and_fisher_matrix(seed):
    model = Linear(seed, images=7)
    gradient, matrix = np.zeros(20), np.zeros((20, 20))
    for x, p, label in zip(model.x, model.probabilities(), model.labels, strict=True):
        jacobian = np.kron(np.eye(4), x)  # of the four logits by the weights
        gradient += (p - np.eye(4)[label]) @ jacobian / 7
        for c in range(4):  # the expected square of the gradient, over the classes
            score = (p - np.eye(4)[c]) @ jacobian
            matrix += p[c] * np.outer(score, score) / 7
    d, loss = model.change.ravel(), model.losses().mean()
    found = forgetting_prediction(*model.given)
    assert found.slope == pytest.approx(gradient @ d / loss, rel=1e-12)
    assert found.fisher == pytest.approx(d @ matrix @ d / loss, rel=1e-12)
    assert found(0.3) == pytest.approx((0.3 * gradient @ d + 0.045 * d @ matrix @ d) / loss, 1e-12)


def test_forgetting_prediction_of_two_classes_by_hand():
    far = forgetting_prediction([[0.0, 800.0]], [[1.0, -1.0]], [0])  # exp(-800) is 0 in float64
    assert far == pytest.approx((-2 / 800, 0.0, 0.0))
    found = forgetting_prediction([[0.0, 0.0]], [[1.0, -1.0]], [0])
    assert found == pytest.approx((-1 / np.log(2), 1 / np.log(2), 0.0), rel=1e-15)
    assert ForgettingPrediction(0.5, 2.0, 0.1)(0.5) == 0.5
    assert found(0.0) == 0.0


def test_forgetting_prediction_has_the_slope_of_a_network_along_its_path():
    path = WeightPath(network(1, torch.float64), network(2, torch.float64))
    model, data, step = network(3, torch.float64), batches(4, dtype=torch.float64), 1e-4
    images, labels = (torch.cat(column) for column in zip(*data, strict=True))
    with torch.no_grad():
        below, z, above = (path.set_(model, a)(images).numpy() for a in (-step, 0.0, step))
    found = forgetting_prediction(z, (above - below) / (2 * step), labels)
    path.set_(model, 0.0)
    task = TaskLoss(model, data)
    slope = path.flatten(task.gradient()) @ (path.end - path.start)
    assert found.slope == pytest.approx(float(slope) / task.score().loss, rel=1e-6)


def test_error_of_the_predicted_slope_is_that_of_a_mean_over_images():
    model = Linear(0)
    slopes = []
    for p, change, label in zip(model.probabilities(), model.given[1], model.labels, strict=True):
        slopes.append((p @ change - change[label]) / model.losses().mean())
    found = forgetting_prediction(*model.given)
    assert found.slope == pytest.approx(np.mean(slopes), rel=1e-12)
    assert found.slope_stderr == pytest.approx(np.std(slopes) / np.sqrt(40), rel=1e-12)
    fourfold = forgetting_prediction(*Linear(0, copies=4).given)
    assert fourfold == pytest.approx((found.slope, found.fisher, found.slope_stderr / 2), rel=1e-12)


def test_forgetting_prediction_does_not_see_what_a_softmax_does_not_see():
    logits, change, labels = Linear(0).given
    found = forgetting_prediction(logits, change, labels)
    level = np.random.default_rng(1).normal(size=(2, 40, 1))  # one number per image
    assert forgetting_prediction(logits + 700 * level[0], change + level[1], labels) == (
        pytest.approx(found, rel=1e-9)
    )
    images, classes = np.random.default_rng(2).permutation(40), np.array([2, 0, 3, 1])
    assert forgetting_prediction(
        logits[images][:, classes], change[images][:, classes], classes.argsort()[labels[images]]
    ) == pytest.approx(found, rel=1e-12)


def test_forgetting_prediction_scales_with_the_path_and_needs_labels_for_the_slope_alone():
    logits, change, labels = Linear(0).given
    found = forgetting_prediction(logits, change, labels)
    longer = forgetting_prediction(logits, 3 * change, labels)
    assert longer == pytest.approx((3 * found.slope, 9 * found.fisher, 3 * found.slope_stderr))
    other = (labels + 1) % 4
    relabelled = forgetting_prediction(logits, change, other)
    losses = [-np.log(Linear(0).probabilities()[range(40), y]).mean() for y in (labels, other)]
    assert relabelled.fisher * losses[1] == pytest.approx(found.fisher * losses[0], rel=1e-12)
    assert relabelled.slope * losses[1] != pytest.approx(found.slope * losses[0], rel=0.1)


@pytest.mark.parametrize(
    ("logits", "change", "labels", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], [0], r"logits \(2,\), change \(2,\), labels \(1,\) do not fit"),
        ([[1.0, 2.0]], [[1.0]], [0], r"logits \(1, 2\), change \(1, 1\)"),
        ([[1.0, 2.0]], [[1.0, 2.0]], [0, 1], r"labels \(2,\) do not fit"),
        ([[1.0, 2.0]], [[1.0, 2.0]], [[0]], r"labels \(1, 1\) do not fit"),
        (np.empty((0, 2)), np.empty((0, 2)), [], r"logits \(0, 2\)"),
        ([[1e3, 0.0]], [[1.0, 2.0]], [0], "zero-shot loss is 0.0, so no relative rise"),
        ([[np.nan, 0.0]], [[1.0, 2.0]], [0], "zero-shot loss is nan"),
    ],
)
def test_forgetting_prediction_refuses(logits, change, labels, message):
    with pytest.raises(ValueError, match=message):
        forgetting_prediction(logits, change, labels)


@given(curves)
def test_quasiconvexity_violation_equals_brute_force(values):
    triples = itertools.combinations(values, 3)
    expected = max((mid - max(left, right) for left, mid, right in triples), default=0.0)
    assert quasiconvexity_violation(values) == max(0.0, expected)


@given(curves, st.integers(0, 12))
def test_quasiconvexity_violation_of_one_valley_is_zero(values, split):
    falling, rising = np.sort(values[:split])[::-1], np.sort(values[split:])
    bottom = [values.min()] if len(values) else []
    assert quasiconvexity_violation([*falling, *bottom, *rising]) == 0.0


def test_quasiconvexity_violation_has_the_unit_of_the_values():
    values = np.array([3.0, 1.0, 2.0, 0.5, 4.0])
    assert quasiconvexity_violation(values) == 1.0
    assert quasiconvexity_violation(7 * values) == 7.0
    assert quasiconvexity_violation(values[::-1]) == 1.0


def test_quasiconvexity_violation_refuses_nan():
    with pytest.raises(ValueError, match=r"values has 1 numbers that are not finite.*index 1"):
        quasiconvexity_violation([0.0, np.nan, 1.0])
