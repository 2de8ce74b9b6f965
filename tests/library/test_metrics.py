"""The metrics: exact small cases, invariances, brute-force oracles, refusals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paintlib import metrics
from paintlib.metrics import (
    backward_transfer,
    forgetting,
    gain,
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
        ([1.0], [1.0, 2.0], "has 1 numbers but gradient has 2"),
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


def test_gain_is_a_fraction_of_the_reference():
    assert (gain(1.5, 2.0), gain(2.0, 2.0), gain(3.0, 2.0)) == (0.25, 0.0, -0.5)


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
