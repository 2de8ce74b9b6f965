"""The 13 real data sets: generated trees in the official layouts stand for the real files."""

import builtins
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

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
    described, (classes, templates) = task(name), COUNTS[name]
    assert described.name == name
    assert len(described.classnames) == classes == DATA_SETS[name].classes
    assert len(described.templates) == len(set(described.templates)) == templates
    assert DATA_SETS[name].prompts == classes * templates
    for classname in described.classnames:
        assert classname == classname.strip() and not re.search(" - |  ", classname)
        assert "_" not in classname or name == "CIFAR100"
        if name not in ("ImageNet", "Cars"):  # which have "CRT monitor", "ActiveHybrid"
            assert not re.search(r"[a-z][A-Z]", classname)


def test_names_of_cifar100_are_those_of_paint_or_spaced():
    """torchvision has underscores in nine of the hundred, and PAINT passes them on."""
    ours, spaced = task("CIFAR100").classnames, task("CIFAR100", spaced=True).classnames
    differ = [name for name, other in zip(ours, spaced, strict=True) if name != other]
    assert len(differ) == 9 and "pickup_truck" in differ and "lawn_mower" in differ
    assert [name.replace("_", " ") for name in ours] == list(spaced)


def test_imagenet_repeats_no_name_and_changes_no_other(root):
    ours, theirs = task("ImageNet").classnames, open_clip.IMAGENET_CLASSNAMES
    assert [i for i in range(1000) if ours[i] != theirs[i]] in ([], [744, 836])
    assert (ours[657], ours[744], ours[836], ours[837]) == (
        "missile", "projectile", "sunglass", "sunglasses")  # fmt: skip
    assert "a photo of a {}." in task("ImageNet").templates


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
        assert task(name).templates[place] == template


def test_class_names_stand_in_the_published_order(root):
    """The generated trees cannot tell: they take their order from here."""
    for name in ("CIFAR10", "CIFAR100", "STL10", "DTD", "RESISC45"):  # alphabetical
        folders = [word.replace(" ", "_") for word in task(name).classnames]
        assert folders == sorted(folders)
    signs = task("GTSRB").classnames
    for label, word in ((0, "20 kph"), (8, "120 kph"), (12, "priority"), (13, "yield"),
                        (14, "stop"), (17, "no entry"), (25, "road work"), (31, "deer"),
                        (38, "keep right"), (40, "traffic circle"), (42, "trucks")):  # fmt: skip
        assert word in signs[label]
    assert list(task("FashionMNIST").classnames) == official.FashionMNIST.classes
    assert task("MNIST").classnames == task("SVHN").classnames == tuple("0123456789")
    assert task("EuroSAT").classnames[6:] == (
        "permanent crop land", "residential buildings or homes or apartments", "river",
        "lake or sea")  # fmt: skip


def test_scene_names_drop_letter_and_slashes(root):
    names = task("SUN397").classnames
    pictures = open_split("SUN397", root, "test")
    deep = [os.fsdecode(file) for file in pictures.content if file.count(b"/") == 3]
    assert len(deep) > 50
    for file, label in zip(pictures.content, pictures.labels.tolist(), strict=True):
        folders = os.fsdecode(file).split("/")[1:-1]
        assert names[label] == " ".join(folders).replace("_", " ")


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
        pictures, names = open_split(name, root, "test"), task(name).classnames
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


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("DTD", {"dtd/dtd/images": "dtd/images", "dtd/dtd/labels": "dtd/labels"}),
        ("EuroSAT", {"eurosat/2750": "EuroSAT_RGB"}),
        ("GTSRB", {"gtsrb/GTSRB": "GTSRB", "gtsrb/GT-final_test.csv": "GT-final_test.csv"}),
        ("MNIST", {"MNIST/raw": "mnist"}),
        ("RESISC45", {"NWPU-RESISC45": "resisc45"}),
    ],
)
def test_layouts_of_people_who_unpack_by_hand_are_read(name, moves, root, tmp_path):
    copy(name, root, tmp_path / "copy")
    for source, target in moves.items():
        (tmp_path / "data" / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / source).rename(tmp_path / "data" / target)
    ours, theirs = (open_split(name, path, "test") for path in (root, tmp_path / "data"))
    assert torch.equal(ours.labels, theirs.labels)
    assert ours[3].tobytes() == theirs[3].tobytes()


def test_packed_files_are_named_with_the_command_that_unpacks_them(root, tmp_path):
    folder = copy("MNIST", root, tmp_path) / "raw"
    for file in list(folder.iterdir()):
        file.rename(f"{file}.gz")
    reason = missing(["MNIST"], tmp_path)["MNIST"]
    assert f"train-images-idx3-ubyte.gz is not unpacked: `gunzip -k {folder}/*.gz`" in reason


def test_what_macos_leaves_beside_a_picture_is_no_picture(root, tmp_path):
    copy("EuroSAT", root, tmp_path)
    copy("GTSRB", root, tmp_path)
    before = {name: identities(name, tmp_path) for name in ("EuroSAT", "GTSRB")}
    (tmp_path / "eurosat/2750/River/._River_1.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / "gtsrb/GTSRB/Training/00003/._00000_00000.ppm").write_bytes(b"\0\5\x16\7")
    assert {name: identities(name, tmp_path) for name in before} == before


def test_a_name_that_the_locale_cannot_spell_is_read(root, tmp_path):
    """Under LC_ALL=C an accent is such a name; a byte that is no UTF-8 is one everywhere."""
    copy("EuroSAT", root, tmp_path)
    copy("DTD", root, tmp_path)
    odd = os.fsdecode(b"Rivi\xe8re_3.jpg")
    river, banded = tmp_path / "eurosat/2750/River", tmp_path / "dtd/dtd/images/banded"
    (river / "River_3.jpg").rename(river / odd)
    [last, *_] = sorted(banded.iterdir(), reverse=True)  # the test picture
    edit(
        tmp_path / "dtd/dtd/labels/test1.txt",
        lambda text: text.replace(last.name.encode(), os.fsencode(odd)),
    )
    last.rename(banded / odd)
    for name in ("EuroSAT", "DTD"):
        names = []
        for split in SPLITS:
            pictures = open_split(name, tmp_path, split)
            names += [os.fsdecode(file).rpartition("/")[2] for file in pictures.content]
            assert all(pictures[i] for i in range(len(pictures)))
        assert odd in names or name == "EuroSAT"  # a tenth of which is in no split


# splits


def test_tracks_of_gtsrb_are_held_out_whole(root):
    split = {
        kept: {os.fsdecode(file).rpartition("_")[0] for file in pictures.content}
        for kept in ("train", "validation")
        for pictures in [open_split("GTSRB", root, kept, tracks=True)]
    }
    assert not split["train"] & split["validation"]
    assert len(split["train"] | split["validation"]) == 2 * 43
    held = open_split("GTSRB", root, "validation", tracks=True)
    assert 12 <= len(held) <= 13  # a tenth of 129 pictures, to the end of a track of two
    assert all(trees.class_of(held[i]) % 10 == int(held.labels[i]) % 10 for i in range(len(held)))
    usual = open_split("GTSRB", root, "validation")  # by picture: sisters stay behind
    sisters = {os.fsdecode(file).rpartition("_")[0] for file in usual.content}
    train = {os.fsdecode(f).rpartition("_")[0] for f in open_split("GTSRB", root, "train").content}
    assert sisters & train


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
        lambda: task("Imagenet"),
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
    with pytest.raises(ValueError, match=rf"{name}: 1 of 4 paths are absent, first: .*/{file};"):
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
        ("STL10", "stl10_binary/test_X.bin", halved, "test_X.bin cannot be read"),
        ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte", halved, "idx3-ubyte cannot be read"),
        ("SVHN", "test_32x32.mat", halved, "test_32x32.mat cannot be read"),
        ("Cars", "stanford_cars/cars_test_annos_withlabels.mat", halved,
         "cars_test_annos_withlabels.mat cannot be"),
        ("Cars", "stanford_cars/devkit/cars_meta.mat", halved, "cars_meta.mat cannot be"),
        ("GTSRB", "gtsrb/GT-final_test.csv", halved, "GT-final_test.csv cannot be read|GTSRB: "),
        ("DTD", "dtd/dtd/labels/test1.txt", halved, "DTD: "),
        ("GTSRB", "gtsrb/GT-final_test.csv", lambda file: file.replace(b"25;7\n", b"25;43\n"),
         r"GTSRB: 1 labels lie outside 0\.\.42, first: .*has 43"),
        ("STL10", "stl10_binary/test_y.bin", lambda file: b"\0" + file[1:],
         r"STL10: 1 labels lie outside 0\.\.9, first: picture 0 has -1"),
        ("STL10", "stl10_binary/test_y.bin", lambda file: file[1:], "10 pictures but 9 labels"),
        ("CIFAR10", "cifar-10-batches-py/batches.meta", lambda _: SWAPPED,
         r"CIFAR10: the class names in .*batches\.meta"),
        ("SUN397", "SUN397/Testing_01.txt", lambda file: b"\xef\xbb\xbf" + file,
         r"SUN397: 1 of 397 lines of .*Testing_01\.txt name no class"),
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
    assert all(" in part " in line for line in lines[1:14])
    assert "13 of 13 found" in "".join(lines)
    counts = "80 training and 10 test pictures, officially 21,600 and 2,700"
    assert f"- EuroSAT: {counts}" in lines
    copy("MNIST", root, tmp_path)
    some = fetch.table(tmp_path)
    assert "1 of 13 found" in some
    assert len(re.findall(" no ", "\n".join(some.splitlines()[:14]))) == 12
    assert "- Cars: 5 of 5 paths are absent" in some and "- MNIST: 30 training" in some
    assert "which does not exist" in fetch.table(tmp_path / "nowhere")


def test_command_prints_the_table_and_refuses_imagenet(root, tmp_path, capsys):
    assert main(["data", "--data", str(root)]) == 0
    assert "13 of 13 found" in capsys.readouterr().out
    assert main(["data", "--data", str(root), "--fetch", "MNIST"]) == 0  # is there already
    assert main(["data", "--data", str(tmp_path / "new"), "--fetch", "ImageNet"]) == 1
    said = capsys.readouterr().err
    assert "paintlib: ImageNet is never downloaded: its terms ask each user to agree" in said
    assert not (tmp_path / "new").exists()


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


def test_fetch_into_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "data").touch()  # root may write anywhere, so a file stands in for the folder
    with pytest.raises(ValueError, match=r"data cannot be written to .*--data names another"):
        fetch.fetch("MNIST", tmp_path / "data")


@pytest.mark.parametrize("name", ["MNIST", "SVHN"])
def test_fetch_says_what_failed_and_how_to_go_on(name, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(official, name, fail)
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


def test_kaggles_imagenet_is_read_by_its_table(tmp_path):
    kaggle = tmp_path / "ILSVRC/Data/CLS-LOC"
    for wnid in trees.wnids():
        (kaggle / "train" / wnid).mkdir(parents=True)
        (kaggle / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(b"")
    (kaggle / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    for number, wnid in enumerate(trees.wnids()[::-1], start=1):
        picture = f"ILSVRC2012_val_{number:08d}"
        (kaggle / "val" / f"{picture}.JPEG").write_bytes(b"")
        rows.append(f"{picture},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    assert missing(["ImageNet"], tmp_path) == {}
    test = open_split("ImageNet", tmp_path, "test")
    assert test.labels.tolist() == list(range(1000))[::-1]
    assert os.fsdecode(test.content[0]) == "ILSVRC2012_val_00000001.JPEG"
