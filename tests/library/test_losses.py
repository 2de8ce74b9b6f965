import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import batches, network
from torch import nn

from paintlib import TaskLoss, WeightPath


def test_score_is_the_mean_over_images_not_over_batches():
    model = network(1)
    data = batches(2, count=30)  # the last batch is short
    images, labels = (torch.cat(column) for column in zip(*data, strict=True))
    score = TaskLoss(model, data).score()
    logits = model(images).detach()
    # another batching: float32 rounds otherwise
    assert score.loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-5)
    assert score.accuracy == float((logits.argmax(1) == labels).double().mean())
    assert score.images == 30


def test_images_keep_the_order_of_the_batches():
    model, data = network(1, torch.float64), batches(2, dtype=torch.float64)
    images = TaskLoss(model, data).evaluate()
    x, labels = (torch.cat(column) for column in zip(*data, strict=True))
    logits = model(x).detach()
    expected = F.cross_entropy(logits, labels, reduction="none").numpy()
    assert images.losses == pytest.approx(expected, rel=1e-12)
    assert images.losses.dtype == "float64" and images.correct.dtype == bool
    assert images.correct.tolist() == (logits.argmax(1) == labels).tolist()


def test_logits_may_take_another_way_through_the_model():
    model, data = network(1), batches(2)
    doubled = TaskLoss(model, data, lambda x: 2 * model(x)).score()
    model[3].weight.data *= 2
    model[3].bias.data *= 2
    assert doubled.loss == pytest.approx(TaskLoss(model, data).score().loss, rel=1e-5)


def test_score_sums_in_float64():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1e-4]]).expand(len(x), 2)

    data = [(torch.zeros(1000, 1), torch.zeros(1000, dtype=torch.int64))] * 50
    each = math.log1p(math.exp(float(torch.tensor(1e-4))))
    expected = float(np.float32(each))  # the logits are float32, and so is each loss
    assert TaskLoss(Constant().eval(), data).score().loss == pytest.approx(expected, rel=1e-13)


def test_gradient_matches_finite_differences():
    model = network(1, torch.float64)
    task = TaskLoss(model, batches(2, dtype=torch.float64))
    gradient = task.gradient()
    step = 1e-6
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        for index in (0, flat.numel() - 1):
            old = float(flat[index])
            values = []
            for sign in (1, -1):
                flat[index] = old + sign * step
                values.append(task.score().loss)
            flat[index] = old
            slope = (values[0] - values[1]) / (2 * step)
            assert float(gradient[name].view(-1)[index]) == pytest.approx(slope, abs=1e-8), name


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_slope_agrees_with_the_gradient(alpha, dtype, slack):
    path, model = WeightPath(network(1, dtype), network(2, dtype)), network(3, dtype)
    task = TaskLoss(model, batches(2, dtype=dtype))
    value, slope = task.value_and_slope(path, alpha)
    assert torch.equal(path.flatten(model.state_dict()), path.at(alpha))  # it ends where it was put
    assert value == pytest.approx(task.score().loss, rel=1e-6)
    exact = path.flatten(task.gradient()).double() @ (path.end.double() - path.start.double())
    assert slope == pytest.approx(float(exact), rel=slack)


def test_slope_errs_by_the_square_of_its_step():
    path = WeightPath(network(1, torch.float64), network(2, torch.float64))
    task = TaskLoss(network(3, torch.float64), batches(2, dtype=torch.float64))
    exact = task.value_and_slope(path, 0.4, step=1e-4)
    far, near = (task.value_and_slope(path, 0.4, step=step) for step in (0.02, 0.01))
    for i in range(2):
        assert (far[i] - exact[i]) / (near[i] - exact[i]) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("step", [0.0, -1e-3, math.nan, math.inf])
def test_slope_refuses_a_step_of_no_length(step):
    path, model = WeightPath(network(1), network(2)), network(3)
    with pytest.raises(ValueError, match="it is a distance on the path"):
        TaskLoss(model, batches(2)).value_and_slope(path, 0.5, step)


def test_gradient_reaches_frozen_weights_and_leaves_the_model_as_it_was():
    model = network(1)
    model[0].requires_grad_(False)
    gradient = TaskLoss(model, batches(2)).gradient()
    assert float(gradient["0.weight"].abs().sum()) > 0
    assert not model[0].weight.requires_grad and model[3].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_slope_sees_buffers_that_move():
    def normed(mean):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)).double().eval()
        model[0].running_mean.fill_(mean)
        return model

    path, model = WeightPath(normed(0.0), normed(1.0)), normed(0.0)
    task = TaskLoss(model, batches(2, dtype=torch.float64))
    assert not path.flatten({k: v for k, v in task.gradient().items() if "running" in k}).any()
    losses = []
    for alpha in (0.3, 0.7):
        path.set_(model, alpha)
        losses.append(task.score().loss)
    # softmax of a line: the chord and the slope in its middle are all but the same
    slope = task.value_and_slope(path, 0.5)[1]
    assert slope == pytest.approx((losses[1] - losses[0]) / 0.4, rel=0.05)
    assert abs(slope) > 1e-3


def test_training_mode_and_no_images_are_refused():
    with pytest.raises(ValueError, match=r"model\.eval"):
        TaskLoss(network(1).train(), batches(2)).score()
    for call in (TaskLoss(network(1), []).score, TaskLoss(network(1), []).gradient):
        with pytest.raises(ValueError, match="no image to score"):
            call()
    used_up = iter(batches(2))
    assert TaskLoss(network(1), used_up).score().images == 30
    with pytest.raises(ValueError, match="a generator already used up"):
        TaskLoss(network(1), used_up).score()


def test_gradient_of_images_without_labels_is_refused():
    with pytest.raises(ValueError, match="no image to score: all labels of `batches` are -100"):
        TaskLoss(network(1), [(torch.randn(5, 6), torch.full((5,), -100))]).gradient()


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float64])
def test_loss_may_be_right_or_wrong(kind):
    model, (images, labels) = network(1), batches(2)[0]
    wrong = model(images).argmax(1) != labels
    task = TaskLoss(model, [(images, labels)], loss=lambda *_: wrong.to(kind))
    assert task.score().loss == pytest.approx(float(wrong.double().mean()), rel=1e-12)
    assert math.isnan(task.score().accuracy)


def test_label_out_of_range_raises():
    data = [(torch.zeros(2, 6), torch.tensor([0, 4]))]
    with pytest.raises(IndexError, match="4 is out of bounds"):
        TaskLoss(network(1), data).score()
