import re

import pytest
import torch
from small import network
from torch import nn

from paintlib import WeightPath, interpolation


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_path_ends_bit_exact(alpha, dtype):
    start, end = network(1, dtype), network(2, dtype)
    with torch.no_grad():  # the values on which a plain lerp is not exact
        for row, side, other in ((0, start, end), (1, end, start)):
            large = torch.finfo(dtype).max  # a difference of these is infinite
            side[0].weight[row, :4] = torch.tensor([-0.0, 1e-38, 3e37, large], dtype=dtype)
            other[0].weight[row, :4] = torch.tensor([7.0, -3.0, 1e-9, -large], dtype=dtype)
    model = WeightPath(start, end).set_(network(3, dtype), alpha)
    expected = (start, end)[int(alpha)].state_dict()
    for name, tensor in model.state_dict().items():
        integer = torch.int32 if dtype == torch.float32 else torch.int64
        assert torch.equal(tensor.view(integer), expected[name].view(integer)), name


def test_path_interpolates_each_tensor():
    start, end = network(1), network(2)
    path = WeightPath(start.state_dict(), end)
    model = network(3)
    for alpha in (0.3, 0.9, 0.3, -0.5, 1.5):
        path.set_(model, alpha)
        for name, tensor in model.state_dict().items():
            expected = (1 - alpha) * start.state_dict()[name] + alpha * end.state_dict()[name]
            torch.testing.assert_close(tensor, expected)


def test_path_writes_in_place_into_one_buffer():
    path, model = WeightPath(network(1), network(2)), network(3)
    path.set_(model, 0.5)
    addresses = [p.data_ptr() for p in model.parameters()]
    parameters = list(model.parameters())
    assert path.set_(model, 0.7) is model
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(path.at(0.7), path.flatten(model.state_dict()), rtol=0, atol=0)


def test_path_follows_a_model_whose_tensors_were_replaced():
    path, model = WeightPath(network(1), network(2)), network(3)
    path.set_(model, 0.5)
    model[0].weight.data = torch.zeros_like(model[0].weight)
    path.set_(model, 1.0)
    assert torch.equal(model[0].weight, network(2)[0].weight)


def test_path_serves_two_models_at_once():
    path, one, two = WeightPath(network(1), network(2)), network(3), network(4)
    path.set_(one, 0.0)
    path.set_(two, 1.0)
    assert torch.equal(one[0].weight, network(1)[0].weight)
    assert torch.equal(two[0].weight, network(2)[0].weight)


def test_path_does_not_alias_its_sources():
    start = network(1)
    path = WeightPath(start, network(2))
    with torch.no_grad():
        start[0].weight.zero_()
    assert torch.equal(path.set_(network(3), 0.0)[0].weight, network(1)[0].weight)


def test_length_is_the_norm_of_the_difference():
    a, b = network(1), network(2)
    squares = sum(
        float(((p.detach().double() - q.detach().double()) ** 2).sum())
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )
    assert WeightPath(a, b).length == pytest.approx(squares**0.5, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 100, 10_000])
def test_length_is_summed_in_float64_by_chunks(monkeypatch, chunk):
    path = WeightPath({"w": torch.zeros(100)}, {"w": torch.full((100,), 1e-4)})
    monkeypatch.setattr(interpolation, "CHUNK", chunk)
    step = float(torch.tensor(1e-4))
    assert path.length == pytest.approx(10 * step, rel=1e-14)


def test_digests_tell_weights_names_and_shapes_apart():
    state = {"b": torch.arange(6.0), "a": torch.ones(2), "steps": torch.tensor(3)}
    end = {name: tensor + 1 for name, tensor in state.items()}
    first, last = WeightPath(state, end).digests
    assert re.fullmatch("[0-9a-f]{64}", first) and first != last
    assert WeightPath(dict(reversed(state.items())), end).digests == (first, last)
    assert WeightPath(end, state).digests == (last, first)
    others = [
        {**state, "a": torch.tensor([1.0, 1.0 + 2**-23])},
        {**state, "b": torch.arange(6.0).view(2, 3)},
        {**state, "steps": torch.tensor(4)},
        {"b": torch.arange(6.0), "c": torch.ones(2), "steps": torch.tensor(3)},
        {name: tensor.double() for name, tensor in state.items()},
    ]
    assert len({first, *(WeightPath(other, other).digests[0] for other in others)}) == 6


def test_flat_vectors_and_tensors_are_two_views_of_the_same():
    path = WeightPath(network(1), network(2))
    tensors = path.unflatten(path.start)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: tuple(t.shape) for name, t in network(1).state_dict().items()
    }
    assert torch.equal(path.flatten(tensors), path.start)
    partial = path.unflatten(path.flatten({"0.bias": tensors["0.bias"], "3.bias": None}))
    assert torch.equal(partial["0.bias"], tensors["0.bias"])
    assert not any(t.any() for name, t in partial.items() if name != "0.bias")
    assert path.flatten({name: t.double() for name, t in tensors.items()}).dtype == torch.float32


def test_path_moves_to_a_device_in_place():
    path = WeightPath(network(1), network(2))
    assert path.to("meta") is path
    assert path.start.device.type == path.end.device.type == "meta"
    with pytest.raises(ValueError, match=r"on cpu, the path is torch.float32 on meta; convert"):
        path.set_(network(3), 0.5)


def test_half_precision_is_interpolated_in_float32():
    path = WeightPath(network(1, torch.float16), network(2, torch.float16))
    assert path.start.dtype == torch.float32
    for name, tensor in path.set_(network(3, torch.float16), 0.3).state_dict().items():
        ends = (network(seed, torch.float16).state_dict()[name].float() for seed in (1, 2))
        assert torch.equal(tensor, torch.lerp(*ends, 0.3).half()), name
    with pytest.raises(ValueError, match=r"torch\.float16.*model\.to\(torch\.float32\)"):
        WeightPath(network(1), network(2)).set_(network(3, torch.float16), 0.5)


def test_integer_tensors_come_from_the_nearer_end():
    def counted(n):
        model = nn.BatchNorm1d(3).eval()
        model.num_batches_tracked.fill_(n)
        return model

    path, model = WeightPath(counted(3), counted(9)), counted(0)
    assert path.set_(model, 0.2).num_batches_tracked == 3
    assert path.set_(model, 0.5).num_batches_tracked == 9
    assert path.set_(model, 1.0).num_batches_tracked == 9


def test_mismatch_names_the_first_differing_tensor():
    one = r"2 tensors are on one side only, first: '0.bias'; interpolation needs two checkpoints of"
    with pytest.raises(ValueError, match=one):
        WeightPath(
            nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Conv1d(2, 3, 1), nn.Linear(1, 1))[:0]
        )
    with pytest.raises(ValueError, match=r"first: '3.weight' is \(4, 8\) .* \(5, 8\)"):
        other = network(2)
        other[3] = nn.Linear(8, 5)
        WeightPath(network(1), other)
    with pytest.raises(
        ValueError, match=r"1 tensors differ, .* \(2,\) of floats .* \(2,\) of integers"
    ):
        WeightPath(
            *({"a": torch.ones(2, dtype=d), "b": torch.ones(1)} for d in (None, torch.int64))
        )
    with pytest.raises(ValueError, match="no floating point tensor"):
        WeightPath({"a": torch.tensor(1)}, {"a": torch.tensor(2)})
    with pytest.raises(ValueError, match="on one side only, first: '0.bias'"):
        WeightPath(network(1), network(2)).set_(nn.Sequential(nn.Linear(6, 8, bias=False)), 0.5)


def test_state_dict_beside_others_is_found_as_in_a_file():
    ends = [{"state_dict": network(seed).state_dict(), "epoch": 3} for seed in (1, 2)]
    assert torch.equal(WeightPath(*ends).at(0.3), WeightPath(network(1), network(2)).at(0.3))


def test_share_of_a_patch_that_half_precision_keeps():
    start = {"a": torch.ones(1000), "b": torch.ones(1000)}
    large = WeightPath(start, {"a": 1.5 * torch.ones(1000), "b": torch.ones(1000)})
    assert large.kept_share(0.3) == 1.0 == large.kept_share(0.0)
    half = {name: tensor.bfloat16() for name, tensor in start.items()}
    fine = half | {"a": torch.full((1000,), 1.0078125, dtype=torch.bfloat16)}  # one digit more
    path = WeightPath(half, fine)
    assert path.kept_share(0.3) == 0.0 and path.kept_share(1.0) == 1.0
    assert path.kept_share(0.8) == pytest.approx(1 / 0.8, rel=1e-4)


def test_damaged_weights_are_refused_by_name():
    broken = network(2)
    broken[3].bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"end weights are not finite, first in '3.bias'"):
        WeightPath(network(1), broken)
    with pytest.raises(
        ValueError, match="the start weights are not finite, .* the training diverged"
    ):
        WeightPath(broken, network(1))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_must_be_finite(alpha):
    with pytest.raises(ValueError, match="not a finite number"):
        WeightPath(network(1), network(2)).set_(network(3), alpha)


def test_training_still_works_after_set_even_inside_inference_mode():
    path, model = WeightPath(network(1), network(2)), network(3)
    with torch.inference_mode():
        path.set_(model, 0.5)
    model(torch.ones(2, 6)).sum().backward()
    assert model[0].weight.grad is not None
