import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from experiment import gallery, clip, results, steps
from experiment.__main__ import main
from experiment.run import Run
from experiment.profiles import ALPHAS, PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_profile_fits_its_tasks(name):
    profile = PROFILES[name]
    assert set(profile.supported).isdisjoint(profile.patching)
    if not profile.real:
        assert profile.images("train") >= profile.finetuning.batch_size
        assert profile.clip.captioned_images >= profile.clip.recipe.batch_size


def test_unknown_profile_task_and_seed_list_what_there_is():
    with pytest.raises(
        ValueError, match="unknown profile 'macro'; choose one of smoke, micro, paper"
    ):
        Run.of("macro")
    with pytest.raises(ValueError, match="seed = -1"):
        Run.of("micro", -1)
    with pytest.raises(ValueError, match="no task 'ImageNet'; choose one of CIFAR10, STL10, MNIST"):
        Run.of("smoke").images("ImageNet")
    with pytest.raises(ValueError, match="unknown supported task 'MNIST'; choose one of CIFAR10"):
        Run.of("smoke").open_pair("MNIST", "SVHN")
    with pytest.raises(ValueError, match="unknown split 'val'; choose one of train, validation"):
        Run.of("smoke").load_split("MNIST", "val")


def test_runs_of_other_seeds_have_folders_of_their_own():
    assert Run.of("micro").name == "micro"
    assert Run.of("micro", 2).results.name == "micro-seed2"


def test_command_line_reports_bad_input_and_fails(capsys):
    assert main(["pretrain", "--profile", "macro"]) == 1
    assert "unknown profile 'macro'; choose one of smoke, micro, paper" in capsys.readouterr().err
    assert main(["book", "--cores", "0"]) == 1
    assert "cores = 0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of two tasks that trains in seconds, through the same steps as every profile."""
    smoke = PROFILES["smoke"]
    profile = dataclasses.replace(
        smoke,
        supported=("CIFAR10",),
        patching=("MNIST",),
        clip=dataclasses.replace(
            smoke.clip,
            captioned_images=300,
            recipe=dataclasses.replace(smoke.clip.recipe, steps=4, batch_size=32),
        ),
        finetuning=dataclasses.replace(smoke.finetuning, steps=4, batch_size=32),
        train_images=64,
        validation_images=50,
        test_images=40,
    )
    run = Run(profile, 0, tmp_path_factory.mktemp("tiny"))
    for step in (steps.render, steps.caption, steps.pretrain):
        step(run)
    for task in profile.supported:
        steps.score_baseline(run, task)
    steps.finetune(run, "MNIST")
    steps.sample_curves(run, "MNIST")
    steps.describe(run)
    return run


def test_steps_meet_in_a_pair(tiny):
    pair = tiny.open_pair("CIFAR10", "MNIST")
    objective = pair.objective("zero_shot")
    assert objective(0.0) == (1.0, 1.0)
    # what the curves step stored is what the pair's own model gives
    for alpha in (0.0, 0.35, 1.0):
        stored = objective.score(alpha)
        del objective.scores[alpha]
        assert objective.score(alpha) == stored
    sampled = pair.sampled()
    assert len(sampled["alphas"]) == 21 and sampled["supported"]["images"] == 50
    for alpha, end in ((0.0, "zero_shot"), (1.0, "fine_tuned")):
        pair.path.set_(pair.visual, alpha)
        for task in ("CIFAR10", "MNIST"):
            score = tiny.task_loss(pair.visual, task, "test").score()
            assert pair.curves["test"][end][task] == {
                "loss": score.loss,
                "accuracy": score.accuracy,
            }
    step = 1e-3
    rise = (objective.score(step)[0].loss - objective.score(0.0)[0].loss) / step
    assert pair.curves["gradients"]["CIFAR10"]["slope"] == pytest.approx(rise, rel=0.1, abs=0.02)
    metrics = pair.metrics(objective)
    identity = metrics["gradient_similarity"] * metrics["gradient_norm"]
    slope = pair.curves["gradients"]["CIFAR10"]["slope"]
    assert identity == pytest.approx(-slope / metrics["length"], rel=1e-5)


def test_steps_are_repeatable_to_the_bit(tiny, tmp_path):
    again = Run(tiny.profile, 0, tmp_path)
    for step in (steps.render, steps.caption, steps.pretrain):
        step(again)
    for task in again.profile.supported:
        steps.score_baseline(again, task)
    steps.finetune(again, "MNIST")
    steps.sample_curves(again, "MNIST")
    for file in (tiny.zero_shot, tiny.zero_shot_head("MNIST"), tiny.fine_tuned("MNIST")):
        # the order of the header is free, so the digests are compared
        assert clip.load(file)[1] == clip.load(tmp_path / file.relative_to(tiny.root))[1], file
    assert tiny.curves("MNIST").read_bytes() == again.curves("MNIST").read_bytes()


def test_a_baseline_of_other_weights_is_refused(tiny):
    file = tiny.baseline("CIFAR10")
    kept = file.read_bytes()
    tensors, metadata = clip.load(file)
    clip.save(file, tensors, **{**metadata, "parent": "another"})
    with pytest.raises(ValueError, match="is of other weights than .* delete it"):
        steps.sample_curves(tiny, "MNIST")
    file.write_bytes(kept)


def test_weights_of_another_start_are_refused(tiny):
    tensors, metadata = clip.load(tiny.fine_tuned("MNIST"))
    original = tiny.fine_tuned("MNIST").read_bytes()
    try:
        metadata.pop("digest")
        clip.save(tiny.fine_tuned("MNIST"), tensors, **{**metadata, "parent": "other"})
        with pytest.raises(ValueError, match=r"MNIST\.safetensors was not fine-tuned from"):
            tiny.path("MNIST")
        tiny.fine_tuned("MNIST").write_bytes(original[:-1])
        with pytest.raises(ValueError, match=r"MNIST\.safetensors cannot be read"):
            tiny.path("MNIST")
    finally:
        tiny.fine_tuned("MNIST").write_bytes(original)


def test_weights_of_another_architecture_are_refused(tiny):
    clip = tiny.profile.clip
    vision = {**clip.vision, "width": 64, "head_width": 16}
    wider = dataclasses.replace(tiny.profile, clip=dataclasses.replace(clip, vision=vision))
    with pytest.raises(ValueError, match="not of the profile's architecture"):
        dataclasses.replace(tiny, profile=wider).image_tower()


def test_describe_counts_parameters(tiny):
    described = results.read_json(tiny.results / "run.json")
    tower = sum(p.numel() for p in tiny.image_tower().parameters())
    assert described["image_tower_parameters"] == tower < described["parameters"]


def test_splits_are_those_of_the_profile(tiny):
    sizes = [len(tiny.load_split("MNIST", s).labels) for s in ("train", "validation", "test")]
    assert sizes == [64, 50, 40]
    assert tiny.load_split("MNIST", "test").images.dtype == torch.uint8


def test_shown_pictures_are_spread_over_the_test_set(tiny):
    assert gallery.positions(12) == list(range(12)) and gallery.positions(5) == list(range(5))
    assert gallery.positions(1000)[0] == 41 and gallery.positions(1000)[-1] == 958
    shown = gallery.read(tiny.results)["pictures"]
    assert list(shown) == ["CIFAR10", "MNIST"]
    for task, described in shown.items():
        split, where = tiny.load_split(task, "test"), gallery.positions(40)
        assert described["positions"] == where
        assert described["labels"] == split.labels[where].tolist()
        data = base64.b64decode(described["strip"].removeprefix("data:image/png;base64,"))
        strip = np.asarray(Image.open(io.BytesIO(data)))
        for i, image in enumerate(split.images[where]):
            assert (strip[:, 32 * i : 32 * (i + 1)] == image.permute(1, 2, 0).numpy()).all()


def test_predictions_of_the_pictures_are_the_model_s(tiny):
    predicted = gallery.read(tiny.results)["predictions"]["MNIST"]
    visual, path = tiny.empty_tower(), tiny.path("MNIST")
    for task in ("CIFAR10", "MNIST"):
        images = tiny.load_split(task, "test").images[gallery.positions(40)]
        for i in (0, 7, 20):
            path.set_(visual, ALPHAS[i])
            logits = clip.classifier(visual, tiny.head(task), tiny.profile.pixels)(images)
            likely = logits.detach().double().softmax(1)
            classes = np.array(predicted[task]["classes"])[:, :, i]
            shares = np.array(predicted[task]["probabilities"])[:, :, i]
            np.testing.assert_array_equal(classes[:, 0], likely.argmax(1))
            np.testing.assert_allclose(shares, likely.gather(1, torch.tensor(classes)), atol=5.1e-5)
            assert (np.diff(shares) <= 0).all()
