import base64
import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiment import clip, gallery, replay, results, weights
from experiment.__main__ import find as step
from experiment.__main__ import main
from experiment.evidence import archive, headline
from experiment.profiles import ALPHAS, PROFILES
from experiment.run import Run
from experiment.session import Session
from experiment.twins import drawing
from paintlib import sampling, solver
from paintlib.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("name", PROFILES)
def test_profile_fits_its_tasks(name):
    profile = PROFILES[name]
    assert set(profile.supported).isdisjoint(profile.patching)
    if not profile.real:
        assert profile.train >= profile.finetuning.batch_size
        assert profile.clip.captioned_images >= profile.clip.recipe.batch_size


def test_unknown_profile_task_and_seed_list_what_there_is():
    with pytest.raises(
        ValueError, match="unknown profile 'macro'; choose one of smoke, micro, micro-"
    ):
        Run.of("macro")
    with pytest.raises(ValueError, match="seed = -1"):
        Run.of("micro", -1)
    with pytest.raises(ValueError, match="no task 'ImageNet'; choose one of CIFAR10, STL10, MNIST"):
        Run.of("smoke").images("ImageNet")
    with pytest.raises(ValueError, match="unknown supported task 'MNIST'; choose one of ImageNet"):
        replay.objective("results/micro", "MNIST", "SVHN")
    with pytest.raises(ValueError, match="unknown split 'val'; choose one of train, validation"):
        Session(Run.of("smoke")).split("MNIST", "val")


def test_runs_of_other_seeds_have_folders_of_their_own():
    run = Run.of("micro", 2)
    assert Run.of("micro").name == "micro" and run.results.name == "micro-seed2"
    # pages find their results by the same path in a run's book and in the committed one
    assert os.path.relpath(run.results, run.book / "pairs") == "../../results/micro-seed2"


def test_command_line_reports_bad_input_and_fails(capsys):
    assert main(["pretrain", "--profile", "macro"]) == 1
    assert "unknown profile 'macro'; choose one of smoke, micro, micro-" in capsys.readouterr().err


def test_pages_and_workflow_do_without_torch():
    """Importing torch takes seconds and 800 MB, for each page and for Snakemake itself."""
    names = ("__main__", "run", "results", "replay", "report", "gallery", "pages", "cost",
             "steps.provenance")  # fmt: skip
    code = "import sys"
    for name in names:
        code += f"; import experiment.{name}; assert 'torch' not in sys.modules, '{name}'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def tiny_profile():
    """Return a profile of two tasks that trains in seconds, through the steps of every profile."""
    smoke = PROFILES["smoke"]
    recipe = dataclasses.replace(smoke.clip.recipe, steps=4, batch_size=32)
    return dataclasses.replace(
        smoke,
        supported=("CIFAR10",),
        patching=("MNIST",),
        clip=dataclasses.replace(smoke.clip, captioned_images=300, recipe=recipe),
        finetuning=dataclasses.replace(smoke.finetuning, steps=4, batch_size=32),
        train=64,
        validation=50,
        test=40,
    )


def go(run):
    for name in ("render", "caption", "pretrain"):
        step(name)(run)
    step("baseline")(run, "CIFAR10")
    step("finetune")(run, "MNIST")
    step("solve")(run, "MNIST")
    step("describe")(run)
    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return go(Run(tiny_profile(), 0, tmp_path_factory.mktemp("tiny")))


def test_steps_meet_in_a_pair(tiny):
    record = results.read_pair(tiny.pair("CIFAR10", "MNIST"))
    session = Session(tiny)
    visual, path = session.tower(empty=True), session.path("MNIST")
    tests = session.losses(visual, ("CIFAR10", "MNIST"), "test")
    for name, alpha in (("zero_shot", 0.0), ("grid", None), ("fine_tuned", 1.0)):
        alpha = record["solutions"][name]["alpha"] if alpha is None else alpha
        path.set_(visual, alpha)
        for role, task in (("supported", "CIFAR10"), ("patching", "MNIST")):
            score = tests[task].score()
            shown = record["test"][name]
            assert shown["alpha"] == alpha
            assert shown[role] == {"loss": score.loss, "accuracy": score.accuracy}
    curve, metrics = record["curves"]["supported"], record["metrics"]
    assert len(record["curves"]["alphas"]) == 21 and curve["images"] == 50
    slope = -metrics["gradient_similarity"] * metrics["gradient_norm"] * metrics["length"]
    validation = session.losses(visual, ["CIFAR10"], "validation")["CIFAR10"]
    path.set_(visual, 1e-3)
    rise = (validation.score().loss - curve["loss"][0]) / 1e-3
    assert slope == pytest.approx(rise, rel=0.1, abs=0.02)


def test_stored_evaluations_are_the_model_s_and_replay_the_pair(tiny):
    objective = replay.objective(tiny.results, "CIFAR10", "MNIST")
    record = results.read_pair(tiny.pair("CIFAR10", "MNIST"))
    grid = solver.grid(objective, step=0.05)
    found = {
        "grid": grid,
        "quintic": solver.quintic(objective, known=grid.trace),
        "log_quintic": solver.log_quintic(objective, xtol=sampling.tolerance(objective)),
    }
    assert not objective.evaluated
    for name, answer in found.items():
        assert (answer.alpha, answer.value) == tuple(
            record["solutions"][name][key] for key in ("alpha", "value")
        )
        error = record["sampling"]["stderr"][name]
        assert sampling.standard_error(objective, answer).value == error[1]
    session = Session(tiny)
    visual, path = session.tower(empty=True), session.path("MNIST")
    losses = session.losses(visual, ["MNIST"], "validation")["MNIST"]
    path.set_(visual, 0.35)
    np.testing.assert_allclose(losses.evaluate().losses, objective.images(0.35)[1].losses, 1e-5)


def test_gpu_check_meets_a_finished_run_and_notices_another(tiny, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_check

    monkeypatch.setattr(gpu_check, "solve", lambda *given: "")
    pairs, half = gpu_check.check_smoke(tiny, torch.device("cpu"))
    assert pairs.holds and "of MNIST" in half.found
    known = results.read_pair(tiny.pair("CIFAR10", "MNIST"))
    known["curves"]["patching"]["loss"][7] *= 1.01
    monkeypatch.setattr(gpu_check.results, "read_pair", lambda file: known)
    assert not next(gpu_check.check_smoke(tiny, torch.device("cpu"))).holds
    monkeypatch.setattr(gpu_check, "solve", lambda *given: "paintlib: no room")
    (failed,) = gpu_check.check_smoke(tiny, torch.device("cpu"))
    assert failed == ("profile `smoke`", False, "paintlib: no room")


def test_alpha_that_is_not_stored_is_evaluated_where_the_weights_are(tiny, tmp_path):
    fresh = replay.objective(tiny.results, "CIFAR10", "MNIST")
    near = replay.objective(tiny.results, "CIFAR10", "MNIST")
    before = tiny.evaluations("MNIST").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path / "copy"
        shutil.copytree(tiny.root, root)
        patch.setattr(Run, "of", lambda *_, **__: dataclasses.replace(tiny, root=root))
        assert fresh(0.123) == pytest.approx(near(0.1), rel=0.2) and fresh.evaluated == [0.123]
        moved = dataclasses.replace(tiny, root=root)
        weights.save(moved.fine_tuned("MNIST"), {"a": torch.ones(1)}, parent="other")
        with pytest.raises(ValueError, match="are of another run; run `make book PROFILE=smoke"):
            replay.objective(moved.results, "CIFAR10", "MNIST")(0.124)
        moved.fine_tuned("MNIST").unlink()
        with pytest.raises(
            ValueError, match=r"alpha = 0.124 of .*, and the weights in .* are missing"
        ):
            replay.objective(moved.results, "CIFAR10", "MNIST")(0.124)
    assert tiny.evaluations("MNIST").read_bytes() == before  # a page writes nothing


def test_steps_are_repeatable_to_the_bit(tiny, tmp_path):
    go(Run(tiny.profile, 0, tmp_path))
    for file in (tiny.zero_shot, tiny.head("MNIST"), tiny.fine_tuned("MNIST")):
        # the order of the header is free, so the digests are compared
        assert weights.load(file)[1] == weights.load(tmp_path / file.relative_to(tiny.root))[1]
    for file in (tiny.pair("CIFAR10", "MNIST"), tiny.evaluations("MNIST")):
        assert file.read_bytes() == (tmp_path / file.relative_to(tiny.root)).read_bytes()


def test_killed_solve_repeats_no_evaluation(tiny, tmp_path):
    run = dataclasses.replace(tiny, root=tmp_path)
    shutil.copytree(tiny.folder, run.folder)
    shutil.rmtree(run.results)
    kept = next((run.folder / "evaluations").glob("MNIST-*.npz"))
    whole, store = kept.read_bytes(), Store(kept)
    kept.unlink()
    part = Store(kept, store.key)
    for alpha in ALPHAS[:13]:  # what a kill in the fourteenth evaluation leaves
        part.put(alpha, {task: store.get(alpha, task) for task in store.tasks})
    written, seen = Store.put, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", lambda self, a, rows: (seen.append(a), written(self, a, rows)))
        step("solve")(run, "MNIST")
    assert not set(seen) & set(ALPHAS[1:13])
    assert kept.read_bytes() == whole
    assert run.pair("CIFAR10", "MNIST").read_bytes() == tiny.pair("CIFAR10", "MNIST").read_bytes()


def test_complete_stores_what_every_normalisation_asks_for(tiny, tmp_path):
    run = dataclasses.replace(tiny, root=tmp_path)
    shutil.copytree(tiny.folder, run.folder)
    step("complete")(run, "MNIST")
    store = Store(run.folder / "complete/MNIST.npz", writable=False)
    for kind in ("zero_shot", "log_classes", "minmax", "none"):
        shutil.copy(store.file, run.evaluations("MNIST"))
        objective = replay.objective(run.results, "CIFAR10", "MNIST", kind)
        solver.quintic(objective), solver.log_quintic(objective, xtol=sampling.tolerance(objective))
        assert not objective.evaluated, kind


def test_evidence_of_a_path_agrees_with_its_pair(tiny):
    step("measure")(tiny, "MNIST", images=60)
    found = results.read_json(tiny.evidence("MNIST"))
    record = results.read_pair(tiny.pair("CIFAR10", "MNIST"))
    truth = found["truth"]["tasks"]
    assert (truth["CIFAR10"]["images"], truth["MNIST"]["images"]) == (60, 40)  # digits are few
    for at, name in ((0, "zero_shot"), (-1, "fine_tuned")):
        assert truth["MNIST"]["loss"][at] == pytest.approx(record["test"][name]["patching"]["loss"])
    store = Store(tiny.folder / "truth" / found["store"], writable=False)
    own = store.get(0.0, "CIFAR10").losses[:40].mean()  # the run's own images come first
    assert own == pytest.approx(record["test"]["zero_shot"]["supported"]["loss"], rel=1e-5)
    told, metrics = found["forgetting"]["CIFAR10"], record["metrics"]
    slope = -metrics["gradient_similarity"] * metrics["gradient_norm"] * metrics["length"]
    assert told["slope"] * told["loss"] == pytest.approx(slope, rel=0.05, abs=1e-3)
    assert told["fisher"] > 0 and told["slope_stderr"] > 0
    session = Session(tiny)
    visual, path = session.tower(empty=True), session.path("MNIST")
    path.set_(visual, 0.5)
    loss = session.losses(visual, ["MNIST"], "validation")["MNIST"]
    with torch.no_grad():
        p = torch.cat([loss.logits(images) for images, _ in loss.batches]).softmax(1).double()
    entropy = float(torch.special.entr(p).sum(1).mean())
    assert found["entropy"]["MNIST"][10] == pytest.approx(entropy, rel=1e-5)
    assert 0 <= found["lines"]["CIFAR10"]["alpha"] <= 1
    assert 0 < found["fisher"]["CIFAR10"]["alpha"] < 1
    with pytest.MonkeyPatch.context() as patch:  # a second time evaluates no test image again
        patch.setattr(Store, "put", lambda *_: pytest.fail("evaluated again"))
        step("measure")(tiny, "MNIST", images=60)
    assert results.read_json(tiny.evidence("MNIST")) == found


def test_other_seeds_are_measured_on_their_own_test_images(tiny, tmp_path):
    run = dataclasses.replace(tiny, root=tmp_path)
    shutil.copytree(tiny.folder, run.folder)
    step("measure")(run, "MNIST")
    found = results.read_json(run.evidence("MNIST"))
    assert found["truth"]["tasks"]["CIFAR10"]["images"] == 40 and "entropy" not in found
    with pytest.raises(ValueError, match="smoke is no run of micro; its evidence stays in"):
        archive.keep(run)  # else it would stand among the committed ones
    kept = archive.summary(run.results)
    assert headline.of(kept["pairs"]) == pytest.approx(
        headline.of(results.read_pairs(run.results)), rel=1e-5, abs=1e-6, nan_ok=True
    )


def test_ablations_change_what_they_say_and_nothing_else():
    clean, micro = PROFILES["micro-clean"], PROFILES["micro"]
    assert clean.design == {"CAPTION_NOISE": 0.0, "WILD_SHARE": 0.0}
    changed = {"name": micro.name, "purpose": micro.purpose, "design": micro.design}
    assert dataclasses.replace(clean, **changed) == micro
    run = Run(clean, 0)
    assert drawing.design(run, "WILD_SHARE") == {"wild_share": 0.0}
    assert drawing.design(Run(micro, 0), "WILD_SHARE") == {}


def test_a_baseline_of_other_weights_is_refused(tiny):
    file = tiny.baseline("CIFAR10")
    kept = file.read_bytes()
    tensors, metadata = weights.load(file)
    weights.save(file, tensors, **{**metadata, "parent": "another"})
    with pytest.raises(ValueError, match="is of other weights than .* delete it"):
        step("solve")(tiny, "MNIST")
    file.write_bytes(kept)


def test_weights_of_another_start_are_refused(tiny):
    tensors, metadata = weights.load(tiny.fine_tuned("MNIST"))
    original = tiny.fine_tuned("MNIST").read_bytes()
    try:
        metadata.pop("digest")
        weights.save(tiny.fine_tuned("MNIST"), tensors, **{**metadata, "parent": "other"})
        with pytest.raises(ValueError, match=r"MNIST\.safetensors was not fine-tuned from"):
            Session(tiny).path("MNIST")
        tiny.fine_tuned("MNIST").write_bytes(original[:-1])
        with pytest.raises(ValueError, match=r"MNIST\.safetensors cannot be read"):
            Session(tiny).path("MNIST")
    finally:
        tiny.fine_tuned("MNIST").write_bytes(original)


def test_weights_of_another_architecture_are_refused(tiny):
    clip = tiny.profile.clip
    vision = {**clip.vision, "width": 64, "head_width": 16}
    wider = dataclasses.replace(tiny.profile, clip=dataclasses.replace(clip, vision=vision))
    with pytest.raises(ValueError, match="not of the profile's architecture"):
        Session(dataclasses.replace(tiny, profile=wider)).tower()


def test_describe_counts_parameters(tiny):
    described = results.read_json(tiny.results / "run.json")
    tower = sum(p.numel() for p in Session(tiny).tower().parameters())
    assert described["image_tower_parameters"] == tower < described["parameters"]


def test_splits_are_those_of_the_profile(tiny):
    sizes = [len(Session(tiny).split("MNIST", s).labels) for s in ("train", "validation", "test")]
    assert sizes == [64, 50, 40]
    assert Session(tiny).split("MNIST", "test").images.dtype == torch.uint8


def test_shown_pictures_are_spread_over_the_test_set(tiny):
    assert gallery.positions(12) == list(range(12)) and gallery.positions(5) == list(range(5))
    assert gallery.positions(1000)[0] == 41 and gallery.positions(1000)[-1] == 958
    shown = gallery.read(tiny.results)["pictures"]
    assert list(shown) == ["CIFAR10", "MNIST"]
    for task, described in shown.items():
        split, where = Session(tiny).split(task, "test"), gallery.positions(40)
        assert described["positions"] == where
        assert described["labels"] == split.labels[where].tolist()
        data = base64.b64decode(described["strip"].removeprefix("data:image/png;base64,"))
        strip = np.asarray(Image.open(io.BytesIO(data)))
        for i, image in enumerate(split.images[where]):
            assert (strip[:, 32 * i : 32 * (i + 1)] == image.permute(1, 2, 0).numpy()).all()


def test_predictions_of_the_pictures_are_the_model_s(tiny):
    predicted = gallery.read(tiny.results)["predictions"]["MNIST"]
    session = Session(tiny)
    visual, path = session.tower(empty=True), session.path("MNIST")
    for task in ("CIFAR10", "MNIST"):
        images = Session(tiny).split(task, "test").images[gallery.positions(40)]
        for i in (0, 7, 20):
            path.set_(visual, ALPHAS[i])
            logits = clip.classifier(visual, session.head(task), tiny.profile.pixels)(images)
            likely = logits.detach().double().softmax(1)
            classes = np.array(predicted[task]["classes"])[:, :, i]
            shares = np.array(predicted[task]["probabilities"])[:, :, i]
            np.testing.assert_array_equal(classes[:, 0], likely.argmax(1))
            np.testing.assert_allclose(shares, likely.gather(1, torch.tensor(classes)), atol=5.1e-5)
            assert (np.diff(shares) <= 0).all()


def test_command_takes_its_arguments_before_and_after_options(capsys):
    for arguments in (
        ["head", "Cats", "--profile", "paper"],
        ["head", "--profile", "paper", "Cats"],
    ):
        assert main(arguments) == 1
        assert "no task 'Cats'" in capsys.readouterr().err
    assert main(["solve"]) == 1
    assert "solve: missing a required argument: 'patching'; TASK" in capsys.readouterr().err
