"""The 13 real data sets: generated trees in the official layouts stand for the real files."""

import builtins
import hashlib
import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
import trees
from scipy.io import loadmat
from torch.utils.data import random_split
from torchvision import datasets as official
from torchvision.datasets import imagenet

from experiment.__main__ import main
from experiment.profiles import PATCHING, SUPPORTED
from experiment.real import datasets, fetch
from experiment.real.datasets import missing, open_split, task
from experiment.real.facts import DATA_SETS
from experiment.tasks import SPLITS

NAMES = SUPPORTED + PATCHING
COUNTS = {  # classes and templates, as published
    "ImageNet": (1000, 80), "CIFAR10": (10, 18), "CIFAR100": (100, 18), "STL10": (10, 2),
    "Cars": (196, 8), "DTD": (47, 8), "EuroSAT": (10, 3), "GTSRB": (43, 3), "MNIST": (10, 1),
    "RESISC45": (45, 18), "SUN397": (397, 2), "SVHN": (10, 1), "FashionMNIST": (10, 8),
}  # fmt: skip


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """One tree of all data sets, read only."""
    folder = tmp_path_factory.mktemp("data")
    trees.write(folder, ["ImageNet"], per_class=1)
    trees.write(folder, NAMES[1:])
    return folder


def restate(monkeypatch, name, **facts):
    """Let the table say something else of one data set."""
    monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], **facts))


def copy(name, root, target):
    """Copy one data set so that a test may spoil it; return the folder or first file."""
    target.mkdir(exist_ok=True)
    for top in fetch._tops(name):
        source = root / top
        if source.is_dir():
            shutil.copytree(source, target / top)
        else:
            shutil.copyfile(source, target / top)
    return target / fetch._tops(name)[0]


def edit(file, change):
    file.write_bytes(change(file.read_bytes()))


def identities(name, root):
    return [open_split(name, root, split).identity for split in SPLITS]


# class names and prompts


def test_the_table_is_read_without_torch_and_has_the_tasks_of_the_profile():
    assert tuple(DATA_SETS) == SUPPORTED + PATCHING
    code = "import sys, experiment.real.facts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_tasks_have_the_published_counts_and_readable_names(name, root):
    described, (classes, templates) = task(name, root), COUNTS[name]
    assert (described.name, described.label) == (name, name)
    assert len(described.classnames) == classes == DATA_SETS[name].classes
    assert len(described.templates) == len(set(described.templates)) == templates
    assert DATA_SETS[name].prompts == classes * templates
    for classname in described.classnames:
        assert classname == classname.strip() and not re.search("_| - |  ", classname)
        if name != "ImageNet":  # which has "CRT monitor" and the like
            assert not re.search(r"[a-z][A-Z]", classname)


def test_tasks_of_most_data_sets_need_no_disk(tmp_path):
    for name in set(NAMES) - {"Cars", "SUN397"}:
        assert task(name, tmp_path).name == name
    for name in ("Cars", "SUN397"):
        with pytest.raises(ValueError, match=rf"{name}: .*absent.*python -m experiment data --d"):
            task(name, tmp_path)


def test_imagenet_repeats_no_name_and_changes_no_other(root):
    ours, theirs = task("ImageNet", root).classnames, open_clip.IMAGENET_CLASSNAMES
    assert [i for i in range(1000) if ours[i] != theirs[i]] in ([], [744, 836])
    assert (ours[657], ours[744], ours[836], ours[837]) == (
        "missile", "projectile", "sunglass", "sunglasses")  # fmt: skip
    assert "a photo of a {}." in task("ImageNet", root).templates


def test_prompts_are_those_of_clip(root):
    for name, place, template in (
        ("CIFAR10", 0, "a photo of a {}."),
        ("CIFAR10", 2, "a black and white photo of a {}."),
        ("CIFAR10", 8, "a photo of a big {}."),
        ("CIFAR10", -1, "a photo of the big {}."),
        ("DTD", 5, "a photo of the {} pattern."),
        ("EuroSAT", 0, "a centered satellite photo of {}."),
        ("GTSRB", 2, 'a close up photo of a "{}" traffic sign.'),
        ("RESISC45", 7, "aerial imagery of a {}."),
        ("FashionMNIST", 7, "a thumbnail of the {}."),
        ("MNIST", 0, 'a photo of the number: "{}".'),
    ):
        assert task(name, root).templates[place] == template


def test_class_names_stand_in_the_published_order(root):
    """The generated trees cannot tell: they take their order from here."""
    for name in ("CIFAR10", "CIFAR100", "STL10", "DTD", "RESISC45"):  # alphabetical
        folders = [word.replace(" ", "_") for word in task(name, root).classnames]
        assert folders == sorted(folders)
    signs = task("GTSRB", root).classnames
    for label, word in ((0, "20 kph"), (8, "120 kph"), (12, "priority"), (13, "yield"),
                        (14, "stop"), (17, "no entry"), (25, "road work"), (31, "deer"),
                        (38, "keep right"), (40, "traffic circle"), (42, "trucks")):  # fmt: skip
        assert word in signs[label]
    assert list(task("FashionMNIST", root).classnames) == official.FashionMNIST.classes
    assert task("MNIST", root).classnames == task("SVHN", root).classnames == tuple("0123456789")
    assert task("EuroSAT", root).classnames[6:] == (
        "permanent crop land", "residential buildings or homes or apartments", "river",
        "lake or sea")  # fmt: skip


def test_scene_names_drop_letter_and_slashes(root):
    lines = (root / "SUN397/ClassName.txt").read_text().split()
    deep = next(i for i, line in enumerate(lines) if line.endswith("_house/indoor"))
    word = lines[deep].split("/")[2].removesuffix("_house")
    assert task("SUN397", root).classnames[deep] == f"{word} house indoor"


# pictures and labels


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_the_class_of_their_label(name, root):
    for split in SPLITS:
        pictures = open_split(name, root, split)
        assert len(pictures) == len(pictures.labels)
        assert pictures.labels.dtype == torch.int64
        exact = 0
        shown = range(0, len(pictures), max(1, len(pictures) // 150))
        for i in shown:
            image, label = pictures[i], int(pictures.labels[i])
            assert image.mode == "RGB"
            seen = trees.class_of(image)
            assert seen % 10 == label % 10
            exact += seen == label
        assert exact > 0.8 * len(shown)  # the grey ones tell the last digit only


def test_class_names_match_the_folders_of_the_pictures(root):
    """The chain file, label, class name, for the sets whose folders are words."""
    for name in ("DTD", "RESISC45", "EuroSAT", "SUN397"):
        pictures, names = open_split(name, root, "test"), task(name, root).classnames
        for i in range(0, len(pictures), 5):
            folders = os.fsdecode(pictures.content[i]).split("/")[:-1]
            classname = names[int(pictures.labels[i])]
            if name == "EuroSAT":
                word = re.findall("[A-Z][a-z]+", folders[-1])[0].lower()
                assert word.replace("herbaceous", "brush") in classname
            else:
                words = folders[1:] if name == "SUN397" else folders[-1:]
                assert " ".join(words).replace("_", " ") == classname


@pytest.mark.parametrize(
    ("name", "side", "serial"),
    [("CIFAR10", 32, 0), ("CIFAR100", 32, 0), ("STL10", 96, 10), ("SVHN", 32, 10),
     ("MNIST", 28, 10), ("FashionMNIST", 28, 10)],
)  # fmt: skip
def test_pixels_of_arrays_are_exact_and_upright(name, side, serial, root):
    pictures = open_split(name, root, "test")
    expected, _ = trees.arrays(COUNTS[name][0], 1, serial, side)
    if side == 28:
        expected = expected[..., :1].repeat(3, axis=-1)
    assert all(np.array_equal(pictures[i], expected[i]) for i in range(len(pictures)))


def test_svhn_counts_its_zeros_as_zero_and_stl10_from_one(root):
    assert loadmat(root / "test_32x32.mat")["y"].max() == 10
    assert np.fromfile(root / "stl10_binary/test_y.bin", np.uint8).min() == 1
    for name in ("SVHN", "STL10"):
        assert sorted(open_split(name, root, "test").labels.tolist()) == list(range(10))


def test_dtd_reads_the_merged_layout(root, tmp_path):
    dtd = root / "dtd/dtd"
    for part, target in (("train", "train"), ("val", "train"), ("test", "val")):
        for line in (dtd / f"labels/{part}1.txt").read_text().split():
            place = tmp_path / "dtd" / target / line
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dtd / "images" / line, place)
    for split in SPLITS:
        merged = open_split("DTD", tmp_path, split)
        assert len(merged) == len(open_split("DTD", root, split))
    assert sorted(merged.labels.tolist()) == list(range(47))


def test_imagenet_may_be_the_data_folder_itself(root, tmp_path):
    (tmp_path / "ImageNet").symlink_to(root / "imagenet")
    inside, outside, renamed = (
        open_split("ImageNet", path, "test") for path in (root / "imagenet", root, tmp_path)
    )
    assert inside.identity == outside.identity == renamed.identity


@pytest.mark.parametrize("name", ["STL10", "RESISC45"])
def test_pictures_survive_pickling(name, root):
    pictures = open_split(name, root, "validation")
    again = pickle.loads(pickle.dumps(pictures))
    assert again.identity == pictures.identity
    assert torch.equal(again.labels, pictures.labels)
    assert again[1].tobytes() == pictures[1].tobytes()


# splits


@pytest.mark.parametrize("n", [2, 7, 30, 3760, 26640, 60_000])
def test_validation_is_drawn_as_random_split_does(n):
    held = max(1, min(n // 10, 5000))
    generator = torch.Generator().manual_seed(0)
    expected = random_split(range(n), [n - held, held], generator=generator)
    for ours, theirs in zip(datasets.validation_indices(n), expected, strict=True):
        assert ours.tolist() == list(theirs.indices)


def test_validation_of_mnist_begins_where_the_convention_does():
    training, validation = datasets.validation_indices(60_000)
    assert (training[0], len(training), len(validation)) == (36044, 55_000, 5000)
    with pytest.raises(ValueError, match="1 training pictures cannot be divided"):
        datasets.validation_indices(1)


def test_eurosat_splits_as_paint_does():
    training, test = datasets.eurosat_indices(27_000)
    order = torch.randperm(27_000, generator=torch.Generator().manual_seed(0)).tolist()
    assert training.tolist() == order[:21_600]  # a tenth is held out and not used
    assert test.tolist() == order[24_300:]


@pytest.mark.parametrize("name", ["CIFAR100", "Cars", "DTD", "EuroSAT", "GTSRB", "RESISC45"])
def test_splits_are_disjoint_and_complete(name, root):
    splits = [open_split(name, root, split) for split in SPLITS]
    keys = [{p.content[i].tobytes() for i in range(len(p))} for p in splits]  # paths, or pixels
    assert [len(key) for key in keys] == [len(p) for p in splits]
    assert len(set.union(*keys)) == sum(map(len, keys))
    classes = COUNTS[name][0]
    assert len(splits[0]) + len(splits[1]) == (80 if name == "EuroSAT" else 3 * classes)
    assert len(splits[2]) == classes


# identity


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "DTD", "SUN397"])
def test_identity_is_that_of_the_pictures_not_of_the_place(name, root, tmp_path):
    copy(name, root, tmp_path)
    ids = identities(name, root)
    assert ids == identities(name, tmp_path) and len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", identity) for identity in ids)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "GTSRB",
            {
                "gtsrb/GTSRB/Final_Test/Images/00000.ppm": lambda file: file + b"\0",
                "gtsrb/GT-final_test.csv": lambda file: file.replace(b"25;0\n", b"25;1\n"),
            },
        ),
        (
            "MNIST",
            {
                f"MNIST/raw/t10k-{kind}-ubyte": lambda file: file[:-1] + bytes([file[-1] - 1])
                for kind in ("images-idx3", "labels-idx1")
            },
        ),
    ],
)
def test_identity_changes_with_a_picture_and_with_a_label(name, changes, root, tmp_path):
    copy(name, root, tmp_path)
    seen = {open_split(name, tmp_path, "test").identity}
    for file, change in changes.items():
        before = (tmp_path / file).read_bytes()
        edit(tmp_path / file, change)
        seen.add(open_split(name, tmp_path, "test").identity)
        (tmp_path / file).write_bytes(before)
    assert len(seen) == 3


# errors


def test_unknown_names_list_the_known(root):
    for call in (
        lambda: open_split("Imagenet", root, "test"),
        lambda: task("Imagenet", root),
        lambda: missing(["Imagenet"], root),
        lambda: fetch.fetch("Imagenet", root),
    ):
        with pytest.raises(ValueError, match=r"'Imagenet'.*ImageNet, CIFAR10.*FashionMNIST"):
            call()
    with pytest.raises(ValueError, match=r"'val'.*train, validation, test"):
        open_split("MNIST", root, "val")


def test_missing_names_all_at_once(root, tmp_path):
    assert missing(NAMES, root) == {}
    reasons = missing(NAMES, tmp_path)
    assert list(reasons) == list(NAMES)
    for name, reason in reasons.items():
        assert str(tmp_path) in reason
        assert "python -m experiment data --data FOLDER" in reason
        with pytest.raises(ValueError, match=re.escape(reason)):
            open_split(name, tmp_path, "test")
    assert "no folder" in missing(["MNIST"], tmp_path / "nowhere")["MNIST"]
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/ILSVRC2012_img_train.tar").touch()
    assert "--fetch ImageNet" in missing(["ImageNet"], tmp_path)["ImageNet"]


def test_missing_opens_no_picture(root, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("opened a file")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert missing(NAMES, root) == {}


@pytest.mark.parametrize(
    ("name", "file", "other"),
    [
        ("RESISC45", "resisc45-train.txt", ""),
        ("SUN397", "Testing_01.txt", "SUN397/Partitions"),
        ("SUN397", "Training_01.txt", "Partitions"),
    ],
)
def test_lists_may_lie_in_other_folders_and_are_named_where_they_lack(
    name, file, other, root, tmp_path
):
    folder = copy(name, root, tmp_path)
    (folder / file).rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=rf"{name}: 1 of 3 paths are absent, first: .*/{file};"):
        open_split(name, tmp_path, "test")
    (tmp_path / other).mkdir(exist_ok=True)
    (tmp_path / "kept").rename(tmp_path / other / file)
    assert identities(name, tmp_path) == identities(name, root)


def test_corrupt_picture_is_named(root, tmp_path):
    copy("EuroSAT", root, tmp_path)
    pictures = open_split("EuroSAT", tmp_path, "test")
    path = pictures.folder / os.fsdecode(pictures.content[3])
    for content in (b"not a picture", path.read_bytes()[:200], b"", None):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"picture 3 cannot be read: .*{path.name}.*replace"):
            pictures[3]


def halved(file):
    return file[: len(file) // 2 + 1]


class Spoilt:
    def __reduce__(self):
        return os.mkdir, ("ran",)


SPOILT = pickle.dumps({"data": Spoilt(), "labels": []}, protocol=2)
SWAPPED = pickle.dumps({"label_names": trees._underscored("CIFAR10")[::-1]}, protocol=2)


@pytest.mark.parametrize(
    ("name", "file", "change", "match"),
    [
        ("CIFAR10", "cifar-10-batches-py/test_batch", halved, "test_batch cannot be read"),
        ("CIFAR100", "cifar-100-python/meta", halved, "meta cannot be read"),
        ("STL10", "stl10_binary/test_X.bin", halved, "stl10_binary cannot be read"),
        ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte", halved, "MNIST/raw cannot be read"),
        ("SVHN", "test_32x32.mat", halved, "test_32x32.mat cannot be read"),
        ("Cars", "stanford_cars/cars_test_annos_withlabels.mat", halved, "stanford_cars cannot be"),
        ("GTSRB", "gtsrb/GT-final_test.csv", halved, "gtsrb cannot be read|GTSRB: "),
        ("DTD", "dtd/dtd/labels/test1.txt", halved, "DTD: "),
        ("GTSRB", "gtsrb/GT-final_test.csv", lambda file: file.replace(b"25;7\n", b"25;43\n"),
         r"GTSRB: 1 labels lie outside 0\.\.42, first: .*has 43"),
        ("STL10", "stl10_binary/test_y.bin", lambda file: b"\0" + file[1:],
         r"STL10: 1 labels lie outside 0\.\.9, first: picture 0 has -1"),
        ("STL10", "stl10_binary/test_y.bin", lambda file: file[1:], "10 pictures but 9 labels"),
        ("CIFAR10", "cifar-10-batches-py/batches.meta", lambda _: SWAPPED,
         r"CIFAR10: the class names in .*batches\.meta"),
        ("SUN397", "SUN397/ClassName.txt", lambda _: b"/a/abbey\n",
         r"ClassName\.txt names 1 classes, expected 397"),
        ("CIFAR10", "cifar-10-batches-py/test_batch", lambda _: SPOILT,
         r"test_batch cannot be read .*mkdir has no place"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(name, file, change, match, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy(name, root, tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(ValueError, match=match):
        open_split(name, tmp_path, "test")
    assert not (tmp_path / "ran").exists()  # what a pickle asks for


@pytest.mark.parametrize(
    ("name", "folder", "match"),
    [
        ("EuroSAT", "eurosat/2750/River", "9 class folders .* expected 10, .*'River'"),
        ("GTSRB", "gtsrb/GTSRB/Training/00007", "42 class folders .* expected 43, .*'00007'"),
        ("RESISC45", "NWPU-RESISC45/lake", "3 of 122 listed pictures are absent .*lake_00"),
    ],
)
def test_lost_class_folders_are_refused(name, folder, match, root, tmp_path):
    copy(name, root, tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(ValueError, match=match):
        open_split(name, tmp_path, "train")


def test_imagenet_refuses_other_folders(root, tmp_path):
    for part in ("train", "val"):
        for wnid in trees.wnids()[:999]:
            (tmp_path / "imagenet" / part / wnid).mkdir(parents=True)
    with pytest.raises(ValueError, match="999 class folders in .*, expected 1000, .*'n15075141'"):
        open_split("ImageNet", tmp_path, "test")
    (tmp_path / "imagenet/val/n99999999").mkdir()
    with pytest.raises(ValueError, match="1000 class folders in .*, expected 1000, .*'n15075141'"):
        open_split("ImageNet", tmp_path, "test")


def test_cifar_files_of_python_2_are_read(root, tmp_path):
    """The official files were pickled by Python 2: text is bytes, and flags are 0 and 1."""
    folder = copy("CIFAR10", root, tmp_path)
    pixels = bytes(range(256)) * 24
    binary = b"U\x04data" + (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR"
        b"(K\x01K\x02M\0\x0c\x86cnumpy\ndtype\n(U\x02u1K\0K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T"
        + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )  # fmt: skip
    content = b"\x80\x02}(" + binary + b"U\x06labels](K\x03K\x08eu."
    (folder / "test_batch").write_bytes(content)
    pictures = open_split("CIFAR10", tmp_path, "test")
    assert pictures.labels.tolist() == [3, 8]
    assert np.asarray(pictures[1])[0, :3, 0].tolist() == [0, 1, 2]


# table and fetching


def test_table_lists_the_thirteen(root, tmp_path):
    lines = fetch.table(root).splitlines()
    assert [line.split()[0] for line in lines[1:14]] == list(NAMES)
    assert all(" yes " in line for line in lines[1:14])
    assert "13 of 13 found" in lines[-1]
    copy("MNIST", root, tmp_path)
    some = fetch.table(tmp_path)
    assert "1 of 13 found" in some
    assert len(re.findall(" no ", "\n".join(some.splitlines()[:14]))) == 12
    assert "- Cars: " in some and "- MNIST: " not in some
    assert "which does not exist" in fetch.table(tmp_path / "nowhere")


def test_command_prints_the_table_and_refuses_imagenet(root, tmp_path, capsys):
    assert main(["data", "--data", str(root)]) == 0
    assert "13 of 13 found" in capsys.readouterr().out
    assert main(["data", "--data", str(root), "--fetch", "MNIST"]) == 0  # is there already
    assert main(["data", "--data", str(tmp_path / "new"), "--fetch", "ImageNet"]) == 1
    said = capsys.readouterr().err
    assert "paintlib: ImageNet is never downloaded: its terms ask each user to agree" in said
    assert not (tmp_path / "new").exists()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def mirror(monkeypatch, source):
    """Let `snapshot_download` copy a local folder; return the list of what is asked for."""
    asked = []

    def snapshot_download(repo_id, *, local_dir, **options):
        asked.append(repo_id)
        shutil.copytree(source, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture(scope="module")
def wds_cars(root, tmp_path_factory):
    """The tree's cars as the mirror has them: tar files of s0000000.jpg and s0000000.cls."""
    hub = tmp_path_factory.mktemp("mirror")
    for part in ("train", "test"):
        (hub / part).mkdir()
        samples = official.StanfordCars(root, part)._samples
        for shard in range(2):
            with tarfile.open(hub / part / f"{shard}.tar", "w") as archive:
                for i in range(shard * 100, 100 if shard == 0 else len(samples)):
                    path, label = samples[i]
                    for kind, content in ("jpg", Path(path).read_bytes()), ("cls", b"%d" % label):
                        member = tarfile.TarInfo(f"s{i:07d}.{kind}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        (hub / part / "nshards.txt").write_text("2\n")
    (hub / "classnames.txt").write_text("\n".join(task("Cars", root).classnames) + "\n")
    return hub


@pytest.fixture
def cars_mirror(wds_cars, monkeypatch):
    restate(monkeypatch, "Cars", train=588, test=196)
    return mirror(monkeypatch, wds_cars)


def test_killed_conversion_of_cars_leaves_nothing_and_resumes_to_the_official_layout(
    root, tmp_path, cars_mirror, monkeypatch
):
    target, samples = tmp_path / "data", fetch._samples

    def killed(folder):
        yield from list(samples(folder))[:150]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("Cars", target)
    assert os.listdir(target) == [".Cars.part"] and "Cars" in missing(NAMES, target)
    fetch.fetch("Cars", target)
    assert identities("Cars", target) == identities("Cars", root)
    ours, original = (open_split("Cars", path, "test") for path in (target, root))
    assert ours[2].tobytes() == original[2].tobytes()
    assert task("Cars", target).classnames == task("Cars", root).classnames
    assert os.listdir(target) == ["stanford_cars"]
    fetch.fetch("Cars", target)  # is there: nothing is asked for
    assert set(cars_mirror) == {"clip-benchmark/wds_cars"} and len(cars_mirror) == 2


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"test": 8041}, "196 pictures in test, expected 8041"),
        ({"classes": 195}, "classes, expected 195"),
    ],
)
def test_fetch_counts_what_a_mirror_gives(facts, match, tmp_path, cars_mirror, monkeypatch):
    restate(monkeypatch, "Cars", **facts)
    with pytest.raises(RuntimeError, match=match):
        fetch.fetch("Cars", tmp_path / "data")
    assert "Cars" in missing(["Cars"], tmp_path / "data")


def test_fetch_resisc45_checks_and_unpacks(root, tmp_path, monkeypatch):
    hub, target = tmp_path / "mirror", tmp_path / "data"
    hub.mkdir()
    with zipfile.ZipFile(hub / "NWPU-RESISC45.zip", "w") as pack:
        for path in sorted((root / "NWPU-RESISC45").rglob("*.jpg")):
            pack.write(path, path.relative_to(root))
    for part in ("train", "val", "test"):
        shutil.copyfile(root / f"NWPU-RESISC45/resisc45-{part}.txt", hub / f"resisc45-{part}.txt")
    asked = mirror(monkeypatch, hub)
    with pytest.raises(RuntimeError, match=r"NWPU-RESISC45\.zip has MD5 .*expected 75206b2e"):
        fetch.fetch("RESISC45", target)
    assert not (target / ".RESISC45.part/hub/NWPU-RESISC45.zip").exists()
    restate(monkeypatch, "RESISC45", md5={f: md5(hub / f) for f in DATA_SETS["RESISC45"].md5})
    fetch.fetch("RESISC45", target)
    assert identities("RESISC45", target) == identities("RESISC45", root)
    assert set(asked) == {"torchgeo/resisc45"}


@pytest.fixture
def sun_mirror(root, tmp_path, monkeypatch):
    """The archive with a picture too much, and the lists, of which one picture may be lost."""
    hub = tmp_path / "mirror"
    hub.mkdir()
    with tarfile.open(hub / "SUN397.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in sorted((root / "SUN397").rglob("*.jpg")):
            archive.add(path, path.relative_to(root))
        archive.add(path, "SUN397/b/balo_hall/sun_zzz.jpg")  # in no list, like most of the archive
        archive.add(root / "SUN397/ClassName.txt", "SUN397/ClassName.txt")
    with zipfile.ZipFile(tmp_path / "Partitions.zip", "w") as pack:
        for file in ("Training_01.txt", "Testing_01.txt"):
            pack.write(root / "SUN397" / file, f"Partitions/{file}")
        pack.writestr("Partitions/Training_02.txt", "/a/none/sun_a.jpg\n")

    def download_url(url, folder, file, md5):
        shutil.copyfile(tmp_path / "Partitions.zip", Path(folder) / file)

    mirror(monkeypatch, hub)
    monkeypatch.setattr(fetch, "download_url", download_url)
    sums = DATA_SETS["SUN397"].md5 | {"SUN397.tar.gz": md5(hub / "SUN397.tar.gz")}
    restate(monkeypatch, "SUN397", md5=sums)
    return tmp_path / "Partitions.zip"


def test_fetch_sun397_keeps_partition_1(root, tmp_path, sun_mirror):
    target = tmp_path / "data"
    fetch.fetch("SUN397", target)
    assert identities("SUN397", target) == identities("SUN397", root)
    assert not (target / "SUN397/b/balo_hall/sun_zzz.jpg").exists()
    assert not (target / "SUN397/Training_02.txt").exists()


def test_fetch_names_a_listed_picture_that_the_archive_lacks(tmp_path, sun_mirror):
    with zipfile.ZipFile(sun_mirror, "w") as pack:
        for file in DATA_SETS["SUN397"].lists:
            pack.writestr(file, "/b/balo_hall/sun_none.jpg\n" * 2)
    with pytest.raises(RuntimeError, match=r"SUN397 failed .*absent .*balo_hall/sun_none\.jpg"):
        fetch.fetch("SUN397", tmp_path / "data")
    assert "SUN397" in missing(["SUN397"], tmp_path / "data")


def test_fetch_goes_through_torchvision_and_discards_what_was_half_unpacked(
    root, tmp_path, monkeypatch
):
    calls = []

    class DTD:
        def __init__(self, folder, download):
            assert download
            base = Path(folder) / "dtd"
            base.mkdir(exist_ok=True)
            calls.append(base)
            (base / "dtd.tar.gz").write_bytes(b"archive")
            if (base / "dtd").is_dir():
                return  # as torchvision does: a folder counts as whole
            shutil.copytree(root / "dtd/dtd/labels", base / "dtd/labels")
            (base / "dtd/imdb.mat").touch()
            if len(calls) == 1:
                raise KeyboardInterrupt
            shutil.copytree(root / "dtd/dtd/images", base / "dtd/images")

    monkeypatch.setattr(official, "DTD", DTD)
    target = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("DTD", target)
    assert "DTD" in missing(["DTD"], target)
    fetch.fetch("DTD", target)
    assert len(calls) == 2 and missing(["DTD"], target) == {}
    assert os.listdir(target) == ["dtd"]
    assert not (target / "dtd/dtd.tar.gz").exists()


def test_fetch_asks_torchvision_for_both_parts(root, tmp_path, monkeypatch):
    def svhn(folder, split, download):
        shutil.copyfile(root / f"{split}_32x32.mat", Path(folder) / f"{split}_32x32.mat")

    monkeypatch.setattr(official, "SVHN", svhn)
    fetch.fetch("SVHN", tmp_path / "data")
    assert missing(["SVHN"], tmp_path / "data") == {}


@pytest.mark.parametrize("name", ["Cars", "MNIST"])
def test_fetch_says_what_failed_and_how_to_go_on(name, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(official, "MNIST", fail)
    with pytest.raises(RuntimeError, match=rf"{name} failed .*no route.*same command.*By hand: "):
        fetch.fetch(name, tmp_path)


def test_fetch_does_not_touch_what_stands_there(root, tmp_path):
    folder = copy("MNIST", root, tmp_path)
    (folder / "raw/t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=r"MNIST is not a whole data set .*t10k-images.*move it"):
        fetch.fetch("MNIST", tmp_path)


def test_fetch_unpacks_the_users_imagenet(tmp_path, monkeypatch):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    (tmp_path / "a.JPEG").write_bytes(trees.encoded(1))
    for wnid in ("n01440764", "n15075141"):
        with tarfile.open(tmp_path / f"{wnid}.tar", "w") as archive:
            archive.add(tmp_path / "a.JPEG", f"{wnid}_1.JPEG")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        archive.add(tmp_path / "n01440764.tar", "n01440764.tar")
        archive.add(tmp_path / "n15075141.tar", "n15075141.tar")
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in (1, 2):
            archive.add(tmp_path / "a.JPEG", f"ILSVRC2012_val_{number:08d}.JPEG")
    with pytest.raises(RuntimeError, match=r"ILSVRC2012_img_train\.tar .*corrupted"):
        fetch.fetch("ImageNet", tmp_path)
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *args: None)
    meta = ({"n01440764": ("tench",), "n15075141": ("paper",)}, ["n15075141", "n01440764"])
    monkeypatch.setattr(
        imagenet, "parse_devkit_archive", lambda path: torch.save(meta, Path(path) / "meta.bin")
    )
    with monkeypatch.context() as patch:
        unpack = imagenet.extract_archive

        def killed(source, *args, **options):
            unpack(source, *args, **options)
            raise KeyboardInterrupt

        patch.setattr(imagenet, "extract_archive", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("ImageNet", tmp_path)
    assert not (folder / "train").exists()
    fetch.fetch("ImageNet", tmp_path)
    assert missing(["ImageNet"], tmp_path) == {}
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.JPEG"))
    assert found == [
        "train/n01440764/n01440764_1.JPEG",
        "train/n15075141/n15075141_1.JPEG",
        "val/n01440764/ILSVRC2012_val_00000002.JPEG",
        "val/n15075141/ILSVRC2012_val_00000001.JPEG",
    ]
