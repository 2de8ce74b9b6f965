"""Any model and any loss, images that stay the same, and half precision: each case is run."""

import dataclasses
import functools
import itertools
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import batches, network
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from paintlib import PairObjective, Store, TaskLoss, WeightPath, sampling, solver
from paintlib.fits import log_spline
from paintlib.losses import outside
from paintlib.metrics import forgetting, forgetting_prediction

ROOT = Path(__file__).resolve().parent.parent.parent


class Tagger(nn.Module):
    """Labels each token of a sequence: (n, t) to (n, 4, t)."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)
        self.double().eval()

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens))).transpose(1, 2)


def sequences(seed, count=30, length=5):
    """Draw batches of tokens and their labels, about a fifth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 20, (count, length), generator=generator)
    labels = torch.where(tokens % 5 == 0, -100, (tokens + (tokens > 9)) % 4)
    labels[3] = -100  # nothing is known of this one
    return list(zip(tokens.split(7), labels.split(7), strict=True))


def own(model, batch):
    """Return the mean loss over the labels of each sequence, in plain steps."""
    logits = model(batch["tokens"])
    each = F.cross_entropy(logits, batch["labels"], reduction="none")
    known = (batch["labels"] != -100).sum(1)
    return each.sum(1) / known.clamp(min=1)


def dicts(seed):
    return [{"tokens": tokens, "labels": labels} for tokens, labels in sequences(seed)]


def tagged(*tasks_of, seeds=(1, 2, 3), **options):
    """Return the objective of tasks on one tagger; a task is made by a function of its model."""
    start, end, model = map(Tagger, seeds)
    return PairObjective(WeightPath(start, end), [of(model) for of in tasks_of],
                         [4] * len(tasks_of), **options)  # fmt: skip


def pair_of(batches_of_a, model=None, **options):
    model = model or network(3)
    start, end = network(1), network(2)
    tasks = [TaskLoss(model, batches_of_a, **options), TaskLoss(model, batches(5))]
    return PairObjective(WeightPath(start, end), tasks, [4, 4])


def test_a_sequence_costs_the_mean_over_its_labels_and_is_left_out_without_any():
    model, data = Tagger(1), sequences(4)
    images = TaskLoss(model, data).evaluate()
    expected, right = [], []
    for tokens, labels in zip(*(torch.cat(column) for column in zip(*data, strict=True)),
                              strict=True):  # fmt: skip
        known = [i for i, label in enumerate(labels.tolist()) if label >= 0]
        logs = model(tokens[None])[0].log_softmax(0).detach()
        if known:
            expected.append(np.mean([-float(logs[labels[i], i]) for i in known]))
            right.append(np.mean([int(logs[:, i].argmax()) == int(labels[i]) for i in known]))
    assert len(images.losses) == 29
    assert images.losses == pytest.approx(expected, rel=1e-12)
    assert images.correct == pytest.approx(right, rel=1e-12)


def test_pixels_are_one_value_per_picture():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1).double().eval()
    pictures, labels = torch.randn(6, 3, 5, 7).double(), torch.randint(0, 4, (6, 5, 7))
    images = TaskLoss(model, [(pictures, labels)]).evaluate()
    each = F.cross_entropy(model(pictures), labels, reduction="none").detach()
    assert images.losses == pytest.approx(each.mean((1, 2)).numpy(), rel=1e-12)
    assert images.score.images == 6


def test_an_ignored_label_is_left_out_of_every_mean():
    model = network(1)
    (x, y), *_ = batches(2)
    y[2] = -100
    kept = [0, 1, 3, 4, 5, 6]
    score = TaskLoss(model, [(x, y)]).score()
    assert score == TaskLoss(model, [(x, y)]).evaluate().score and score.images == 6
    alone = TaskLoss(model, [(x[kept], y[kept])])
    assert score.loss == pytest.approx(alone.score().loss, rel=1e-5)
    assert score.accuracy == alone.score().accuracy
    gradient, expected = TaskLoss(model, [(x, y)]).gradient(), alone.gradient()
    for name, part in gradient.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-4, atol=1e-6)
    unknown = (x, torch.full_like(y, -100))
    assert pair_of([unknown, (x, y)]).score(0.5)[0].images == 6
    with pytest.raises(ValueError, match="no image to score: all labels of `batches` are -100"):
        TaskLoss(model, [(x, torch.full_like(y, -100))]).score()


def test_token_labels_are_searched_and_have_a_standard_error():
    tasks = [lambda model, seed=seed: TaskLoss(model, sequences(seed)) for seed in (4, 5)]
    objective = tagged(*tasks)
    solution = solver.log_quintic(objective)
    assert sampling.standard_error(objective, solution).value > 0
    assert objective.score(0.0)[0].images == 29


@pytest.mark.parametrize("form", [dict, lambda **fields: SimpleNamespace(**fields)])
def test_any_loss_gives_what_the_default_gives_on_batches_of_any_form(form, tmp_path):
    data = [form(tokens=x, labels=y) for x, y in sequences(4)]
    get = (lambda batch: batch) if form is dict else vars

    def task(model, **options):
        return TaskLoss(model, data, loss=lambda m, batch: own(m, get(batch)), **options)

    objective = tagged(task, names=["a"], store=Store(tmp_path / "s.npz"))
    default = tagged(lambda model: TaskLoss(model, sequences(4)))
    kept = np.arange(30) != 3  # a loss of one's own knows of no sequence to leave out
    for alpha in (0.0, 0.5):
        losses = objective.images(alpha)[0].losses
        assert losses[kept] == pytest.approx(default.images(alpha)[0].losses, rel=1e-12)
    # the accuracy is nobody's to know: here, in the store, and in what is made of it
    assert math.isnan(objective.score(0.5)[0].accuracy)
    stored = PairObjective.replay(Store(tmp_path / "s.npz", writable=False), ["a"], [4])
    assert math.isnan(stored.score(0.5)[0].accuracy) and stored(0.5) == objective(0.5)
    solution = solver.log_quintic(objective)
    assert sampling.standard_error(objective, solution).value > 0
    assert math.isnan(forgetting(*(objective.score(a)[0] for a in (0.0, 0.5))).accuracy)

    def right(model, batch):
        return model(get(batch)["tokens"])[:, :, 0].argmax(1) == 1

    images = task(Tagger(1), correct=right).evaluate()
    assert images.correct.dtype == bool and 0 < images.score.accuracy < 1


def test_gradient_of_any_loss_is_that_of_the_mean():
    model, data = Tagger(1), dicts(4)
    gradient = TaskLoss(model, data, loss=own).gradient()
    mean = torch.cat([own(model, batch) for batch in data]).mean()
    for expected, part in zip(torch.autograd.grad(mean, list(model.parameters())),
                              gradient.values(), strict=True):  # fmt: skip
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (lambda model, batch: own(model, batch).mean(), r"float64 of shape \(\) for batch 0 of 7"),
        (
            lambda model, batch: F.cross_entropy(
                model(batch["tokens"]), batch["labels"], reduction="none"
            ),
            r"shape \(7, 5\)",
        ),
        (
            lambda model, batch: F.cross_entropy(
                model(batch["tokens"]), batch["labels"], reduction="none"
            ).flatten(),
            r"shape \(35,\)",
        ),
        (lambda model, batch: own(model, batch).tolist(), "a list"),
    ],
)
def test_values_that_are_not_one_per_example_are_refused_at_the_first_batch(loss, seen):
    calls = []

    def counted(model, batch):
        calls.append(batch)
        return loss(model, batch)

    with pytest.raises(ValueError, match=f"loss gives .*{seen}.*one value per example"):
        tagged(lambda model: TaskLoss(model, dicts(4), loss=counted))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="correct gives .*one value per example"):
        TaskLoss(Tagger(1), dicts(4), loss=own, correct=lambda *_: torch.tensor(0.5)).score()


def test_a_batch_or_an_output_of_another_form_is_refused_with_the_remedy():
    model, (x, y) = network(1), batches(2)[0]
    for batch in ({"x": x, "y": y}, (x, y, y), x, (x, y.tolist())):
        with pytest.raises(ValueError, match="batch 0 is no pair .*; give loss=lambda"):
            TaskLoss(model, [batch]).score()
    output = TaskLoss(model, [(x, y)], logits=lambda x: SimpleNamespace(logits=model(x)))
    with pytest.raises(ValueError, match=r"returns a SimpleNamespace; give logits=.*\.logits"):
        output.score()
    for labels in (y[:3], y[:, None], y.double()):
        with pytest.raises(ValueError, match=r"batch 0: labels are .* logits .* of shape \(7, 4\)"):
            TaskLoss(model, [(x, labels)]).score()
    for options in ({"correct": own}, {"loss": own, "logits": model}):
        with pytest.raises(ValueError, match="replace each other"):
            TaskLoss(model, [], **options)


@pytest.mark.parametrize("label", [-1, 4, -101])
def test_a_label_that_is_no_class_is_named_with_its_batch(label):
    data = batches(2)
    data[2][1][5] = label
    message = f"batch 2: label {label} is out of bounds for 4 classes; labels are 0 to 3, or -100"
    with pytest.raises(IndexError, match=message):
        TaskLoss(network(1), data).score()
    with pytest.raises(IndexError, match=message):
        TaskLoss(network(1), data).gradient()
    logits = np.zeros((2, 4))
    with pytest.raises(ValueError, match=f"label {label} .*0 to 3"):
        forgetting_prediction(logits, logits + 1, [0, label])


class Moving(Dataset):
    """Images that are augmented anew at each access."""

    def __init__(self):
        self.images, self.labels = (torch.cat(c) for c in zip(*batches(4), strict=True))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index] + 0.3 * torch.randn(6), self.labels[index]


def test_shuffling_augmentation_and_dropout_are_refused_at_the_first_alpha():
    data = Moving()
    still = TensorDataset(data.images, data.labels)
    model = network(3)
    cases = {
        "shuffled": {"batches_of_a": DataLoader(still, 7, shuffle=True)},
        "augmented": {"batches_of_a": DataLoader(data, 7)},
        "dropped": {
            "batches_of_a": batches(4),
            "model": model,
            "logits": lambda x: F.dropout(model(x), 0.1),
        },
    }
    for case in cases.values():
        with pytest.raises(ValueError, match=r"scored twice .* differs.*shuff.*augment.*dropout"):
            pair_of(**case)
    assert pair_of(DataLoader(still, 7)).score(0.5)[0].images == 30


def test_order_that_changes_after_the_first_images_is_refused_at_the_next_alpha():
    class Later:
        """Puts all but the first 90 images in another order each time."""

        def __init__(self):
            self.turns = itertools.count()

        def __iter__(self):
            first, others, turn = 3 * batches(4), batches(4), next(self.turns)
            return iter([*first, *others[turn:], *others[:turn]])

    objective = pair_of(Later())
    with pytest.raises(ValueError, match=r"'0' has other images at alpha = 0.5 .*shuffling"):
        objective(0.5)


def test_rounding_that_a_kernel_does_not_repeat_is_no_change_of_images():
    for dtype, eps in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
        model = network(3)

        def logits(x, model=model, dtype=dtype, eps=eps):
            out = model(x)
            return (out * (1 + eps * (torch.rand_like(out) - 0.5))).to(dtype)

        assert pair_of(batches(4), model=model, logits=logits).score(0.0)[0].images == 30


def test_every_module_in_training_mode_is_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4)).eval()
    for name in ("1", "2"):
        model.eval().get_submodule(name).train()
        with pytest.raises(ValueError, match=rf"training mode \(1 modules, first: {name}\); call"):
            TaskLoss(model, batches(4)).score()
    with pytest.raises(ValueError, match=r"5 modules, first: the model itself\); call model.eval"):
        TaskLoss(model.train(), batches(4)).gradient()


def test_a_store_refuses_a_search_that_resumes_on_images_in_another_order(tmp_path):
    def objective(data):
        task = [TaskLoss(network(3), data)]
        path = WeightPath(network(1), network(2))
        return PairObjective(path, task, [4], store=Store(tmp_path / "s.npz"))

    x, y = (torch.cat(column) for column in zip(*batches(4), strict=True))
    first = objective([(x, y)])
    first.score(0.5)
    other_batching = list(zip(x.split(11), y.split(11), strict=True))
    objective(other_batching).score(0.75)  # the images are the same
    with pytest.raises(ValueError, match="other losses at alpha = 0"):
        objective([(x.flip(0), y.flip(0))])
    images = TaskLoss(network(3), [(x.flip(0), y.flip(0))]).evaluate()
    with pytest.raises(ValueError, match="other images at alpha = 0.3"):
        Store(tmp_path / "s.npz").put(0.3, {"0": images})
    assert Store(tmp_path / "s.npz").alphas("0") == (0.0, 0.5, 0.75)


def test_a_digest_knows_examples_of_any_form_and_their_order():
    def digest(data, loss=lambda model, batch: torch.zeros(7)):
        return TaskLoss(nn.Identity().eval(), data, loss=loss).evaluate().digest

    x, y = torch.arange(70.0).reshape(7, 10), torch.arange(7)
    forms = [{"x": x, "y": y}, SimpleNamespace(x=x), [x.numpy()], ["one", "two", *"abcde"]]
    turned = [{"x": x, "y": y.flip(0)}, SimpleNamespace(x=x.flip(0)), [x.numpy()[::-1].copy()],
              ["two", "one", *"abcde"]]  # fmt: skip
    for form, other in zip(forms, turned, strict=True):
        assert digest([form, form]) == digest([form, form]) != digest([other, form])
    assert len({digest([form]) for form in (*forms, *turned)}) == 8
    # the labels tell which image is which, and floats may be rounded elsewhere
    assert digest([{"x": x, "y": y}]) == digest([{"x": x + 1e-6, "y": y}])


def test_tasks_of_the_same_batches_are_one_sample():
    def costs(power, data):
        return TaskLoss(model, data, loss=lambda model, batch: model(batch[0]).abs()[:, 0] ** power)

    path, model = WeightPath(network(1), network(2)), network(3)
    for other, samples in ((batches(0), 1), (batches(1), 2)):
        objective = PairObjective(path, [costs(1, batches(0)), costs(2, other)], [1, 1])
        assert len(sampling.contributions(objective, 0.0)) == samples
    opaque = costs(1, [object()])  # tells nothing of its examples
    value = dataclasses.replace(opaque, loss=lambda model, batch: torch.ones(7)).evaluate()
    assert value.digest == "" and len(value.losses) == 7


def test_stores_without_digests_are_read_added_to_and_written_as_before(tmp_path):
    images = TaskLoss(network(3), batches(4)).evaluate()
    old = type(images)(*images[:2])  # without a digest
    Store(tmp_path / "old.npz").put(0.5, {"a": old})
    before = (tmp_path / "old.npz").read_bytes()
    with np.load(tmp_path / "old.npz") as content:
        assert set(content) == {"key", "a.alphas", "a.losses", "a.correct"}
    Store(tmp_path / "old.npz").put(0.5, {"a": old})
    assert (tmp_path / "old.npz").read_bytes() == before
    Store(tmp_path / "old.npz").put(0.75, {"a": images})
    again = Store(tmp_path / "old.npz")
    assert again.alphas("a") == (0.5, 0.75) and again.get(0.5, "a").digest == images.digest


def test_stores_of_the_reference_stay_as_they_are(tmp_path):
    found = sorted((ROOT / "results" / "micro" / "evaluations").glob("*.npz"))
    if not found:
        pytest.skip("the reference run is not beside the library")
    copy = shutil.copy(found[0], tmp_path)
    store = Store(copy)
    alpha, task = store.alphas(store.tasks[0])[0], store.tasks[0]
    row = store.get(alpha, task)
    assert row.digest == "" and row.correct.dtype == bool
    store.put(alpha, {task: row})
    assert Path(copy).read_bytes() == found[0].read_bytes()


@functools.cache
def toy():
    """Train two nets: on one task, and further on another; return them and how to draw images."""
    torch.manual_seed(0)
    centres = torch.randn(2, 10, 32)

    def draw(task, count, generator=None):
        labels = torch.randint(0, 10, (count,), generator=generator)
        noise = torch.randn(count, 32, generator=generator)
        return 0.6 * centres[task][labels] + noise, labels

    def net():
        return nn.Sequential(
            nn.Linear(32, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU(),
            nn.LayerNorm(48), nn.Linear(48, 10),
        )  # fmt: skip

    def train(model, task, steps):
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(steps):
            images, labels = draw(task, 128)
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()

    start, end = net(), net()
    train(start, 0, 200)
    end.load_state_dict(start.state_dict())
    train(end, 1, 60)
    return start.eval(), end.eval(), net().eval(), draw


def drawn(seed, images=500, dtype=None):
    """Return the objective of freshly drawn images, in autocast to `dtype` or not."""
    start, end, model, draw = toy()
    generator = torch.Generator().manual_seed(seed)

    def logits(images):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return model(images).float()  # as CLIP's head does: what comes out hides the precision

    tasks = [TaskLoss(model, [draw(task, images, generator)], logits=logits) for task in (0, 1)]
    return PairObjective(WeightPath(start, end), tasks, [10, 10])


@functools.cache
def spread():
    """Return where alpha* is, and its standard deviation over 60 draws of 500 images."""
    objective, alphas = drawn(99, 30_000), np.linspace(0.0, 1.0, 9)
    dense = np.linspace(0.0, 1.0, 2001)
    means = [np.stack([objective.images(alpha)[task].losses.reshape(60, 500).mean(1)
                       for alpha in alphas]) for task in (0, 1)]  # fmt: skip
    curves = sum(log_spline(alphas, mean / mean[0])(dense) for mean in means)
    best = dense[curves.argmin(0)]
    return best.mean(), best.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ends_in_noise_at_the_right_alpha_with_the_right_error(dtype):
    errors, (centre, right_error) = [], spread()
    for seed in range(3):
        exact, half = drawn(seed), drawn(seed, dtype=dtype)
        found = solver.log_quintic(half, xtol=sampling.tolerance(half))
        right = solver.log_quintic(exact, xtol=1e-5, max_evals=30)
        errors.append(sampling.standard_error(half, found).alpha)
        assert found.status is solver.Status.NOISE and found.evaluations <= 8
        assert abs(found.alpha - right.alpha) < errors[-1]
        assert abs(found.alpha - centre) < 5 * right_error
        assert errors[-1] == pytest.approx(sampling.standard_error(exact, right).alpha, rel=0.25)
        assert 1e-6 < half.noise < 1e-2 and {0.49, 0.5, 0.51, 0.52} <= set(half.evaluated)
        assert solver.log_quintic(half).status is solver.Status.NOISE
        # differences of samples this close are rounding
        close = [(a := found.alpha + i * 2e-3, sum(half(a)), half(a)) for i in (-2, -1, 1, 2)]
        crowded = [*found.trace, *(solver.Evaluation(*sample) for sample in close)]
        crowded_error = sampling.standard_error(half, crowded).alpha
        assert crowded_error == pytest.approx(errors[-1], rel=0.25)
    # it differs from draw to draw in float32 too
    assert np.mean(errors) == pytest.approx(right_error, rel=0.25)


def test_float32_has_no_noise_and_pays_for_none():
    objective = drawn(0)
    assert objective.noise == 0.0 and objective.evaluated == [0.0]
    found = solver.log_quintic(objective, xtol=sampling.tolerance(objective))
    assert found.status is solver.Status.CONVERGED
    assert len(objective.evaluated) == found.evaluations


def test_noise_is_that_of_the_rounding():
    """Over many alphas the sum in half precision differs from that in float32 by `noise`."""
    half, exact = drawn(1, dtype=torch.bfloat16), drawn(1)
    apart = [sum(half(alpha)) - sum(exact(alpha)) for alpha in np.linspace(0.4, 0.6, 21)]
    assert 0.2 * np.std(apart) < half.noise < 3 * np.std(apart)


def test_noise_survives_the_store(tmp_path):
    start, end, model, draw = toy()
    path, data = WeightPath(start, end), [draw(0, 100, torch.Generator().manual_seed(3))]
    half = TaskLoss(model, data, logits=lambda x: model(x).bfloat16())
    live = PairObjective(path, [half], [10], store=Store(tmp_path / "s.npz"))
    blind = PairObjective.replay(Store(tmp_path / "s.npz"), ["0"], [10])
    assert math.isnan(blind.noise)  # not measured there
    found = solver.log_quintic(live)
    replayed = PairObjective.replay(Store(tmp_path / "s.npz", writable=False), ["0"], [10])
    assert replayed.noise == live.noise > 0
    assert solver.log_quintic(replayed) == found


def test_a_search_within_autocast_sees_the_weights_of_each_alpha():
    start, end, model, draw = toy()
    path, task = WeightPath(start, end), TaskLoss(model, [draw(1, 100)])
    with torch.autocast("cpu", torch.bfloat16):
        objective = PairObjective(path, [task], [10])
        assert objective(1.0)[0] < 0.9 * objective(0.0)[0]
        inside = [path.flatten(task.gradient()) for alpha in (0.0, 1.0) if path.set_(model, alpha)]
    outside = [path.flatten(task.gradient()) for alpha in (0.0, 1.0) if path.set_(model, alpha)]
    for found, expected in zip(inside, outside, strict=True):  # in half precision and in float32
        assert float((found - expected).norm() / expected.norm()) < 0.1


def test_bumps_of_noise_are_no_second_valley():
    class Noisy:
        noise = 1e-3

        def __call__(self, alpha):
            return (alpha - 0.4) ** 2 + 1.0 + random.Random(repr(alpha)).gauss(0, 1e-3)

    assert solver.grid(Noisy(), step=0.02).status is solver.Status.CONVERGED
    assert solver.grid(Noisy().__call__, step=0.02).status is solver.Status.NOT_QUASICONVEX
    found = solver.log_quintic(Noisy(), max_evals=20)
    assert found.status is solver.Status.NOISE and abs(found.alpha - 0.4) < 0.06
    assert solver.log_quintic(Noisy().__call__, noise=1e-3, max_evals=20) == found


def test_mean_over_a_batch_is_refused_where_no_length_tells_the_examples():
    batch = {"x": torch.randn(8, 6), "y": torch.zeros(8, dtype=torch.long), "w": torch.ones(4)}
    task = TaskLoss(network(3), [batch], loss=lambda model, b: model(b["x"]).mean().reshape(1))
    with pytest.raises(ValueError, match="return one value per example"):
        task.evaluate()


def test_one_example_has_no_sampling_error():
    path, data = WeightPath(network(1), network(2)), [(torch.randn(1, 6), torch.tensor([1]))]
    objective = PairObjective(path, [TaskLoss(network(3), data)], [4], "none")
    objective(1.0)
    assert math.isnan(sampling.difference(objective, 0.0, 1.0)[1])


def test_labels_of_a_byte_count_to_255():
    labels = torch.tensor([5, 240, 255], dtype=torch.uint8)
    assert outside(labels, 256).tolist() == [False] * 3
    assert outside(labels, 250).tolist() == [False, False, True]


class Half(nn.Module):
    """A network whose first layer is in half precision, and the rest is not."""

    def __init__(self):
        super().__init__()
        self.first, *_, self.last = network(3)
        self.first.bfloat16()

    def forward(self, x):
        return self.last(self.first(x.bfloat16()).float())


def test_precision_is_that_of_the_coarsest_layer_also_of_a_compiled_model():
    half, coarse = torch.finfo(torch.bfloat16).eps, Half().eval()
    assert TaskLoss(coarse, batches(4)).evaluate().eps == half
    assert TaskLoss(network(3), batches(4)).evaluate().eps == torch.finfo(torch.float32).eps
    compiled = torch.compile(coarse, backend="eager")
    for _ in range(2):  # what has been compiled once calls no hook
        compiled(batches(4)[0][0])
        assert TaskLoss(compiled, batches(4)).evaluate().eps == half


def test_augmentation_is_seen_in_batches_of_one_image():
    class Rare(Moving):
        def __getitem__(self, index):
            return (-1) ** random.randrange(2) * self.images[index], self.labels[index]

    for seed in range(10):
        random.seed(seed)
        with pytest.raises(ValueError, match="scored twice .* differs"):
            pair_of(DataLoader(Rare(), 1))


def test_flattened_labels_are_no_examples_beside_tensors_of_any_length():
    def flattened(model, batch):
        logits = model(batch["tokens"])
        return F.cross_entropy(logits, batch["labels"], reduction="none").flatten()

    data = [batch | {"places": torch.arange(5)[None]} for batch in dicts(4)]
    with pytest.raises(ValueError, match=r"loss gives .*shape \(35,\) for batch 0; return one"):
        tagged(lambda model: TaskLoss(model, data, loss=flattened))
    assert tagged(lambda model: TaskLoss(model, data, loss=own)).score(0.0)[0].images == 30
