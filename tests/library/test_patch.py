"""The command `paintlib patch`, on tasks as a user would give it, and its certificate."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import network
from torch import nn

from paintlib import (
    PairObjective,
    Store,
    TaskLoss,
    WeightPath,
    limits,
    reestimate_batchnorm,
    sampling,
    solver,
)
from paintlib.__main__ import main
from paintlib.patch import Setup

ENDS = ("zs.safetensors", "ft.safetensors")


def end(seed):
    """Return a checkpoint of a path on which every loss is convex: the last layer differs."""
    model = network(1)
    with torch.no_grad():
        for ours, theirs in zip(model[3].parameters(), network(seed)[3].parameters(), strict=True):
            ours.copy_(3 * theirs)
    return model


def labelled(teacher, seed, count=90):
    """Return images with labels drawn from what `teacher` predicts: it has the lowest loss."""
    generator = torch.Generator().manual_seed(seed)
    images = 2 * torch.randn(count, 6, generator=generator)
    with torch.no_grad():
        labels = torch.multinomial(teacher(images).softmax(1), 1, generator=generator)[:, 0]
    return list(zip(images.split(40), labels.split(40), strict=True))


def setup(model=None, held_out=True, **options):
    """Each end of the path is right about one task."""
    model = model or network(3)
    teachers = {"keep": end(1), "repair": end(2)}
    tasks, other = (
        {name: TaskLoss(model, labelled(net, seed)) for name, net in teachers.items()}
        for seed in (5, 6)
    )
    return Setup(**{"tasks": tasks, "held_out": other if held_out else {}, **options})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two checkpoints, in which `mine:tasks` is `setup()`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, seed in zip(ENDS, (1, 2), strict=True):
        save_file(end(seed).state_dict(), name)
    give(monkeypatch, setup())
    return tmp_path


def give(monkeypatch, result):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(tasks=lambda: result, one=1))


def patch(*options):
    return main(["patch", *ENDS, "--tasks", "mine:tasks", *options])


def answer(capsys, *options):
    assert patch("--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def expected(made, **options):
    tasks = list(made.tasks.values())
    path = WeightPath(load_file(ENDS[0]), load_file(ENDS[1]))
    return PairObjective(path, tasks, [4] * len(tasks), **options)


def test_patch_answers_as_the_library_does(folder, capsys):
    told = answer(capsys)
    objective = expected(setup())
    found = solver.log_quintic(objective, xtol=sampling.tolerance(objective), max_evals=12)
    assert told["alpha"] == pytest.approx(found.alpha, abs=1e-5)
    error = sampling.standard_error(objective, found)
    assert told["stderr"] == pytest.approx(error.alpha, rel=1e-3)
    assert told["numerical_error"] <= 0.1 * told["stderr"] * 1.01
    assert told["status"] == "CONVERGED" and 0.2 < told["alpha"] < 0.8
    scores = objective.score(0.0), objective.score(found.alpha), objective.score(1.0)
    for i, name in enumerate(("keep", "repair")):
        for place, score in zip(("zero_shot", "patched", "fine_tuned"), scores, strict=True):
            place = told["tasks"][name][place]
            assert place["loss"] == pytest.approx(score[i].loss, rel=1e-3)
            assert place["accuracy"] == pytest.approx(score[i].accuracy, abs=0.012)  # one image
    for end, alpha in (("zero_shot", 0.0), ("fine_tuned", 1.0)):
        fall = sampling.difference(objective, alpha, found.alpha)
        assert told["gain"][end] == pytest.approx(fall, rel=1e-3)
        a, b = objective.images(found.alpha)[0].losses, objective.images(alpha)[0].losses
        paired = [(a - b).mean(), (a - b).std() / 90**0.5]
        assert told["tasks"]["keep"][end]["change"]["loss"] == pytest.approx(paired, rel=1e-3)


@pytest.mark.parametrize("method", ["quintic", "grid", "brent"])
def test_every_solver_gives_an_answer(folder, capsys, method):
    sharp = answer(capsys, "--store", "sharp.npz")
    told = answer(capsys, "--solver", method, "--max-evals", "30")
    assert told["solver"] == method
    assert told["alpha"] == pytest.approx(sharp["alpha"], abs=0.03)
    assert {place[0] for place in told["trace"]} >= ({0.0, 1.0} if method != "brent" else set())


def test_held_out_images_take_no_part_in_the_choice_and_are_measured_beside_it(folder, monkeypatch,
                                                                               capsys):  # fmt: skip
    told = answer(capsys)
    beside = expected(Setup(tasks=setup().held_out), normalisation="none")
    for i, (name, task) in enumerate(told["held_out"]["tasks"].items()):
        assert name == ("keep", "repair")[i]
        assert task["patched"]["loss"] == pytest.approx(
            beside.score(told["alpha"])[i].loss, rel=1e-3
        )
    rows = [
        (beside.images(0.0)[i].losses - beside.images(told["alpha"])[i].losses) / task["scale"]
        for i, task in enumerate(told["tasks"].values())
    ]
    fall, error = told["held_out"]["gain"]["zero_shot"]
    assert fall == pytest.approx(sum(row.mean() for row in rows), rel=1e-3)
    assert error == pytest.approx(np.hypot(*(row.std() / 90**0.5 for row in rows)), rel=1e-3)
    give(monkeypatch, setup(held_out=False))
    without = answer(capsys, "--store", "other.npz")
    assert without["alpha"] == told["alpha"] and without["held_out"] == {}


def test_text_tells_alpha_its_error_why_it_stopped_and_what_changes(folder, capsys):
    assert patch() == 0
    told = capsys.readouterr()
    assert re.search(r"alpha = 0\.\d+ ± 0\.\d+", told.out)
    assert re.search(r"CONVERGED: .*numerical error [\de.-]+, sampling error 0\.\d+", told.out)
    row = r"\| keep +\| 90 +\| loss +\| \d\.\d{3} \([+-]\d\.\d{3} ± \d\.\d{3}\)"
    assert len(re.findall(row, told.out)) == 2  # chosen on, held out
    assert told.out.count("better by more than 1.96 errors") == 4
    assert "Warnings" not in told.out
    # progress: which evaluation, its alpha, the images, the time left
    assert re.search(r"evaluation 3, alpha = 0\.5000: 100%.*180/180 \[00:00<00:00", told.err)


def test_patched_file_has_names_and_dtypes_of_the_input_and_its_certificate(folder, capsys):
    for name, seed in zip(ENDS, (1, 2), strict=True):
        tensors = end(seed).state_dict()
        save_file({**tensors, "0.bias": tensors["0.bias"].bfloat16()}, name)
    told = answer(capsys, "--out", "patched.safetensors")
    patched, start = load_file("patched.safetensors"), load_file(ENDS[0])
    assert {k: (t.dtype, t.shape) for k, t in patched.items()} == {
        k: (t.dtype, t.shape) for k, t in start.items()
    }
    mixed = torch.lerp(start["3.weight"], load_file(ENDS[1])["3.weight"], told["alpha"])
    torch.testing.assert_close(patched["3.weight"], mixed)
    with safe_open("patched.safetensors", "pt") as file:
        kept = {k.removeprefix("paintlib."): v for k, v in file.metadata().items()}
    assert float(kept["alpha"]) == told["alpha"] and float(kept["stderr"]) == told["stderr"]
    assert kept["normalisation"] == "zero_shot" and kept["status"] == "CONVERGED"
    assert json.loads(kept["scales"]) == {k: t["scale"] for k, t in told["tasks"].items()}
    path = WeightPath(start, load_file(ENDS[1]))
    assert list(json.loads(kept["parents"]).values()) == list(path.digests)
    assert kept["store"] == hashlib.sha256(Path("paintlib.npz").read_bytes()).hexdigest()
    assert json.loads(kept["versions"]).keys() == {"paintlib", "torch"}


def test_model_card_is_one_of_the_hub_and_its_picture_shows_what_was_evaluated(folder, capsys):
    hub = pytest.importorskip("huggingface_hub")
    told = answer(capsys, "--report", "report")
    text = Path("report/README.md").read_text(encoding="utf-8")
    header = hub.ModelCard(text).data.to_dict()
    assert header["library_name"] == "pytorch" and "model-merging" in header["tags"]
    assert "base_model" not in header  # these are files
    assert "# ft.safetensors patched into zs.safetensors" in text
    assert text.count("better by more than 1.96 errors") == 4 and "## On held-out images" in text
    assert json.loads(Path("report/patch.json").read_text(encoding="utf-8")) | told == told
    svg = ET.parse("report/curve.svg").getroot()
    (space,) = {element.tag.partition("}")[0] + "}" for element in svg}
    assert len(svg.findall(f"{space}circle")) == 3 * len(told["trace"])
    lines = [line.get("points").split() for line in svg.findall(f"{space}polyline")]
    assert [len(line) for line in lines] == [101] * 3
    points = np.array([[float(x) for x in point.split(",")] for point in lines[0]])
    lowest = 60 + 420 * told["alpha"]  # of the sum, in the picture
    assert points[points[:, 1].argmax(), 0] == pytest.approx(lowest, abs=8)
    names = {element.text for element in svg.findall(f"{space}text")}
    assert names >= {"sum", "keep", "repair", "alpha"}
    assert names >= {"0", "0.2", "0.4", "0.6", "0.8", "1"}  # round numbers, at the axis of alpha


KILLED = """
import time
from pathlib import Path
from test_patch import setup
from paintlib import Store

class Slow(list):
    def __iter__(self):  # the third evaluation lasts
        if Path("paintlib.npz").exists() and len(Store("paintlib.npz").alphas("repair")) > 1:
            Path("hangs").touch()
            time.sleep(60)
        return super().__iter__()

def tasks():
    made = setup()
    for task in made.rows.values():
        object.__setattr__(task, "batches", Slow(task.batches))
    return made
"""


def test_killed_run_goes_on_without_an_evaluation_twice(folder, capsys):
    whole = answer(capsys, "--store", "whole.npz")
    Path("slow.py").write_text(KILLED, encoding="utf-8")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, "-m", "paintlib", "patch", *ENDS, "--tasks", "slow:tasks"]
    with Path("log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None and not Path("hangs").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, Path("log").read_text()
    assert len(Store("paintlib.npz").alphas("repair")) == 2 < whole["evaluations"]
    told = answer(capsys)
    assert told["evaluations"] == whole["evaluations"] - 2
    for key in ("alpha", "stderr", "tasks", "trace", "store"):
        assert told[key] == whole[key]
    assert answer(capsys)["evaluations"] == 0


def test_weights_move_alpha_to_the_task_that_counts(folder, capsys):
    plain, moved = answer(capsys), answer(capsys, "--weights", "1", "3")
    assert moved["weights"] == {"keep": 1.0, "repair": 3.0}
    assert moved["alpha"] > plain["alpha"] + 2 * plain["stderr"]
    objective = expected(setup(), weights=(1, 3))
    objective(moved["alpha"])
    fall = sampling.difference(objective, 0.0, moved["alpha"])
    assert moved["gain"]["zero_shot"] == pytest.approx(fall, rel=1e-3)
    change = {
        n: task["zero_shot"]["change"]["loss"] for n, task in moved["held_out"]["tasks"].items()
    }
    parts = {name: w * change[name][0] / moved["tasks"][name]["scale"]
             for name, w in (("keep", 1), ("repair", 3))}  # fmt: skip
    assert moved["held_out"]["gain"]["zero_shot"][0] == pytest.approx(-sum(parts.values()))
    assert patch("--weights", "1", "3", "--out", "patched.safetensors") == 0
    assert "weights 1 keep, 3 repair" in capsys.readouterr().out
    with safe_open("patched.safetensors", "pt") as file:
        assert json.loads(file.metadata()["paintlib.weights"]) == {"keep": 1.0, "repair": 3.0}


def test_ceiling_holds_alpha_back_and_is_in_the_certificate(folder, capsys):
    plain, held = answer(capsys), answer(capsys, "--ceiling", "keep=0.02")
    assert held["status"] == "AT_CEILING" and held["alpha"] < plain["alpha"]
    rise, told, probability = held["ceilings"]["keep"]
    highest = limits.highest_rise(expected(setup()), "0", held["alpha"], 0.95)
    assert told == pytest.approx(highest, abs=1e-4) and highest <= 0.02
    assert (rise, probability) == (0.02, 0.95)
    assert patch("--ceiling", "keep=0.02", "--report", "report") == 0
    said = "Task 'keep' must not rise by more than 2.00%: it rises by"
    assert said in capsys.readouterr().out
    card = Path("report/README.md").read_text(encoding="utf-8")
    assert said in card and '| paintlib.ceilings | `{"keep": [0.02, 0.0' in card
    assert patch("--ceiling", "keep=-0.9") == 1  # no alpha obeys: no answer
    assert "no answer: no alpha seen obeys" in capsys.readouterr().err


def test_error_at_a_ceiling_is_not_that_of_the_minimum(folder, capsys):
    plain, held = answer(capsys), answer(capsys, "--ceiling", "keep=0.05")
    objective = expected(setup(), names=["keep", "repair"])
    found = limits.under(objective, [limits.Ceiling("keep", 0.05)], max_evals=12,
                         xtol=sampling.tolerance(objective))  # fmt: skip
    error, distance = limits.errors(objective, [limits.Ceiling("keep", 0.05)], found)
    assert held["stderr"] == pytest.approx(error, rel=1e-6) != plain["stderr"]
    assert held["numerical_error"] == pytest.approx(distance, rel=1e-3) and distance <= 0.005
    told = answer(capsys, "--ceiling", "keep=0.05", "--weights", "0", "1")
    assert told["status"] == "AT_CEILING" and told["bound"] is None and told["stderr"] > 0


def test_tensors_that_move_are_named_by_only(folder, monkeypatch, capsys):
    model = nn.ModuleDict({"body": network(3), "head": nn.Linear(4, 2)}).eval()
    tasks = {n: dataclasses.replace(t, model=model, logits=model["body"])
             for n, t in setup().tasks.items()}  # fmt: skip
    give(monkeypatch, Setup(tasks))
    for name, seed in zip(ENDS, (1, 2), strict=True):
        save_file({f"body.{n}": t for n, t in end(seed).state_dict().items()}, name)
    assert patch() == 1
    assert "first: 'head.bias'; " in capsys.readouterr().err
    assert patch("--only", "body.*", "--out", "p.safetensors") == 0
    assert torch.equal(load_file("p.safetensors")["head.bias"], model["head"].bias)


def test_tasks_may_be_named_by_their_file_and_images_are_those_of_the_sampler(folder, capsys):
    text = (
        "import test_patch, torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "from paintlib import TaskLoss\nfrom paintlib.patch import Setup\n"
        "def tasks():\n"
        "    made = test_patch.setup()\n"
        "    (x, y) = made.tasks['keep'].batches[0]\n"
        "    loader = DataLoader(TensorDataset(x, y), 8, sampler=range(24))\n"
        "    return Setup({'keep': TaskLoss(made.model, loader)})\n"
    )
    Path("sub").mkdir()
    Path("sub/own.py").write_text(text, encoding="utf-8")
    assert main(["patch", *ENDS, "--tasks", "./sub/own.py:tasks", "--dry-run"]) == 0
    assert "keep: 24 images, 4 classes" in capsys.readouterr().out


def test_end_has_a_bound_in_place_of_an_error(folder, monkeypatch, capsys):
    needless(monkeypatch)
    assert answer(capsys)["bound"][1] == "at most"
    assert patch() == 0
    assert re.search(
        r"alpha = 0\.0000 \(alpha\* is at most 0\.\d+, at 95 %\)", capsys.readouterr().out
    )


def test_heads_that_differ_stay_as_the_model_has_them(folder, capsys):
    save_file({**load_file(ENDS[1]), "3.bias": torch.zeros(7)}, ENDS[1])
    assert patch() == 1
    assert "'3.bias'" in capsys.readouterr().err
    assert patch("--except", "3.bias", "--out", "patched.safetensors") == 0
    torch.testing.assert_close(load_file("patched.safetensors")["3.bias"], network(3)[3].bias.data)


def wrong(**options):
    def build(folder, monkeypatch):
        give(monkeypatch, setup(**options))

    return build


def bad_label(folder, monkeypatch):
    made = setup()
    made.tasks["repair"].batches[-1][1][-1] = -1
    give(monkeypatch, made)


def other_names(folder, monkeypatch):
    save_file({"weight": torch.zeros(3)}, ENDS[1])


def result(value):
    return lambda folder, monkeypatch: give(monkeypatch, value)


def another_model(folder, monkeypatch):
    made, other = setup(held_out=False), network(4)
    tasks = {name: dataclasses.replace(task, logits=other) for name, task in made.tasks.items()}
    give(monkeypatch, Setup(tasks))


def raising(folder, monkeypatch):
    def tasks():
        return {}["missing"]

    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(tasks=tasks))


def not_held_out(folder, monkeypatch):
    made = setup()
    give(monkeypatch, Setup(made.tasks, {**made.held_out, "repair": made.tasks["repair"]}))


def no_batch(folder, monkeypatch):
    give(monkeypatch, Setup(tasks={"keep": TaskLoss(network(3), [])}))


def own_loss(folder, monkeypatch, loss=lambda model, batch: model(batch[0]).square().sum(1)):
    made = setup(held_out=False)
    keep = TaskLoss(made.model, made.tasks["keep"].batches, loss=loss)
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": keep}))


def right_or_wrong(folder, monkeypatch):
    own_loss(
        folder, monkeypatch, lambda model, batch: (model(batch[0]).argmax(1) != batch[1]) * 1.0
    )


def not_finite(folder, monkeypatch):
    bias = torch.nn.Parameter(load_file(ENDS[1])["3.bias"])

    def loss(model, batch):
        each = model(batch[0]).square().sum(1)
        return each / 0 if torch.equal(model[3].bias, bias) else each

    own_loss(folder, monkeypatch, loss)


def one_image(folder, monkeypatch):
    made = setup(held_out=False)
    keep = dataclasses.replace(
        made.tasks["keep"], batches=[tuple(part[:1] for part in made.tasks["keep"].batches[0])]
    )
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": keep}))


def generator(folder, monkeypatch):
    made = setup(held_out=False)
    once = dataclasses.replace(made.tasks["keep"], batches=zip(*[iter([1, 2])] * 2, strict=True))
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": once}))


BAD = {
    "file": (["--tasks", "mine:tasks"], lambda *_: os.remove(ENDS[0]), r"zs\.safetensors"),
    "names": ([], other_names, r"tensors are on one side only, first: '0\.bias'"),
    "module": (["--tasks", "none:tasks"], None, r"no module 'none' .*paintlib init"),
    "function": (["--tasks", "mine:task"], None, r"mine has no function 'task'"),
    "no function": (["--tasks", "mine:one"], None, r"mine has no function 'one'"),
    "result": ([], result({"keep": 1}), r"mine:tasks returns a dict, not a Setup"),
    "own error": ([], raising, r"KeyError: 'missing' \(test_patch\.py, line \d+"),
    "model": ([], wrong(model=nn.Linear(6, 4).eval()), r"tensors are on one side only"),
    "equal": ([], lambda *_: shutil.copy(*ENDS), r"no answer: .* or are the files equal"),
    "another": (["--out", "p.safetensors"], another_model, r"no answer: .* score another model"),
    "training": ([], wrong(model=network(3).train()), r"training mode"),
    "batch": ([], no_batch, r"task 'keep' has no batch"),
    "held out": ([], not_held_out, r"chosen on the held-out images of 'repair'; give others"),
    "normalisation": (["--normalisation", "max"], None, r"unknown normalisation 'max'"),
    "out": (["--out", "patched.pt"], None, r"patched\.pt is no \.safetensors file"),
    "bracket": (["--bracket", "1", "0"], None, r"bracket is \(1\.0, 0\.0\)"),
    "step": (["--solver", "grid", "--step", "0.3"], None, r"step 0\.3 does not divide"),
    "budget": (["--max-evals", "3"], None, r"no answer: evaluations ran out .* --max-evals"),
    "weights": (["--weights", "1"], None, r"2 tasks but the weights \(1\.0,\)"),
    "ceiling": (["--ceiling", "kept=0.01"], None, r"no task is called 'kept'"),
    "ceiling twice": (["--ceiling", "keep=0.01", "--solver", "grid"], None, r"--ceiling needs"),
    "ceilings": (["--ceiling", "keep=0.01", "--ceiling", "keep=1"], None, r"'keep' has two ceil"),
    "own loss": (["--normalisation", "log_classes"], own_loss, r"needs the number of classes"),
    "right or wrong": ([], right_or_wrong, r"task 'keep' is right or wrong, which has no slope"),
    "not finite": (["--bracket", "0", "0.8"], not_finite, r"loss at alpha = 1\.0 is not finite"),
    "store": (["--store", f"{ENDS[0]}/s.npz"], None, r"--store: nothing can be written to .*zs"),
    "entries": (["--entry", "a", "b", "c"], None, r"--entry has 3 names; give one, or one for"),
    "report": (["--report", ENDS[0]], None, r"--report: nothing can be written to .*zs"),
    "one image": (["--ceiling", "keep=0"], one_image, r"task 'keep' has one image"),
    "generator": ([], generator, r"batches of task 'keep' are a generator, .* give a list"),
    "no folder": (["--out", f"{ENDS[0]}/p.safetensors"], None, r"nothing can be written to .*zs"),
    "no weights": ([], wrong(model=nn.Tanh().eval()), r"model of the tasks has no weights; give"),
    "label": (["--dry-run"], bad_label, r"batch 2 of task 'repair' has the label -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_sentence_and_never_succeeds(folder, monkeypatch, capsys, name):
    options, change, message = BAD[name]
    if change:
        change(folder, monkeypatch)
    assert patch(*options) == 1
    told = capsys.readouterr()
    (line,) = [line for line in told.err.splitlines() if line.startswith("paintlib: ")]
    assert re.search(message, line), line
    assert "Traceback" not in told.err and told.out == ""
    assert not Path("patched.pt").exists()


LATE = ("normalisation", "bracket", "step", "weights", "ceiling", "ceilings", "no folder", "report",
        "one image")  # fmt: skip


@pytest.mark.parametrize("name", LATE)
def test_options_that_cannot_run_are_refused_before_an_evaluation(
    folder, monkeypatch, capsys, name
):
    options, change, message = BAD[name]
    if change:
        change(folder, monkeypatch)
    for more in ([], ["--dry-run"]):
        assert patch(*options, *more) == 1
        assert re.search(message, capsys.readouterr().err)
    assert not Path("paintlib.npz").exists()


def test_end_whose_loss_is_not_finite_costs_no_search(folder, monkeypatch):
    not_finite(folder, monkeypatch)
    assert patch("--bracket", "0", "0.8") == 1
    assert Store("paintlib.npz").alphas("keep") == (0.0, 1.0)


def test_one_image_has_no_error_and_no_crash(folder, monkeypatch, capsys):
    model = network(3)
    tasks, held_out = (
        {name: TaskLoss(model, [tuple(part[i : i + 1] for part in task.batches[0])])
         for name, task in setup().tasks.items()}
        for i in range(2)
    )  # fmt: skip
    give(monkeypatch, Setup(tasks, held_out))
    assert patch("--report", "report") == 0
    assert "±" in capsys.readouterr().out
    assert "not better" in Path("report/README.md").read_text("utf-8")
    told = answer(capsys)
    assert told["gain"] and all(error is None for _, error in told["gain"].values())


def test_entry_and_base_name_what_the_errors_ask_for(folder, capsys):
    for name, seed in zip(ENDS, (1, 2), strict=True):
        torch.save({"model": end(seed).state_dict(), "ema": end(3).state_dict()}, f"{name}.pt")
    command = ["patch", *(f"{name}.pt" for name in ENDS), "--tasks", "mine:tasks", "--dry-run"]
    assert main(command) == 1
    assert "choose by entry='model'" in capsys.readouterr().err
    assert main([*command, "--entry", "model"]) == 0
    capsys.readouterr()
    each = ["--entry", "model", "ema", "--store", "ema.npz"]
    assert main([*command[:-1], "--json", *each]) == 0
    told = json.loads(capsys.readouterr().out)["parents"]
    expected = WeightPath(end(1), end(3)).digests
    assert (told["zero_shot"], told["fine_tuned"]) == expected
    for folder in ("a", "b"):
        adapter(Path(folder))
    command[1:3] = ["a", "b"]
    assert main(command) == 1
    assert "name what they add to by base=" in capsys.readouterr().err
    assert main([*command, "--base", ENDS[0]]) == 0


def adapter(folder):
    """Write a LoRA adapter of the last layer as PEFT does."""
    folder.mkdir()
    out, into = end(1)[3].weight.shape
    save_file({"base_model.model.3.lora_A.weight": torch.randn(2, into),
               "base_model.model.3.lora_B.weight": torch.randn(out, 2)},
              folder / "adapter_model.safetensors")  # fmt: skip
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["3"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def test_misuse_exits_with_2_and_traceback_is_there_for_who_asks(folder, monkeypatch, capsys):
    for arguments in ([], ["patch"], ["patch", *ENDS], ["patch", *ENDS, "--tasks", "x", "--no"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    for options in (["--solver", "newton"], ["--ceiling", "keep"]):
        with pytest.raises(SystemExit) as caught:
            patch(*options)
        assert caught.value.code == 2
    assert "'keep' is no TASK=RISE, as keep=0.01" in capsys.readouterr().err
    raising(folder, monkeypatch)
    with pytest.raises(KeyError):
        patch("--traceback")


def test_setup_refuses_what_cannot_be_one_patch():
    task = TaskLoss(network(3), [])
    for options, message in (
        ({"tasks": {}}, "there is no task"),
        ({"tasks": {"a": task}, "held_out": {"b": task}}, "'b' is no task; the tasks are a"),
        ({"tasks": {"a": task, "b": TaskLoss(network(3), [])}}, "several models"),
        ({"tasks": {"a": task, "a (held out)": task}}, r"'a \(held out\)' is no name for a task"),
        ({"tasks": {"a (without after)": task}}, r"'a \(without after\)' is no name for a task"),
        ({"tasks": {1: task}}, "1 is no name for a task; give a string"),
    ):
        with pytest.raises(ValueError, match=message):
            Setup(**options)


def test_store_of_other_weights_or_of_other_data_is_refused(folder, monkeypatch, capsys):
    assert patch() == 0
    save_file(end(4).state_dict(), ENDS[1])
    assert patch() == 1
    assert "holds evaluations with end = " in capsys.readouterr().err
    save_file(end(2).state_dict(), ENDS[1])
    made = setup()
    double = dataclasses.replace(made.tasks["keep"], logits=lambda x: 2 * made.model(x))
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": double}))
    assert patch() == 1
    assert "task 'keep': paintlib.npz has other losses at alpha = 0" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["labels", "images", "fewer", "precision", "after"])
def test_change_behind_the_first_batch_is_noticed_when_a_store_is_used_again(
    folder, monkeypatch, capsys, change
):
    made = setup(held_out=False)
    give(monkeypatch, made)
    whole = answer(capsys)
    assert answer(capsys)["alpha"] == whole["alpha"]
    (x, y), *rest = made.tasks["keep"].batches
    later = {"labels": [(a, (b + 1) % 4) for a, b in rest], "images": [(-a, b) for a, b in rest],
             "fewer": rest[:1]}.get(change, rest)  # fmt: skip
    keep = dataclasses.replace(made.tasks["keep"], batches=[(x, y), *later])
    if change == "precision":
        keep = dataclasses.replace(keep, logits=lambda images: made.model(images).half())
    after = (lambda model: None) if change == "after" else None
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": keep}, after=after))
    assert patch() == 1
    said = capsys.readouterr().err
    assert ("after = None, not 'yes'" if change == "after" else "has other losses at alpha") in said


def test_no_file_of_the_user_is_overwritten(folder, capsys):
    before = Path(ENDS[1]).read_bytes()
    assert patch("--out", f"./{ENDS[1]}") == 1
    assert "is one of the checkpoints" in capsys.readouterr().err
    assert Path(ENDS[1]).read_bytes() == before
    Path("README.md").write_text("my project", encoding="utf-8")
    assert patch("--report", ".") == 1
    assert "is no model card of paintlib" in capsys.readouterr().err
    assert Path("README.md").read_text(encoding="utf-8") == "my project"
    Path("README.md").write_text("my project, which uses paintlib", encoding="utf-8")
    assert (
        patch("--report", ".") == 1 == patch("--out", "other.safetensors", "--store", "a.npz") + 1
    )
    save_file(end(3).state_dict(), "other.safetensors")
    Path("folder").mkdir()
    shutil.copy(ENDS[0], "folder/model.safetensors")
    for out, sides in (
        ("other.safetensors", ENDS),
        ("folder/model.safetensors", ("folder", ENDS[1])),
    ):
        before = Path(out).read_bytes()
        assert main(["patch", *sides, "--tasks", "mine:tasks", "--out", out]) == 1
        assert re.search("is no patch of paintlib|is one of the ch", capsys.readouterr().err)
        assert Path(out).read_bytes() == before
    for _ in range(2):  # its own it may write again
        assert patch("--report", "card", "--out", "p.safetensors") == 0


def test_patch_that_half_precision_rounds_away_is_told(folder, monkeypatch, capsys):
    start = end(1).bfloat16().state_dict()
    fine = {n: t.view(torch.int16).add(1).view(torch.bfloat16) for n, t in start.items()}
    save_file(start, ENDS[0]), save_file(fine, ENDS[1])
    give(monkeypatch, setup(network(3).float(), held_out=False))
    told = answer(capsys, "--solver", "grid", "--step", "0.1", "--bracket", "0.1", "0.4")
    assert "0% of the patch is left in the types of the checkpoints" in " ".join(told["warnings"])


def test_ceiling_takes_as_many_evaluations_as_are_given(folder, capsys):
    assert patch("--ceiling", "keep=5", "--max-evals", "3", "--store", "a.npz") == 1
    assert "evaluations ran out" in capsys.readouterr().err
    assert answer(capsys, "--ceiling", "keep=5", "--max-evals", "12")["status"] == "CONVERGED"


def test_dry_run_scores_the_first_images_alone_and_tells_what_it_would_take(folder, monkeypatch,
                                                                            capsys):  # fmt: skip
    made, seen = setup(), []
    made.model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    give(monkeypatch, made)
    assert patch("--dry-run") == 0
    told = capsys.readouterr().out
    assert set(seen) == {40} and len(seen) <= 4 * 3  # twice 32 images, and one batch for classes
    assert not Path("paintlib.npz").exists()
    assert re.search(r"^keep: 90 images, 4 classes, loss \d\.\d+ in the first 40", told, re.M)
    assert re.search(r"^weights: 108 numbers, \d+\.?\d* apart$", told, re.M)
    assert re.search(r"^time: about [\de.-]+ s per evaluation", told, re.M)
    assert "GiB for both ends and the model" in told and "0 evaluations" in told


def drowned(monkeypatch):
    made = setup()
    flat = dataclasses.replace(made.tasks["keep"], logits=lambda x: 0.01 * made.model(x))
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": flat}, held_out={}))


def needless(monkeypatch):
    made = setup(held_out=False)
    for batch in (batch for task in made.tasks.values() for batch in task.batches):
        with torch.no_grad():
            batch[1].copy_(end(1)(batch[0]).argmax(1))  # the zero-shot end makes no mistake
    give(monkeypatch, made)


def other_labels(monkeypatch):
    made = setup(held_out=False)
    for _, labels in made.tasks["repair"].batches:
        labels.copy_(torch.tensor([3, 2, 0, 1])[labels])  # as another data set numbers its classes
    give(monkeypatch, made)


class Valleys(nn.Module):
    """A loss with two valleys along w(alpha) = alpha."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        height = 1.5 + torch.cos(11 * self.w) + 0.3 * self.w
        return torch.stack([torch.zeros(len(images)), -height + images[:, 0]], 1)


def valleys(monkeypatch):
    for name, value in zip(ENDS, (0.0, 1.0), strict=True):
        save_file({"w": torch.full((1,), value)}, name)
    images = 0.01 * torch.randn(200, 1)
    batches = [(images, torch.ones(200, dtype=torch.int64))]
    give(monkeypatch, Setup(tasks={"a": TaskLoss(Valleys().eval(), batches)}))


def batchnorm(monkeypatch, **options):
    def build(seed):
        torch.manual_seed(1)
        body = nn.Linear(6, 8), nn.BatchNorm1d(8)
        return nn.Sequential(*body, end(seed)[3]).eval()

    for name, seed in zip(ENDS, (1, 2), strict=True):
        save_file(build(seed).state_dict(), name)
    model = build(3)
    tasks = {
        name: TaskLoss(model, labelled(build(seed), 5))
        for name, seed in (("keep", 1), ("repair", 2))
    }
    give(monkeypatch, Setup(tasks=tasks, **options))


def renamed(monkeypatch):
    monkeypatch.setattr(nn, "BatchNorm1d", type("Norm", (nn.BatchNorm1d,), {}))
    batchnorm(monkeypatch)


@pytest.mark.parametrize(
    "change, message, options",
    [
        (drowned, "the scale of task 'repair' drowns 'keep'", ["--normalisation", "none"]),
        (needless, "AT_START: the minimum is the start of the bracket", []),
        (valleys, r"a ridge of .* hides a second valley", ["--solver", "grid"]),
        (batchnorm, "the averages of BatchNorm are interpolated", []),
        (renamed, "the averages of BatchNorm are interpolated", []),
        (other_labels, r"task 'repair' is no better than a guess .* \(\d+\.\d% right", []),
    ],
    ids=["drowned", "needless", "valleys", "batchnorm", "renamed", "labels"],
)
def test_warning_of(folder, monkeypatch, capsys, change, message, options):
    change(monkeypatch)
    told = answer(capsys, *options)
    assert any(re.match(message, warning) for warning in told["warnings"]), told["warnings"]
    assert patch(*options) == 0
    out = capsys.readouterr().out
    assert all(f"- {warning}" in out for warning in told["warnings"])
    assert told["batchnorm"] == ("interpolated" if change in (batchnorm, renamed) else None)


def test_warning_of_a_patch_no_better_than_an_end(folder, monkeypatch, capsys):
    made = setup()
    few = {
        name: TaskLoss(made.model, [tuple(part[:4] for part in task.batches[0])])
        for name, task in made.tasks.items()
    }
    give(monkeypatch, Setup(tasks=few))
    told = answer(capsys, "--max-evals", "40")
    unsure = [end for end, (fall, error) in told["gain"].items() if fall <= 1.96 * error]
    assert unsure  # four images cannot tell
    for end in unsure:
        name = end.replace("_", "-")
        assert any(f"no better than the {name} end" in warning for warning in told["warnings"])


def test_after_is_called_at_each_alpha_before_the_losses(folder, monkeypatch, capsys):
    calls = []
    batchnorm(monkeypatch, after=lambda model: calls.append(float(model[2].bias[0].detach())))
    told = answer(capsys, "--out", "p.safetensors")
    assert not any("BatchNorm" in warning for warning in told["warnings"])
    with safe_open("p.safetensors", "pt") as file:
        assert file.metadata()["paintlib.batchnorm"] == told["batchnorm"] == "set by after="
    del calls[-1]  # of the patched weights
    assert len(set(calls)) == told["evaluations"] == len(calls) - 2  # and twice for the check


def test_with_after_the_ends_are_the_checkpoints_as_they_are(folder, monkeypatch, capsys):
    few = [images * 0.9 for images, _ in labelled(end(3), 9)]
    steps = []

    def after(model):
        reestimate_batchnorm(model, few)
        steps.append(model)

    def mean(name, file):  # of a file in a plain model
        task = sys.modules["mine"].tasks().tasks[name]
        task.model.load_state_dict(load_file(file))
        return task.score()

    batchnorm(monkeypatch, after=after)
    rise = 0.35
    told = answer(capsys, "--ceiling", f"keep={rise}", "--out", "p.safetensors")
    paid = len(steps)
    again = answer(capsys, "--ceiling", f"keep={rise}")
    assert again == {**told, "evaluations": 0} and len(steps) - paid == 2  # for the check
    gains = {place: 0.0 for place in ("zero_shot", "fine_tuned")}
    for name, task in told["tasks"].items():
        patched = mean(name, "p.safetensors")
        for place, file in zip(gains, ENDS, strict=True):
            there = mean(name, file)
            assert task[place]["loss"] == pytest.approx(there.loss, rel=1e-5)
            assert task[place]["accuracy"] == there.accuracy
            gains[place] += (there.loss - patched.loss) / task["scale"]
    for place, gain in gains.items():
        assert told["gain"][place][0] == pytest.approx(gain, abs=1e-5)
    (_, highest, _), start = told["ceilings"]["keep"], mean("keep", ENDS[0]).loss
    own = mean("keep", "p.safetensors").loss / start - 1
    assert told["status"] == "AT_CEILING" and 0.1 < own < highest <= rise


def test_what_after_changes_beside_the_path_is_put_back_for_the_checkpoints(
    folder, monkeypatch, capsys
):
    few = [images for images, _ in labelled(end(3), 9)]
    batchnorm(monkeypatch, after=lambda model: reestimate_batchnorm(model, few))
    made = sys.modules["mine"].tasks()
    before = {name: buffer.clone() for name, buffer in made.model.named_buffers()}
    told = answer(capsys, "--except", "1.running*", "1.num*")
    for place, file in (("zero_shot", ENDS[0]), ("fine_tuned", ENDS[1])):
        made.model.load_state_dict({**load_file(file), **before})
        for name, task in made.tasks.items():
            expected = task.score().loss
            assert told["tasks"][name][place]["loss"] == pytest.approx(expected, rel=1e-5)


def test_first_evaluation_is_the_one_that_knows_the_images_of_another_run(
    folder, monkeypatch, capsys
):
    """Behind it come the checkpoints without `after`, which nothing compares."""
    batchnorm(monkeypatch, after=lambda model: None)
    assert patch() == 0
    assert re.search(r"^\s*evaluation 1, alpha = 0\.0000", capsys.readouterr().err)


def test_dry_run_counts_the_checkpoints_without_after(folder, monkeypatch, capsys):
    for after, more in ((None, False), (lambda model: None, True)):
        batchnorm(monkeypatch, after=after)
        assert patch("--dry-run") == 0
        assert ("the ends without after= 2" in capsys.readouterr().out) == more


def test_images_without_labels_may_come_first(folder, monkeypatch, capsys):
    made = setup(held_out=False)
    (x, y), *rest = made.tasks["keep"].batches
    keep = dataclasses.replace(made.tasks["keep"], batches=[(x, torch.full_like(y, -100)), *rest])
    give(monkeypatch, dataclasses.replace(made, tasks={**made.tasks, "keep": keep}))
    assert answer(capsys)["tasks"]["keep"]["images"] == 90 - len(y)


def test_patch_that_owes_its_gain_to_after_is_told(folder, monkeypatch, capsys):
    batchnorm(monkeypatch, after=lambda model: model[1].running_mean.zero_())
    for file in ENDS:
        save_file({**load_file(file), "1.running_mean": torch.linspace(-8, 8, 8)}, file)
    made = sys.modules["mine"].tasks()
    few = {name: TaskLoss(made.model, [tuple(part[:12] for part in task.batches[0])])
           for name, task in made.tasks.items()}  # fmt: skip
    give(monkeypatch, dataclasses.replace(made, tasks=few))
    told = answer(capsys, "--max-evals", "40")
    assert all(fall > 1.96 * error for fall, error in told["gain"].values())
    said = [warning for warning in told["warnings"] if "the patch is no better than" in warning]
    assert said and all(warning.endswith(", after= being called there too") for warning in said)


def test_a_step_after_each_write_that_shuffles_is_refused(folder, monkeypatch, capsys):
    data = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    for shuffles in (False, True):

        def after(model, shuffles=shuffles):
            chosen = torch.randperm(90) if shuffles else torch.arange(90)
            reestimate_batchnorm(model, data[chosen[:60]].split(20))

        batchnorm(monkeypatch, after=after)
        made = sys.modules["mine"].tasks()
        path = WeightPath.load(*ENDS, after=after)
        if shuffles:
            assert patch("--store", "other.npz") == 1
            assert "image i must be image i at each alpha" in capsys.readouterr().err
            with pytest.raises(ValueError, match=r"scored twice .* in `after` too"):
                PairObjective(path, [*made.tasks.values()], [4, 4])
        else:
            assert patch("--max-evals", "40") == 0
            assert PairObjective(path, [*made.tasks.values()], [4, 4]).evaluated == [0.0]


def test_example_is_written_once_and_runs_as_it_is(folder, capsys):
    assert main(["init", "mytasks.py"]) == 0
    assert "--tasks mytasks:tasks" in capsys.readouterr().out
    assert main(["init", "mytasks.py"]) == 1
    assert "mytasks.py exists" in capsys.readouterr().err
    text = Path("mytasks.py").read_text(encoding="utf-8")
    assert "--tasks mytasks:tasks" in text and text.count("<-") == 4
    from paintlib._template import network as example

    for name, seed in zip(ENDS, (1, 2), strict=True):
        torch.manual_seed(seed)
        save_file(example().state_dict(), name)
    try:
        assert main(["patch", *ENDS, "--tasks", "mytasks:tasks", "--dry-run"]) == 0
        assert main(["patch", *ENDS, "--tasks", "mytasks:tasks", "--solver", "grid"]) == 0
    finally:
        sys.modules.pop("mytasks", None)
    assert "alpha = " in capsys.readouterr().out


def test_command_is_installed_under_its_name():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\npaintlib = "paintlib.__main__:main"\n' in text
