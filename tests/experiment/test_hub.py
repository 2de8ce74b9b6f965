"""DATA=hub: local repositories of the form of the mirrors stand for the Hub."""

import dataclasses
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import trees

from experiment import pixels
from experiment.__main__ import find as step
from experiment.profiles import PROFILES
from experiment.real import datasets as official
from experiment.real import facts, fetch, hub
from experiment.run import Run

library = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def repository(folder, names, parts, *, columns=("image", "label"), order=None):
    """Write a data set as `push_to_hub` does: parquet files whose schema names the classes.

    `parts` gives pictures a class; `order` is our label of each of the mirror's names.
    """
    (folder / "data").mkdir(parents=True)
    image, label = columns
    order = order or range(len(names))
    features = library.Features(
        {image: library.Image(), label: library.ClassLabel(names=list(names))}
    )
    for part, count in parts.items():
        rows = [(theirs, ours) for theirs, ours in enumerate(order) for _ in range(count)]
        random.Random(1).shuffle(rows)
        pictures = [
            {"bytes": trees.encoded(ours, serial), "path": None}
            for serial, (_, ours) in enumerate(rows)
        ]
        content = {image: pictures, label: [theirs for theirs, _ in rows]}
        made = pyarrow.Table.from_pydict(content, features.arrow_schema)
        parquet.write_table(made, folder / f"data/{part}-00000-of-00001.parquet")
    return folder


def mirrored(monkeypatch, name, path, **known):
    """Let the table say that a data set lies at `path`; `known` are other facts."""
    data = facts.DATA_SETS[name]
    said = {**data.hub, "path": str(path)}
    said.pop("name", None)
    monkeypatch.setitem(facts.DATA_SETS, name, dataclasses.replace(data, hub=said, **known))


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory):
    """EuroSAT with folder names in another order: the numbers of its labels are not ours."""
    folders = facts.get("EuroSAT").folders
    order = [3, 0, 9, 1, 2, 8, 7, 4, 5, 6]
    folder = tmp_path_factory.mktemp("hub") / "eurosat"
    return repository(folder, [folders[i] for i in order], {"train": 20, "test": 4}, order=order)


def shows_its_class(pictures):
    shown = [
        (trees.class_of(pictures[i]) % 10, int(pictures.labels[i])) for i in range(len(pictures))
    ]
    return all(seen == label % 10 for seen, label in shown)


def test_a_sample_is_balanced_and_its_labels_follow_the_names(eurosat, tmp_path, monkeypatch):
    mirrored(monkeypatch, "EuroSAT", eurosat, train=200, test=40)
    files = {}
    for split in ("train", "validation", "test"):
        pictures = hub.open_split("EuroSAT", tmp_path, split, 20)
        assert shows_its_class(pictures)
        files[split] = {file.decode() for file in pictures.content}
        if split != "validation":  # 20 of 200, which chance divides
            chosen = pixels.choose(pictures, 20, balanced=True)
            assert Counter(pictures.labels[chosen].tolist()) == dict.fromkeys(range(10), 2)
    assert not files["train"] & files["validation"]
    held = official.validation_indices(200)[1].tolist()
    assert {int(file) for file in files["validation"]} <= set(held)
    monkeypatch.setattr(hub, "_write", None)  # what is drawn is not drawn again
    again = hub.open_split("EuroSAT", tmp_path, "test", 20)
    assert {file.decode() for file in again.content} == files["test"]


def test_two_clones_that_share_a_cache_draw_once(eurosat, tmp_path, monkeypatch):
    mirrored(monkeypatch, "EuroSAT", eurosat, train=200, test=40)
    write, written = hub._write, []
    monkeypatch.setattr(hub, "_write", lambda *a: (written.append(a), time.sleep(0.3), write(*a)))
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(hub.open_split, "EuroSAT", tmp_path, "test", 20) for _ in range(2)]
    assert len(written) == 1 and len({tuple(split.result().content) for split in both}) == 1


def test_a_sample_is_spread_over_a_mirror_that_is_sorted_by_class(eurosat, tmp_path, monkeypatch):
    rows = [(index, b"", index // 100) for index in range(1000)]
    monkeypatch.setitem(
        facts.DATA_SETS, "EuroSAT", dataclasses.replace(facts.get("EuroSAT"), train=1000)
    )
    drawn = [index for index, _, _ in hub._sample("EuroSAT", "test", rows, 200, False)]
    assert Counter(index // 100 for index in drawn) == dict.fromkeys(range(10), 40)
    assert 40 < sum(index % 100 for index in drawn) / len(drawn) < 60  # not the first ones
    early = list(hub._sample("EuroSAT", "test", iter(rows), 200, True))
    assert len(early) < 400  # the last class is sought until its share of 20 is full
    assert Counter(index // 100 for index, _, _ in early)[9] == 20


def test_a_whole_set_is_fetched_and_read_where_no_official_one_is(eurosat, tmp_path, monkeypatch):
    mirrored(monkeypatch, "EuroSAT", eurosat, train=200, test=40)
    fetch.fetch("Cars", trees_cars(tmp_path, monkeypatch))
    assert (tmp_path / "data/hub/Cars/train/drawn.json").is_file()
    assert official.missing(["Cars"], tmp_path / "data") == {}
    train = official.open_split("Cars", tmp_path / "data", "train")
    assert len(train) == 2 * 196 - 39 and shows_its_class(train)
    assert hub.open_split("EuroSAT", tmp_path, "validation", None).labels.shape == (20,)
    note = json.loads((tmp_path / "hub/EuroSAT/train/drawn.json").read_text())
    assert note["repository"] == str(eurosat) and len(note["labels"]) == 200


def trees_cars(tmp_path, monkeypatch):
    names = [name.lower() for name in facts.get("Cars").classnames]
    folder = repository(tmp_path / "cars", names, {"train": 2, "test": 1})
    mirrored(monkeypatch, "Cars", folder, train=392, test=196)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["Forest"], "name 1 of 10 classes; labels are mapped by name"),
        (["Forest", "Moor"], "name 1 of 10 classes; unknown: 1, first 'Moor'"),
    ],
)
def test_unknown_and_absent_classes_are_refused(names, match, tmp_path, monkeypatch):
    folder = repository(tmp_path / "odd", names, {"train": 2, "test": 1})
    mirrored(monkeypatch, "EuroSAT", folder)
    with pytest.raises(ValueError, match=match):
        hub.open_split("EuroSAT", tmp_path, "test", 5)
    assert not (tmp_path / "hub/EuroSAT/test-5").exists()


def test_a_mirror_of_another_size_needs_acceptance(eurosat, tmp_path, monkeypatch):
    mirrored(monkeypatch, "EuroSAT", eurosat)
    with pytest.raises(ValueError, match=r"has 40 test pictures, officially 2,700; ACCEPT=EuroSAT"):
        hub.open_split("EuroSAT", tmp_path, "test", 5)
    assert len(hub.open_split("EuroSAT", tmp_path, "test", 5, accept=True)) == 20


@pytest.mark.parametrize("name", facts.DATA_SETS)
def test_names_of_each_data_set_are_found_however_they_are_spelt(name):
    words = [said[-1] for said in hub._names(name)]
    if name == "ImageNet":  # two cranes
        words[517] += "2"
    label = library.ClassLabel(names=words)
    assert hub._numbers(name, "", label) == list(range(len(words)))
    spelt = library.ClassLabel(names=[said[0] for said in hub._names(name)][::-1])
    assert hub._numbers(name, "", spelt) == list(range(len(words)))[::-1]


def test_a_mirror_out_of_reach_and_a_library_that_lacks_are_messages(tmp_path, monkeypatch):
    mirrored(monkeypatch, "ImageNet", tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="cannot be read from the Hub .*accept its terms at htt"):
        hub.open_split("ImageNet", tmp_path, "test", 5)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    run = Run.of("paper", root=tmp_path, variants="gtsrb-tracks")
    with pytest.raises(ValueError, match="ImageNet needs your own account: accept its terms at"):
        step("check")(run, hub.ROOT)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    with pytest.raises(ValueError, match="gtsrb-tracks needs DATA=FOLDER"):
        step("check")(run, hub.ROOT)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="needs the package `datasets`: .*pip install datasets"):
        step("check")(run, hub.ROOT)
    with pytest.raises(ValueError, match="needs the package `datasets`: .*pip install datasets"):
        hub.open_split("EuroSAT", tmp_path, "test", 5)


def test_a_run_decodes_what_it_drew(eurosat, tmp_path, monkeypatch):
    mirrored(monkeypatch, "EuroSAT", eurosat, train=200, test=40)
    run = Run(PROFILES["paper"].limited(10).only(["STL10", "EuroSAT"]), 0, tmp_path)
    step("check")(run, hub.ROOT)
    step("decode")(run, "EuroSAT", hub.ROOT)
    described = json.loads(run.images("EuroSAT").read_text())
    assert {split: entry["images"] for split, entry in described["splits"].items()} == {
        "train": 10, "validation": 10, "test": 10}  # fmt: skip
    assert (tmp_path / "artifacts/cache/hub/EuroSAT/test-10/drawn.json").is_file()
