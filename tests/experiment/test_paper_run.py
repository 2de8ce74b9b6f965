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
from pathlib import Path

import open_clip
import pytest
import torch
import trees
from PIL import Image
from project import copy_project, git, make
from safetensors.torch import save_file

from experiment import clip, gallery, pixels, replay, results, session, training, weights
from experiment.__main__ import find as step
from experiment.__main__ import main
from experiment.profiles import PATCHING, PROFILES, SUPPORTED
from experiment.real import checkpoints, datasets, hub
from experiment.run import VARIANTS, Run, how
from experiment.session import Session

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
    step("zero_shot")(run, "random")
    return run


def prepared(run: Run, data: Path, task: str) -> None:
    if not run.images(task).exists():
        step("decode")(run, task, data)
    if not run.head(task).exists():
        step("head")(run, task)


@pytest.mark.parametrize("task", SUPPORTED + PATCHING)
def test_every_layout_becomes_cached_splits_and_a_head(run, data, task):
    prepared(run, data, task)
    splits = ["validation", "test"] + ["train"] * (task in PATCHING)
    for name in splits:
        split = Session(run).split(task, name)
        assert split.images.shape == (len(split.labels), 3, 224, 224)
        assert 1 <= len(split.labels) <= 6 and (split.sizes is not None) == (name == "train")
        pictures = datasets.open_split(task, data, name)
        first = min(6, len(pictures))
        assert len(split.labels) == first
    head = Session(run).head(task)
    assert head.shape == (len(datasets.task(task).classnames), 32)
    # the text tower at the prompts' own length gives what the whole context gives
    described = results.read_json(run.images(task))
    prompts = [described["templates"][0].format(name) for name in described["classnames"][:3]]
    whole = open_clip.CLIP(**TINY).eval()
    whole.load_state_dict(weights.load(run.text_tower)[0], strict=False)
    with torch.no_grad():
        text = whole.encode_text(open_clip.get_tokenizer("paintlib-tiny")(prompts), normalize=True)
        torch.testing.assert_close(head[:3], text * whole.logit_scale.exp(), rtol=1e-4, atol=1e-5)


def test_steps_meet_in_a_pair(run, data):
    for task in ("CIFAR10", "STL10", "DTD"):
        prepared(run, data, task)
    some = dataclasses.replace(run, profile=run.profile.only(["CIFAR10", "STL10", "DTD"]))
    step("finetune")(some, "DTD")
    for task in ("CIFAR10", "STL10"):
        step("baseline")(some, task)
    step("solve")(some, "DTD")
    step("describe")(some)
    record = results.read_pair(some.pair("CIFAR10", "DTD"))
    assert record["labels"] == {"supported": "CIFAR10", "patching": "DTD"}
    objective = replay.objective(some.results, "CIFAR10", "DTD")
    work = Session(some)
    visual, path = work.tower(empty=True), work.path("DTD")
    losses = work.losses(visual, ("CIFAR10", "DTD"), "validation")
    for alpha in (0.0, 0.35, 1.0):
        path.set_(visual, alpha)
        for stored, task in zip(objective.score(alpha), losses.values(), strict=True):
            assert task.score() == pytest.approx(stored, rel=1e-5)
    assert objective.score(0.0) != objective.score(1.0)
    before = weights.load(some.head("CIFAR10"))[0]["head"]
    weights.save(some.head("CIFAR10"), {"head": 2 * before}, task="CIFAR10")
    step("baseline")(some, "CIFAR10")
    step("solve")(some, "DTD")  # what was evaluated with another head is of no use
    again = replay.objective(some.results, "CIFAR10", "DTD").score(0.0)
    fresh = weights.load(some.baseline("CIFAR10"))[0]["losses"].mean()
    assert again[0].loss == pytest.approx(float(fresh)) != objective.score(0.0)[0].loss
    weights.save(some.head("CIFAR10"), {"head": before}, task="CIFAR10")
    step("baseline")(some, "CIFAR10")
    step("solve")(some, "DTD")
    described = results.read_json(some.results / "run.json")
    assert described["limit"] == 6 and described["weights"] == "random"
    assert described["tasks"]["DTD"]["classes"] == 47
    assert "train" not in described["tasks"]["CIFAR10"]["images"]
    shown = gallery.read(some.results)
    assert len(shown["predictions"]["DTD"]["STL10"]["classes"]) == 6
    assert len(shown["pictures"]["DTD"]["classnames"]) == 47
    with Image.open(some.results / "pictures/DTD.jpg") as strip:
        assert strip.size == (6 * 64, 64)
    with pytest.raises(ValueError, match="never trains on CIFAR10: its train images"):
        Session(some).split("CIFAR10", "train")


def test_killed_finetuning_on_real_images_ends_at_the_same_weights(run, data, tmp_path):
    prepared(run, data, "SVHN")
    split = Session(run).split("SVHN", "train")

    def finetune(visual, checkpoint=None):
        logits = clip.classifier(visual, Session(run).head("SVHN"), run.profile.pixels)
        recipe = run.profile.finetuning
        return training.finetune(visual, logits, split, recipe, seed=0, checkpoint=checkpoint)

    whole, killed, resumed = Session(run).tower(), Session(run).tower(), Session(run).tower()
    assert len(list(finetune(whole))) == 6
    list(itertools.islice(finetune(killed, tmp_path / "c"), 3))
    assert len(list(finetune(resumed, tmp_path / "c"))) == 4
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert not torch.equal(whole.proj, Session(run).tower().proj)


def test_given_checkpoints_replace_finetuning(run, data, tmp_path, monkeypatch):
    prepared(run, data, "MNIST")
    tower = Session(run).tower().state_dict()
    moved = {f"model.visual.{name}": weight + 0.01 for name, weight in tower.items()}
    save_file(moved, tmp_path / "MNIST.safetensors")
    given = dataclasses.replace(run, finetuned=str(tmp_path))
    assert given.name == "paper-given-limit6" and given.folder != run.folder
    shutil.copytree(run.folder, given.folder, dirs_exist_ok=True)
    step("finetune")(given, "MNIST")
    stored, metadata = weights.load(given.fine_tuned("MNIST"))
    assert metadata["imported"] == "MNIST.safetensors" and metadata["task"] == "MNIST"
    assert torch.equal(stored["proj"], tower["proj"] + 0.01)
    assert Session(given).path("MNIST").length > 0
    with pytest.raises(ValueError, match="holds neither SVHN.safetensors nor SVHN.pt; add one"):
        step("finetune")(given, "SVHN")
    hub = dataclasses.replace(given, finetuned="hub")
    shutil.copytree(given.folder, hub.folder)
    hub.fine_tuned("MNIST").unlink()
    monkeypatch.setattr(
        checkpoints, "hub_checkpoint", lambda task: tmp_path / f"{task}.safetensors"
    )
    step("decode")(hub, "SVHN", data)  # public weights need no train images
    # nor validation images, which those weights have seen
    assert set(results.read_json(hub.images("SVHN"))["splits"]) == {"test"}
    step("finetune")(hub, "MNIST")
    assert torch.equal(weights.load(hub.fine_tuned("MNIST"))[0]["proj"], stored["proj"])


def test_weights_and_metadata_say_where_they_come_from(run, data):
    prepared(run, data, "DTD")
    step("finetune")(run, "DTD")
    metadata = weights.metadata(run.fine_tuned("DTD"))
    assert metadata["task"] == "DTD" and metadata["step"] == "6"
    assert "learning_rate=0.01" in metadata["recipe"]
    assert metadata["parent"] == weights.metadata(run.zero_shot)["digest"]


def test_decoding_again_reads_the_cache(run, data, monkeypatch):
    step("decode")(run, "EuroSAT", data)
    before = run.images("EuroSAT").read_bytes()

    def unreadable(*_):
        raise AssertionError("a picture was decoded twice")

    monkeypatch.setattr(datasets.Pictures, "__getitem__", unreadable)
    step("decode")(run, "EuroSAT", data)
    assert run.images("EuroSAT").read_bytes() == before


def test_data_is_noticed_when_its_pictures_change_and_only_then(run, tmp_path):
    folder, names = tmp_path / "data", ["CIFAR10", "EuroSAT"]
    trees.write(folder, names=names)
    some = dataclasses.replace(run, profile=run.profile.only(names), root=tmp_path)
    step("check")(some, folder)
    for task in names:
        step("decode")(some, task, folder)

    def noticed():
        before = {task: some.source_of(task).read_bytes() for task in names}
        step("check")(some, folder)
        return [task for task in names if some.source_of(task).read_bytes() != before[task]]

    assert noticed() == []
    forests = folder / "eurosat/2750/Forest"
    for path in (forests.parent, folder / "cifar-10-batches-py/test_batch"):
        os.utime(path, (1, 1))
    assert noticed() == []  # touched, but the same pictures
    pictures = sorted(forests.parent.rglob("*.jpg"))
    [picture, *_] = sorted(forests.iterdir())
    os.utime(picture, (1, 1))
    assert noticed() == []
    for change in (
        lambda: [p.write_bytes(p.read_bytes() + b"\0") for p in pictures],
        lambda: [p.write_bytes(p.read_bytes()[:-1] + b"\1") for p in pictures],  # of the same size
        lambda: shutil.copyfile(picture, forests / "Forest_11.jpg"),
        lambda: picture.unlink(),
    ):
        change()
        assert noticed() == ["EuroSAT"] and noticed() == []
        step("decode")(some, "EuroSAT", folder)
    step("check")(some, tmp_path / "gone")  # the cache is enough


def sampled(run, names, root):
    """The same run without a limit, so that its data sets have to be whole."""
    return dataclasses.replace(
        run, profile=dataclasses.replace(run.profile.only(names), limit=0), root=root
    )


def test_data_sets_that_are_not_whole_are_all_named_before_anything_starts(run, tmp_path):
    folder, names = tmp_path / "data", ["STL10", "EuroSAT", "MNIST"]
    trees.write(folder, names=names)
    whole = sampled(run, names, tmp_path)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(ValueError, match="3 of 3 data sets") as error:
            step("check")(whole, folder)
        assert "EuroSAT: 80 training and 10 test pictures, officially 21,600" in str(error.value)
        assert "ACCEPT=STL10,EuroSAT,MNIST takes them" in str(error.value)
    with pytest.raises(ValueError, match="1 of 3 data sets .*\n  STL10: 30 training"):
        step("check")(dataclasses.replace(whole, accept=("EuroSAT", "MNIST")), folder)
    step("check")(dataclasses.replace(whole, accept=tuple(names)), folder)
    step("check")(dataclasses.replace(run, profile=run.profile.only(names), root=tmp_path), folder)


def test_a_disk_without_the_room_and_a_lost_link_stop_the_run(run, data, tmp_path, monkeypatch):
    some = dataclasses.replace(run, profile=run.profile.only(["STL10", "DTD"]), root=tmp_path)
    need = 5 * 6 * 3 * 224**2 + 6 * 4 * 87_849_216  # five splits of six images, weights
    usage = type("usage", (), {"free": need})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    step("check")(some, data)
    usage.free -= 1
    with pytest.raises(ValueError, match=r"writes 2\.1 GB to the disk of .*IMAGES=n"):
        step("check")(some, data)
    step("decode")(some, "STL10", data)  # what is decoded needs no room
    step("check")(some, data)
    shutil.rmtree(some.cache)
    some.cache.symlink_to(tmp_path / "disk")
    with pytest.raises(ValueError, match="cache is a link to .*disk, which is not there"):
        step("check")(some, data)


def test_variants_make_runs_of_their_own(run, data, tmp_path):
    other = Run.of("paper", limit=6, variants="gtsrb-tracks, cifar100-spaces")
    assert other.name == "paper-limit6-cifar100-spaces-gtsrb-tracks"
    assert other.unusual == {"variants": "cifar100-spaces,gtsrb-tracks"}  # as its pages say
    assert len(how(other.unusual)) == 2 == len(VARIANTS)
    with pytest.raises(ValueError, match="no 'tracks'; choose one of cifar100-spaces"):
        Run.of("paper", variants="tracks")
    usual, other = (
        dataclasses.replace(run, root=tmp_path, variants=variants)
        for variants in ("", "cifar100-spaces,gtsrb-tracks")
    )
    described = []
    for each in (usual, other):
        for task in ("CIFAR100", "GTSRB"):
            step("decode")(each, task, data)
            described.append(results.read_json(each.images(task)))
    assert "pickup_truck" in described[0]["classnames"]
    assert "pickup truck" in described[2]["classnames"]
    keys = [{s: e["cache"] for s, e in d["splits"].items()} for d in described]
    assert keys[0] == keys[2] and keys[1]["test"] == keys[3]["test"]
    assert keys[1]["validation"] != keys[3]["validation"]


def test_lost_cache_says_how_to_decode_again(run, data, tmp_path):
    alone = dataclasses.replace(run, root=tmp_path)
    step("decode")(alone, "MNIST", data)
    before = alone.images("MNIST").read_bytes()
    shutil.rmtree(alone.cache)
    with pytest.raises(ValueError, match="decode --profile paper --limit 6 .* MNIST` does so"):
        Session(alone).split("MNIST", "test")
    step("decode")(alone, "MNIST", data)
    assert len(Session(alone).split("MNIST", "test").labels) == 6
    assert alone.images("MNIST").read_bytes() == before


def test_missing_weights_are_all_named(run, tmp_path):
    (tmp_path / "DTD.pt").touch()
    given = dataclasses.replace(run, finetuned=str(tmp_path), root=tmp_path)
    for task in SUPPORTED + PATCHING:  # as if decoded
        results.write_json(given.images(task), {})
    with pytest.raises(ValueError, match="neither `own` nor `hub` nor a folder") as error:
        step("check")(given, tmp_path / "gone")
    named = str(error.value).partition("missing for ")[2].split(", ")
    assert set(named) == set(PATCHING) - {"DTD"}


def test_weights_of_another_model_are_refused_first(run, data, tmp_path):
    some = dataclasses.replace(run.profile.only(["STL10", "DTD"]))
    given = dataclasses.replace(run, profile=some, finetuned=str(tmp_path), root=tmp_path / "run")
    save_file({"conv1.weight": torch.zeros(8, 3, 32, 32)}, tmp_path / "DTD.safetensors")
    with pytest.raises(ValueError, match=r"DTD\.safetensors"):
        step("check")(given, data)


def test_evidence_that_a_run_cannot_give_is_refused_first(run, data, tmp_path):
    seen = dataclasses.replace(run, choose_on="test", root=tmp_path)
    with pytest.raises(ValueError, match="the evidence needs a run that chooses on validation"):
        step("check")(seen, data, images=10)


def test_weights_that_do_not_exist_are_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--profile", "paper", "--weights", "/nofile"]) == 1
    assert (
        "WEIGHTS=/nofile is no file, and none of the tags of ViT-B-32-quickg"
        in capsys.readouterr().err
    )
    for known in ("openai", "laion400m_e32", str(tmp_path / "w.pt")):  # goes on to the data sets
        (tmp_path / "w.pt").touch()
        assert main(["check", "--profile", "paper", "--weights", known]) == 1
        assert "data sets are not in" in capsys.readouterr().err


def test_missing_data_sets_are_all_named_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.write(tmp_path / "data", names=["CIFAR10", "MNIST"])
    assert main(["check", "--profile", "paper", "--data", "data"]) == 1
    said = capsys.readouterr().err
    assert "11 of 13 data sets are not in" in said and "python -m experiment data" in said
    named = set(re.findall(r"^  (\w+): ", said, flags=re.M))
    assert named == set(SUPPORTED + PATCHING) - {"CIFAR10", "MNIST"}
    assert not (tmp_path / "artifacts").exists()


def test_only_the_word_itself_stands_for_the_mirrors(monkeypatch):
    said = {}
    monkeypatch.setattr(
        "experiment.__main__.find", lambda name: lambda run, data: said.update(d=data)
    )
    for word, drawn in (("hub", True), ("./hub", False), ("hub/", False), ("data", False)):
        assert main(["check", "--profile", "paper", "--data", word]) == 0
        assert (said["d"] == hub.ROOT) == drawn, word


def test_what_does_not_exist_is_named_with_its_remedy(capsys):
    for command, message in (
        ("page notebooks/nope.md out.ipynb", r"nope\.md'; give a file that exists"),
        ("join 7", "there is no trio '7'; choose one of 0"),
    ):
        assert main(command.split()) == 1
        assert re.search(message, capsys.readouterr().err)


def test_options_that_do_not_fit_the_profile_are_refused():
    for options, message in (
        ({"profile": "micro", "limit": 4}, "limit = 4; .* for the profile paper"),
        ({"profile": "paper", "limit": -1}, "limit = -1"),
        ({"profile": "paper", "sample": 1}, "sample = 1; .* images a split, from 2"),
        ({"profile": "micro", "finetuned": "hub"}, "fine-tunes its own weights"),
        ({"profile": "paper", "tasks": "CIFAR10,Cats"}, "no task 'Cats'; choose one of ImageNet"),
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

    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Card)
    held = [session.free_device() for _ in range(3)]
    assert [str(device) for device, _ in held] == ["cuda:0", "cuda:1", "cuda"]
    held[0][1].close()
    again = session.free_device()
    assert str(again[0]) == "cuda:0"
    other = tmp_path / f"paintlib-{os.getuid()}-{tmp_path.name}-0.lock"
    assert other.exists()  # one file a user: nobody else's may be opened
    for _, lock in (held[1], again):
        lock.close()


WORKFLOW = "CIFAR10,SVHN"  # one supported and one patching task


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, run once with ViT-B/32 on generated trees, as README says.

    They are not in the default folder, where a decoy lies, and no variable names them.
    """
    folder = copy_project(tmp_path_factory.mktemp("project"))
    trees.write(folder / "artifacts/trees", names=WORKFLOW.split(","))
    trees.write(folder / "data", names=WORKFLOW.split(","), per_class=1)
    done = book(folder)
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


OPTIONS = ("PROFILE=paper", "LIMIT=2", f"TASKS={WORKFLOW}")


def book(folder):
    return make(folder, "book", *OPTIONS, "DATA=artifacts/trees", timeout=1200)


@pytest.mark.workflow
def test_dry_run_makes_a_book_that_says_so(project):
    folder, output = project
    assert "the book is at" in output
    run = folder / "artifacts/paper-limit2"
    pairs = results.read_pairs(run / "results/paper-limit2")
    assert len(pairs) == 1
    for pair in pairs:
        assert pair["run"]["limit"] == 2 and pair["run"]["weights"] == "random"
        assert pair["labels"]["supported"] == pair["supported"]
    for page in ("index", "results/claims", "results/runbook", "pairs/CIFAR10-SVHN"):
        html = (run / f"book/_build/html/{page}.html").read_text(encoding="utf-8")
        assert "DRY RUN" in html, page
    assert not (run / "book/_build/html/pairs/ImageNet-Cars.html").exists()
    towers = weights.load(run / "zero_shot.safetensors")[0]
    assert sum(weight.numel() for weight in towers.values()) == 87_849_216
    assert git(folder, "status", "--porcelain", "--", ":!data") == ""


@pytest.mark.workflow
def test_every_picture_comes_from_the_folder_that_was_named(project):
    folder, _ = project
    for task in WORKFLOW.split(","):
        described = results.read_json(folder / f"artifacts/paper-limit2/tasks/{task}.json")
        for split, entry in described["splits"].items():
            pictures = datasets.open_split(task, folder / "artifacts/trees", split)
            rows = pixels.choose(pictures, 2)
            fit = "squash" if split == "train" else "crop"
            assert entry["cache"] == pixels.Cache(folder, pictures, rows, 224, fit).key, task


@pytest.mark.workflow
def test_touched_data_repeats_nothing_and_the_cache_is_enough(project):
    folder, _ = project
    os.utime(folder / "artifacts/trees/train_32x32.mat", (1, 1))
    done = book(folder)
    assert done.returncode == 0 and "1 of 1 steps" in done.stdout, done.stdout[-4000:]
    (folder / "artifacts/trees").rename(folder / "artifacts/elsewhere")
    page = folder / "artifacts/paper-limit2/book/pairs/CIFAR10-SVHN.ipynb"
    before = page.read_bytes()
    page.unlink()
    done = make(folder, "plan", *OPTIONS, "DATA=artifacts/trees")
    (folder / "artifacts/elsewhere").rename(folder / "artifacts/trees")
    page.write_bytes(before)
    assert done.returncode == 0, done.stdout[-4000:]
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.M))
    assert jobs["pair"] == "1" and not jobs.keys() & {"decode", "solve"}, done.stdout


@pytest.mark.workflow
def test_changed_pictures_repeat_what_follows_from_them(project):
    folder, _ = project
    source = folder / "artifacts/paper-limit2/tasks/SVHN.source"
    before = source.read_bytes()
    source.write_text('{"test": "another"}')
    plan = make(folder, "plan", *OPTIONS, "DATA=artifacts/trees").stdout
    source.write_bytes(before)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", plan, flags=re.M))
    assert jobs["decode"] == jobs["finetune"] == jobs["solve"] == "1", plan
    assert jobs["pair"] == "1" and "baseline" not in jobs, plan
