"""The profile `paper` without its data and weights: generated trees, random weights.

Most tests run the steps of the profile on a tiny CLIP of 224 pixels; one runs the whole workflow
with ViT-B/32 itself.
"""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import open_clip
import pytest
import torch
import trees
from conftest import copy_project
from PIL import Image

from experiment.real import checkpoints
from experiment import run, gallery, clip, pixels, results, steps, training
from experiment.__main__ import main
from experiment.run import Run
from experiment.profiles import PROFILES
from experiment.real import datasets as paper

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    trees.write(folder, per_class=3)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The paper's run with a tiny architecture, limited to 6 images a split."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "paintlib-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "paintlib-tiny.json")
    profile = dataclasses.replace(PROFILES["paper"], clip="paintlib-tiny").limited(6)
    recipe = dataclasses.replace(profile.finetuning, learning_rate=1e-2, checkpoint_every=2)
    run = Run(dataclasses.replace(profile, finetuning=recipe), 0, folder)
    steps.zero_shot(run, "random")
    return run


def prepared(run: Run, data: Path, task: str) -> None:
    if not run.images(task).exists():
        steps.decode(run, task, data)
    if not run.zero_shot_head(task).exists():
        steps.head(run, task)


@pytest.mark.parametrize("task", paper.SUPPORTED + paper.PATCHING)
def test_every_layout_becomes_cached_splits_and_a_head(run, data, task):
    prepared(run, data, task)
    splits = ["validation", "test"] + ["train"] * (task in paper.PATCHING)
    for name in splits:
        split = run.load_split(task, name)
        assert split.images.shape == (len(split.labels), 3, 224, 224)
        assert 1 <= len(split.labels) <= 6 and (split.sizes is not None) == (name == "train")
        pictures = paper.open_split(task, data, name)
        first = min(6, len(pictures))
        assert len(split.labels) == first
    head = run.head(task)
    assert head.shape == (len(paper.task(task, data).classnames), 32)
    # the text tower at the prompts' own length gives what the whole context gives
    described = results.read_json(run.images(task))
    prompts = [described["templates"][0].format(name) for name in described["classnames"][:3]]
    whole = open_clip.CLIP(**TINY).eval()
    whole.load_state_dict(clip.load(run.text_tower)[0], strict=False)
    with torch.no_grad():
        text = whole.encode_text(open_clip.get_tokenizer("paintlib-tiny")(prompts), normalize=True)
        torch.testing.assert_close(head[:3], text * whole.logit_scale.exp(), rtol=1e-4, atol=1e-5)


def test_steps_meet_in_a_pair(run, data):
    for task in ("CIFAR10", "STL10", "DTD"):
        prepared(run, data, task)
    some = dataclasses.replace(run, profile=run.profile.only(["CIFAR10", "STL10", "DTD"]))
    steps.finetune(some, "DTD")
    for task in ("CIFAR10", "STL10"):
        steps.score_baseline(some, task)
    steps.sample_curves(some, "DTD")
    steps.describe(some)
    pair = some.open_pair("CIFAR10", "DTD")
    assert pair.labels == {"supported": "CIFAR10", "patching": "DTD"} and pair.device == "cpu"
    objective = pair.objective("zero_shot")
    for alpha in (0.0, 0.35, 1.0):
        stored = objective.score(alpha)
        del objective.scores[alpha]
        assert objective.score(alpha) == stored
    assert objective.score(0.0) != objective.score(1.0)
    described = results.read_json(some.results / "run.json")
    assert described["limit"] == 6 and described["weights"] == "random"
    assert described["tasks"]["DTD"]["classes"] == 47
    assert "train" not in described["tasks"]["CIFAR10"]["images"]
    shown = gallery.read(some.results)
    assert len(shown["predictions"]["DTD"]["STL10"]["classes"]) == 6
    assert len(shown["pictures"]["DTD"]["classnames"]) == 47
    with Image.open(some.strip_of("DTD")) as strip:
        assert strip.size == (6 * 64, 64)
    with pytest.raises(ValueError, match="never trains on CIFAR10: its train images"):
        some.load_split("CIFAR10", "train")


def test_killed_finetuning_on_real_images_ends_at_the_same_weights(run, data, tmp_path):
    prepared(run, data, "SVHN")
    split = run.load_split("SVHN", "train")

    def finetune(visual, checkpoint=None):
        logits = clip.classifier(visual, run.head("SVHN"), run.profile.pixels)
        recipe = run.profile.finetuning
        return training.finetune(visual, logits, split, recipe, seed=0, checkpoint=checkpoint)

    whole, killed, resumed = run.image_tower(), run.image_tower(), run.image_tower()
    assert len(list(finetune(whole))) == 6
    list(itertools.islice(finetune(killed, tmp_path / "c"), 3))
    assert len(list(finetune(resumed, tmp_path / "c"))) == 4
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert not torch.equal(whole.proj, run.image_tower().proj)


def test_given_checkpoints_replace_finetuning(run, data, tmp_path, monkeypatch):
    prepared(run, data, "MNIST")
    tower = run.image_tower().state_dict()
    moved = {f"model.visual.{name}": weight + 0.01 for name, weight in tower.items()}
    clip.save_file(moved, tmp_path / "MNIST.safetensors")
    given = dataclasses.replace(run, finetuned=str(tmp_path))
    assert given.name == "paper-given-limit6" and given.artifacts != run.artifacts
    shutil.copytree(run.artifacts, given.artifacts, dirs_exist_ok=True)
    steps.finetune(given, "MNIST")
    stored, metadata = clip.load(given.fine_tuned("MNIST"))
    assert metadata["imported"] == "MNIST.safetensors" and metadata["task"] == "MNIST"
    assert torch.equal(stored["proj"], tower["proj"] + 0.01)
    assert given.path("MNIST").length > 0
    with pytest.raises(ValueError, match="SVHN"):
        steps.finetune(given, "SVHN")
    hub = dataclasses.replace(given, finetuned="hub")
    shutil.copytree(given.artifacts, hub.artifacts)
    hub.fine_tuned("MNIST").unlink()
    monkeypatch.setattr(
        checkpoints, "hub_checkpoint", lambda task: tmp_path / f"{task}.safetensors"
    )
    steps.decode(hub, "SVHN", data)  # public weights need no train images
    assert set(results.read_json(hub.images("SVHN"))["splits"]) == {"validation", "test"}
    steps.finetune(hub, "MNIST")
    assert torch.equal(clip.load(hub.fine_tuned("MNIST"))[0]["proj"], stored["proj"])


def test_weights_and_metadata_say_where_they_come_from(run, data):
    for task in ("DTD",):
        prepared(run, data, task)
    steps.finetune(run, "DTD")
    metadata = clip.metadata(run.fine_tuned("DTD"))
    assert metadata["task"] == "DTD" and metadata["step"] == "6"
    assert "learning_rate=0.01" in metadata["recipe"]
    assert metadata["parent"] == clip.metadata(run.zero_shot)["digest"]


def test_decoding_again_reads_the_cache(run, data, monkeypatch):
    steps.decode(run, "EuroSAT", data)
    before = run.images("EuroSAT").read_bytes()

    def unreadable(*_):
        raise AssertionError("a picture was decoded twice")

    monkeypatch.setattr(paper.Pictures, "__getitem__", unreadable)
    steps.decode(run, "EuroSAT", data)
    assert run.images("EuroSAT").read_bytes() == before


def test_data_is_noticed_when_its_pictures_change_and_only_then(run, tmp_path):
    folder, names = tmp_path / "data", ["CIFAR10", "EuroSAT"]
    trees.write(folder, names=names)
    some = dataclasses.replace(run, profile=run.profile.only(names), root=tmp_path)
    steps.check_inputs(some, folder)
    for task in names:
        steps.decode(some, task, folder)

    def noticed():
        before = {task: some.source_of(task).read_bytes() for task in names}
        steps.check_inputs(some, folder)
        return [task for task in names if some.source_of(task).read_bytes() != before[task]]

    assert noticed() == []
    forests = folder / "eurosat/2750/Forest"
    for path in (forests.parent, folder / "cifar-10-batches-py/test_batch"):
        os.utime(path, (1, 1))
    assert noticed() == []  # touched, but the same pictures
    for picture in forests.iterdir():
        picture.write_bytes(picture.read_bytes() + b"\0")
    os.utime(forests.parent, (2, 2))
    assert noticed() == ["EuroSAT"] and noticed() == []
    steps.check_inputs(some, tmp_path / "gone")  # the cache is enough


def test_lost_cache_says_how_to_decode_again(run, data, tmp_path):
    alone = dataclasses.replace(run, root=tmp_path)
    steps.decode(alone, "MNIST", data)
    before = alone.images("MNIST").read_bytes()
    shutil.rmtree(alone.cache)
    with pytest.raises(ValueError, match="decode --profile paper --limit 6 .* MNIST` does so"):
        alone.load_split("MNIST", "test")
    steps.decode(alone, "MNIST", data)
    assert len(alone.load_split("MNIST", "test").labels) == 6
    assert alone.images("MNIST").read_bytes() == before


def test_missing_weights_are_all_named(run, tmp_path):
    (tmp_path / "DTD.pt").touch()
    given = dataclasses.replace(run, finetuned=str(tmp_path), root=tmp_path)
    shutil.copytree(run.artifacts / "tasks", given.artifacts / "tasks")
    shutil.copytree(run.cache, given.cache)
    with pytest.raises(ValueError, match="neither `own` nor `hub` nor a folder") as error:
        steps.check_inputs(given, tmp_path / "gone")
    named = set(re.findall(r"^  (\w+): ", str(error.value), flags=re.M))
    assert named == set(paper.PATCHING) - {"DTD"}


def test_missing_data_sets_are_all_named_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.write(tmp_path / "data", names=["CIFAR10", "MNIST"])
    assert main(["book", "--profile", "paper", "--data", "data"]) == 1
    said = capsys.readouterr().err
    assert "11 of 13 data sets are not in" in said and "python -m paintlib data" in said
    named = set(re.findall(r"^  (\w+): ", said, flags=re.M))
    assert named == set(paper.SUPPORTED + paper.PATCHING) - {"CIFAR10", "MNIST"}
    assert not (tmp_path / "artifacts").exists()


def test_options_that_do_not_fit_the_profile_are_refused():
    for options, message in (
        ({"profile": "micro", "limit": 4}, "limit = 4; .* for the profile paper"),
        ({"profile": "paper", "limit": -1}, "limit = -1"),
        ({"profile": "micro", "finetuned": "hub"}, "fine-tunes its own weights"),
        ({"profile": "paper", "tasks": "CIFAR10,Cats"}, "no task 'Cats'; choose from ImageNet"),
        ({"profile": "paper", "tasks": "CIFAR10"}, "CIFAR10 makes no pair; choose at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            Run.of(**options)
    run = Run.of("paper", 2, limit=8, tasks="DTD, CIFAR10", finetuned="hub")
    assert run.name == "paper-hub-limit8-seed2" and run.profile.tasks == ("CIFAR10", "DTD")


def test_each_step_takes_a_gpu_of_its_own(monkeypatch, tmp_path):
    class Card:
        def __init__(self, index):
            self.uuid = f"{tmp_path.name}-{index}"

    monkeypatch.setattr(experiment.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Card)
    held = [experiment.free_device() for _ in range(3)]
    assert [str(device) for device, _ in held] == ["cuda:0", "cuda:1", "cuda"]
    held[0][1].close()
    again = experiment.free_device()
    assert str(again[0]) == "cuda:0"
    other = tmp_path / f"paintlib-{os.getuid()}-{tmp_path.name}-0.lock"
    assert other.exists()  # one file a user: nobody else's may be opened
    for _, lock in (held[1], again):
        lock.close()


WORKFLOW = "CIFAR10,STL10,EuroSAT,MNIST,SVHN"  # 2 supported x 3 patching


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, run once with ViT-B/32 on generated trees.

    They are not in the default folder, where a decoy lies, and no variable names them.
    """
    folder = copy_project(tmp_path_factory.mktemp("project"))
    trees.write(folder / "pictures", names=WORKFLOW.split(","))
    trees.write(folder / "data", names=WORKFLOW.split(","), per_class=1)
    done = book(folder, "pictures")
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


def book(folder: Path, data: str) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if name != "PAINTLIB_DATA"}
    return subprocess.run(
        [sys.executable, "-m", "experiment", "book", "--profile", "paper", "--limit", "2",
         "--data", data, "--tasks", WORKFLOW],
        cwd=folder,
        env={**others, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )  # fmt: skip


@pytest.mark.workflow
def test_dry_run_makes_a_book_that_says_so(project):
    folder, output = project
    assert "the book is at" in output
    pairs = results.read_pairs(folder / "results" / "paper-limit2")
    assert len(pairs) == 6
    for pair in pairs:
        assert pair["provenance"]["limit"] == 2 and pair["provenance"]["weights"] == "random"
        assert pair["labels"]["supported"] == pair["supported"]
    html = folder / "artifacts/paper-limit2/book/_build/html"
    for page in ("index", "results/claims", "results/published", "pairs/STL10-EuroSAT"):
        assert "DRY RUN" in (html / f"{page}.html").read_text(encoding="utf-8"), page
    assert not (html / "pairs" / "ImageNet-Cars.html").exists()
    towers = clip.load(folder / "artifacts/paper-limit2/zero_shot.safetensors")[0]
    assert sum(weight.numel() for weight in towers.values()) == 87_849_216


@pytest.mark.workflow
def test_every_picture_comes_from_the_folder_that_was_named(project):
    folder, _ = project
    for task in WORKFLOW.split(","):
        described = results.read_json(folder / f"artifacts/paper-limit2/tasks/{task}.json")
        for split, entry in described["splits"].items():
            pictures = paper.open_split(task, folder / "pictures", split)
            rows = pixels.choose(pictures, 2)
            fit = "squash" if split == "train" else "crop"
            assert entry["cache"] == pixels.Cache(folder, pictures, rows, 224, fit).key, task


@pytest.mark.workflow
def test_touched_data_repeats_nothing(project):
    folder, _ = project
    os.utime(folder / "pictures" / "train_32x32.mat", (1, 1))
    done = book(folder, "pictures")
    assert done.returncode == 0 and "step 1" not in done.stdout, done.stdout[-4000:]


@pytest.mark.workflow
def test_other_weights_or_pictures_repeat_what_follows_from_them(project):
    folder, _ = project
    assert planned(folder) == {}
    rules = planned(folder, "weights=openai")
    assert {"zero_shot", "head", "finetune", "curves", "pair"} <= rules.keys()
    assert "decode" not in rules
    source = folder / "artifacts/paper-limit2/tasks/SVHN.source"
    before = source.read_bytes()
    source.write_text('{"test": "another"}')
    rules = planned(folder)
    source.write_bytes(before)
    assert rules["decode"] == rules["finetune"] == rules["curves"] == 1 and rules["pair"] == 2


def planned(folder: Path, *config: str) -> Counter[str]:
    plan = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "host", "--config",
         "profile=paper", "seed=0", "limit=2", f"tasks={WORKFLOW}", "finetuned=own", *config],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PAINTLIB_DATA": str(folder / "pictures")},
        capture_output=True,
        text=True,
    ).stdout  # fmt: skip
    return Counter(re.findall(r"^(?:local)?rule (\w+):", plan, flags=re.M))


@pytest.mark.workflow
def test_dry_run_goes_on_from_its_cache_without_the_data(project):
    folder, _ = project
    (folder / "pictures").rename(folder / "elsewhere")
    try:
        page = folder / "artifacts/paper-limit2/book/pairs/CIFAR10-SVHN.ipynb"
        before = page.read_bytes()
        page.unlink()
        (folder / "artifacts/paper-limit2/book/_build/html/index.html").unlink()
        done = book(folder, "pictures")
        assert done.returncode == 0, done.stdout[-4000:]
        assert "decode" not in done.stdout and "(curves)" not in done.stdout
        assert page.read_bytes() == before
    finally:
        (folder / "elsewhere").rename(folder / "pictures")
