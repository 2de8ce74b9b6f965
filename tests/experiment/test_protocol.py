"""What keeps the experiment honest: float32, no leak, self-checks, a sample that says so."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from test_steps import go, tiny_profile

from experiment import clip, cost, pages, pixels, replay, report, results, training, weights
from experiment.__main__ import find as step
from experiment.profiles import ALPHAS, PATCHING, PROFILES, SUPPORTED
from experiment.run import Run, how
from experiment.session import Session
from experiment.steps import real, solving
from experiment.steps.provenance import provenance
from paintlib import sampling
from paintlib.store import Store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return go(Run(tiny_profile(), 0, tmp_path_factory.mktemp("tiny")))


def solved(run, choose_on, folder):
    """Return a copy of a run that chooses alpha on other images, solved again."""
    other = dataclasses.replace(run, root=folder, choose_on=choose_on)
    shutil.copytree(run.folder, other.folder)
    shutil.rmtree(other.folder / "baseline")
    step("baseline")(other, "CIFAR10")
    step("solve")(other, "MNIST")
    step("describe")(other)
    return other, results.read_pair(other.pair("CIFAR10", "MNIST"))


def test_losses_are_float32_without_tf32(tiny):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    session = Session(tiny)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    visual = session.tower()
    loss = session.losses(visual, ["MNIST"], "test")["MNIST"]
    seen = []
    for module in visual.modules():
        module.register_forward_hook(lambda *args: seen.append(args[-1]))
    loss.score()
    assert {x.dtype for x in seen if isinstance(x, torch.Tensor)} == {torch.float32}


def test_noise_is_measured_by_other_batches_and_stands_in_the_provenance(tiny, monkeypatch):
    noise = results.read_json(tiny.noise("MNIST"))
    assert set(noise) == {"CIFAR10", "MNIST"} and all(0 <= x < 1e-6 for x in noise.values())
    session = Session(tiny)
    visual, path = session.tower(empty=True), session.path("MNIST")
    file = next((tiny.folder / "evaluations").glob("MNIST-*.npz"))
    store = Store(file, writable=False)
    sizes = []
    losses = session.losses

    def coarse(visual, tasks, split, size):  # as if computed in half precision
        found = losses(visual, tasks, split, size)
        sizes.append(size)
        for loss in found.values():
            own = loss.logits
            object.__setattr__(loss, "logits", lambda x, own=own: own(x).half().float())
        return found

    monkeypatch.setattr(session, "losses", coarse)
    half = solving.measure_noise(session, visual, path, "MNIST", store)
    assert sizes == [16, 16] and min(half.values()) > 1e-6
    held, metadata = weights.load(tiny.baseline("CIFAR10"))
    weights.save(tiny.baseline("CIFAR10"), held, **metadata | {"gpu": "a card"})
    provenance(tiny)  # where there may be none
    assert results.read_json(tiny.results / "provenance.json")["device"] == "a card"
    weights.save(tiny.baseline("CIFAR10"), held, **metadata)
    provenance(tiny)
    said = results.read_json(tiny.results / "provenance.json")
    assert said["noise"] == {"MNIST": max(half.values())}
    results.write_json(tiny.noise("MNIST"), noise)


def test_search_finer_than_the_noise_is_refused(monkeypatch):
    objective = replay.objective("results/micro", "CIFAR10", "MNIST")
    solving.refuse_noise(objective, 1e-7)  # more than float32 makes of 500 images
    with pytest.raises(ValueError, match=r"CIFAR10 \+ MNIST: .* noise of 1.3e-04.* float32"):
        solving.refuse_noise(objective, 1.3e-4)  # what float16 makes
    # in a valley so flat that no precision would do
    monkeypatch.setattr(sampling, "tolerance", lambda _: lambda _: 1e-9)
    solving.refuse_noise(objective, 4e-8)
    with pytest.raises(ValueError, match="the search asks for 1.0e-09"):
        solving.refuse_noise(objective, 2e-6)


def test_alpha_chosen_on_halves_is_reported_on_the_other_half(tiny, tmp_path):
    run, record = solved(tiny, "halves", tmp_path)
    assert run.name == "smoke-on-halves" and record["run"]["choose_on"] == "halves"
    assert record["curves"]["supported"]["images"] == 40  # all test images
    objective = replay.objective(run.results, "CIFAR10", "MNIST")
    orders = [np.random.default_rng(0).permutation(40) for _ in range(2)]
    halves = [[np.sort(order[start::2]) for order in orders] for start in (1, 0)]
    assert not set(halves[0][0]) & set(halves[1][0])

    def total(alpha, rows):
        parts = zip(objective.images(alpha), objective.images(0.0), rows, strict=True)
        return math.fsum(a.losses[row].mean() / b.losses[row].mean() for a, b, row in parts)

    for own, alpha in zip(halves, record["halves"]["grid"], strict=True):
        assert alpha == min(ALPHAS, key=lambda a: total(a, own))  # of its own half alone
    for name, alphas in record["halves"].items():
        shown = record["test"][name]
        assert shown["alpha"] == pytest.approx(np.mean(alphas))
        for i, role in enumerate(("supported", "patching")):
            there = [objective.images(a)[i].losses[other[i]].mean()
                     for a, other in zip(alphas, halves[::-1], strict=True)]  # fmt: skip
            assert shown[role]["loss"] == pytest.approx(np.mean(there), rel=1e-6)
    assert not objective.evaluated


def test_alpha_chosen_on_test_images_is_reported_there_and_marked(tiny, tmp_path):
    run, record = solved(tiny, "test", tmp_path)
    curve, end = record["curves"]["patching"], record["test"]["fine_tuned"]["patching"]
    assert (curve["loss"][-1], curve["accuracy"][-1]) == (end["loss"], end["accuracy"])
    grid = record["solutions"]["grid"]["alpha"]
    assert record["test"]["grid"]["alpha"] == grid and "halves" not in record
    said = report.answer([record], "It is so.").data
    assert "α chosen on the test images it is reported on" in said
    assert "α chosen on the test images" in report.provenance_footer([record]).data.lower()
    with pytest.raises(ValueError, match="the evidence needs a run that chooses on validation"):
        step("measure")(run, "MNIST")


def test_usual_runs_have_no_new_fields(tiny):
    record = json.loads(tiny.pair("CIFAR10", "MNIST").read_text())
    assert list(record["run"]) == ["profile", "seed", "limit", "weights", "finetuned"]
    assert "halves" not in record and how(record["run"]) == []


def test_public_weights_are_never_chosen_on_images_they_have_seen():
    assert Run.of("paper").choosing == "validation"
    hub = Run.of("paper", finetuned="hub")
    assert (hub.name, hub.chosen_on, hub.choosing) == ("paper-hub", "halves", "test")
    assert Run.of("paper", finetuned="hub", choose_on="test").name == "paper-hub-on-test"
    with pytest.raises(ValueError, match="were trained on the validation images too"):
        Run.of("paper", finetuned="hub", choose_on="validation")
    with pytest.raises(ValueError, match="choose_on = 'train'; choose one of validation, halves"):
        Run.of("paper", choose_on="train")


def test_accuracies_far_from_published_ones_are_told_with_both_numbers():
    deviation = real.deviation
    assert deviation("CIFAR10", "zero_shot", 0.8983, 500) == ""
    assert deviation("CIFAR10", "zero_shot", 0.85, 500) == ""  # 5 points, below 5 standard errors
    assert deviation("CIFAR10", "zero_shot", 0.875, 10**6) == ""  # beyond them, below 3 points
    said = deviation("CIFAR10", "zero_shot", 0.1, 500)  # labels in another order
    assert said.startswith(
        "CIFAR10: the zero-shot accuracy on 500 test images is 10.0 %, published"
    )
    assert "ones are 89.8 to 89.8 % (59 standard errors away)" in said
    assert "99.0 %" in deviation("CIFAR10", "zero_shot", 0.99, 2000)  # images seen in training
    assert deviation("DTD", "fine_tuned", 0.6, 2000) != ""
    assert deviation("DTD", "fine_tuned", 0.6, 2000, whole=False) == ""  # of a sample


def test_every_real_task_has_published_accuracies():
    for task in SUPPORTED + PATCHING:
        kinds = ("zero_shot",) + ("fine_tuned",) * (task in PATCHING)
        for kind in kinds:
            assert real.deviation(task, kind, 0.0, 1000), task


def test_a_deviation_stops_the_run_until_it_is_accepted(tiny, monkeypatch):
    profile = dataclasses.replace(tiny.profile, clip="any")
    stub = type("Run", (Run,), {"choices": {"weights": "openai"}})
    run = stub(profile, 0, tiny.root)
    session = Session(tiny)
    monkeypatch.setattr(real, "Session", lambda _: session)
    with pytest.raises(ValueError, match="CIFAR10: the zero-shot .*labels.*templates.*ACCEPT=CIF"):
        real.verify(run, "heads", "CIFAR10")
    assert not run.verified("heads", "CIFAR10")[0].exists()
    assert tiny.verified("heads", "CIFAR10") == []
    monkeypatch.setattr(real, "IMAGES", 20)
    real.verify(dataclasses.replace(run, accept=("CIFAR10",)), "heads", "CIFAR10")
    told = results.read_json(run.verified("heads", "CIFAR10")[0])
    assert told["images"] == 20 and told["deviation"].startswith("CIFAR10: the zero-shot accuracy")
    stub.choices = {"weights": "random"}
    real.verify(run, "fine_tuned", "MNIST")  # a dry run is compared with nothing
    with pytest.raises(ValueError, match="accept = 'Cats': no task 'Cats'"):
        Run.of("paper", accept="Cats")


def test_a_sample_is_the_experiment_on_balanced_classes():
    run = Run.of("paper", sample=500, finetuned="hub")
    assert run.name == "paper-hub-images500" and not run.profile.limit
    assert [run.profile.images(s) for s in ("train", "validation", "test")] == [500] * 3
    assert run.profile.finetuning.steps == 76 * 500 // 128  # no image more often than DTD's
    assert Run.of("paper", sample=10**6).profile.finetuning == PROFILES["paper"].finetuning
    for wrong in ({"profile": "micro", "sample": 5}, {"profile": "paper", "sample": -1}):
        with pytest.raises(ValueError, match="sample = -?[15]; it is a number of images a split"):
            Run.of(**wrong)

    class Pictures:
        labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3)

        def __len__(self):
            return len(self.labels)

    pictures = Pictures()
    rows = pixels.choose(pictures, 21, balanced=True)
    assert torch.bincount(pictures.labels[rows]).tolist() == [9, 9, 3] and len(set(rows)) == 21
    assert rows == pixels.choose(pictures, 21, balanced=True)
    assert pixels.choose(pictures, 6, balanced=True) == rows[:6]


def test_pages_of_a_sample_say_so_and_carry_no_banner(tiny, monkeypatch):
    record = results.read_pair(tiny.pair("CIFAR10", "MNIST"))
    record["run"] |= {"sample": 500, "profile": "paper", "weights": "openai"}
    for said in (report.answer([record], "So."), report.provenance_footer([record])):
        assert "a sample of 500 images a split" in said.data.replace("A sample", "a sample")
    assert not report.is_dry(record)
    run = Run.of("paper", sample=500, tasks="CIFAR10,STL10,GTSRB")
    monkeypatch.setattr(Run, "choices", {"weights": "openai"})
    banner = "data sets; pairs: 2; a sample of 500 images a split, classes balanced."
    assert pages._announcement(run).endswith(banner)


def test_every_page_of_an_unusual_run_says_which_images_chose_alpha(tmp_path):
    source = tmp_path / "note.md"
    head = Path("notebooks/all_pairs.md").read_text(encoding="utf-8").partition("# ")[0]
    source.write_text(f"{head}# A note\n\nIt says something.\n", encoding="utf-8")
    for run, lines in (
        (Run.of("smoke", root=tmp_path), []),
        (Run.of("paper", root=tmp_path, sample=9, choose_on="test"), ["a sample of 9", "α chosen"]),
    ):
        step("page")(run, source, tmp_path / "note.ipynb")
        first = nbformat.read(tmp_path / "note.ipynb", as_version=4).cells[0].source
        marks = [line for line in first.splitlines() if line.startswith("> **")]
        assert len(marks) == len(lines)
        assert all(said in line for said, line in zip(lines, marks, strict=True))


def test_a_batch_in_parts_trains_to_the_same_weights(tiny):
    split = Session(tiny).split("MNIST", "train")
    ends = []
    for at_once in (None, 12):  # 32 images in parts of 12, 12 and 8
        tower = Session(tiny).tower()
        logits = clip.classifier(tower, Session(tiny).head("MNIST"), tiny.profile.pixels)
        recipe = tiny.profile.finetuning
        list(training.finetune(tower, logits, split, recipe, seed=0, at_once=at_once))
        ends.append(torch.cat([weight.flatten() for weight in tower.state_dict().values()]))
    start = torch.cat([w.flatten() for w in Session(tiny).tower().state_dict().values()])
    assert torch.linalg.norm(ends[0] - ends[1]) < 0.02 * torch.linalg.norm(ends[0] - start)


def test_what_a_sample_takes_is_told_beforehand(monkeypatch, capsys, tmp_path):
    run = Run.of("paper", sample=500, finetuned="hub", tasks="STL10,DTD", root=tmp_path)
    work = cost.steps(run, fresh=2, answers=9)
    assert work["decode"].decoded == 1000 and work["finetune"].training == 0
    assert work["baseline"] == cost.Work(1, forward=500, training=500)
    # the start, 21 alphas, the noise; twice two more for each of both halves and the whole
    assert work["solve"].forward == 500 + 21 * 1000 + 3 * 2 * 1000
    monkeypatch.setattr(cost, "images_per_second", lambda: 10.0)
    cost.estimate(run)
    said = capsys.readouterr().out
    work = cost.steps(run, fresh=3.6, answers=3)
    passes = sum(step.forward for step in work.values())
    assert f"a sample of 500 images a split: {passes:,} forward passes" in said
    assert "10.0 images per second measured now" in said and "GB" in said
    cost.estimate(Run.of("paper", limit=4))
    assert capsys.readouterr().out == ""


def test_finetuning_in_bfloat16_ends_as_accurate_as_in_float32(tiny):
    split, ends = Session(tiny).split("MNIST", "train"), []
    recipe = dataclasses.replace(tiny.profile.finetuning, steps=30)
    head, pixels_of = Session(tiny).head("MNIST"), tiny.profile.pixels
    for precision in (None, torch.bfloat16):
        tower = Session(tiny).tower()
        logits = clip.classifier(tower, head, pixels_of, precision)
        list(training.finetune(tower, logits, split, recipe, seed=0))
        assert {weight.dtype for weight in tower.state_dict().values()} == {torch.float32}
        ends.append(Session(tiny).loss(tower, "MNIST", split).score())
    start = Session(tiny).loss(Session(tiny).tower(), "MNIST", split).score()
    error = math.sqrt(2 * ends[0].accuracy * (1 - ends[0].accuracy) / len(split.labels))
    assert abs(ends[1].accuracy - ends[0].accuracy) <= 2 * error
    assert max(end.loss for end in ends) < 0.8 * start.loss
