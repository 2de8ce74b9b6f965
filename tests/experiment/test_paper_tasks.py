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
import pytest
import torch
import trees
from scipy.io import loadmat, savemat
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
TEMPLATES = {"ImageNet": 80, "CIFAR10": 18, "CIFAR100": 18, "STL10": 2, "Cars": 8, "DTD": 8,
             "EuroSAT": 3, "GTSRB": 3, "MNIST": 1, "RESISC45": 18, "SUN397": 2, "SVHN": 1,
             "FashionMNIST": 8}  # fmt: skip
CLASSES = {"ImageNet": 1000, "CIFAR10": 10, "CIFAR100": 100, "STL10": 10, "Cars": 196, "DTD": 47,
           "EuroSAT": 10, "GTSRB": 43, "MNIST": 10, "RESISC45": 45, "SUN397": 397, "SVHN": 10,
           "FashionMNIST": 10}  # fmt: skip


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tree of all data sets, read only."""
    folder = tmp_path_factory.mktemp("data")
    trees.write(folder, ["ImageNet"], per_class=1)
    trees.write(folder, NAMES[1:])
    return folder


def restate(monkeypatch: pytest.MonkeyPatch, name: str, **facts: object) -> None:
    """Let the table say something else of one data set."""
    monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], **facts))


def copy(name: str, root: Path, target: Path) -> Path:
    """Copy one data set so that a test may spoil it; return the folder or first file."""
    target.mkdir(exist_ok=True)
    for top in fetch._tops(name):
        source = root / top
        if source.is_dir():
            shutil.copytree(source, target / top)
        else:
            shutil.copyfile(source, target / top)
    return target / fetch._tops(name)[0]


# --- class names and prompts -----------------------------------------------------------------


def test_the_table_is_read_without_torch_and_has_the_tasks_of_the_profile() -> None:
    assert tuple(DATA_SETS) == SUPPORTED + PATCHING
    code = "import sys, experiment.real.facts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_tasks_have_the_published_counts_and_readable_names(name: str, root: Path) -> None:
    described = task(name, root)
    assert (described.name, described.label) == (name, name)
    assert len(described.classnames) == CLASSES[name] == DATA_SETS[name].classes
    assert len(described.templates) == len(set(described.templates)) == TEMPLATES[name]
    assert DATA_SETS[name].prompts == CLASSES[name] * TEMPLATES[name]
    for classname in described.classnames:
        assert classname == classname.strip()
        assert "_" not in classname
        assert " - " not in classname and "  " not in classname
        if name != "ImageNet":  # which has "CRT monitor" and the like
            assert not re.search(r"[a-z][A-Z]", classname)


def test_tasks_of_most_data_sets_need_no_disk(tmp_path: Path) -> None:
    for name in set(NAMES) - {"Cars", "SUN397"}:
        assert task(name, tmp_path).name == name
    for name in ("Cars", "SUN397"):
        with pytest.raises(ValueError, match=rf"{name}: .*absent.*python -m experiment data --d"):
            task(name, tmp_path)


def test_imagenet_repeats_no_name_and_changes_no_other(root: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    ours, theirs = task("ImageNet", root).classnames, open_clip.IMAGENET_CLASSNAMES
    assert [i for i in range(1000) if ours[i] != theirs[i]] in ([], [744, 836])
    assert (ours[657], ours[744], ours[836], ours[837]) == (
        "missile", "projectile", "sunglass", "sunglasses")  # fmt: skip
    assert "a photo of a {}." in task("ImageNet", root).templates


def test_prompts_are_those_of_clip(root: Path) -> None:
    """Spot checks of prompts that are built from parts."""
    cifar = task("CIFAR10", root).templates
    assert cifar[0] == "a photo of a {}."
    assert cifar[2] == "a black and white photo of a {}."
    assert cifar[8] == "a photo of a big {}."
    assert cifar[-1] == "a photo of the big {}."
    assert task("DTD", root).templates[5] == "a photo of the {} pattern."
    assert task("EuroSAT", root).templates[0] == "a centered satellite photo of {}."
    assert task("GTSRB", root).templates[2] == 'a close up photo of a "{}" traffic sign.'
    assert task("RESISC45", root).templates[7] == "aerial imagery of a {}."
    assert task("FashionMNIST", root).templates[7] == "a thumbnail of the {}."
    assert task("MNIST", root).prompts("7") == ('a photo of the number: "7".',)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "STL10", "DTD", "RESISC45"])
def test_class_names_stand_in_the_published_order(name: str, root: Path) -> None:
    """The generated trees cannot tell: they take their order from here. It is alphabetical."""
    folders = [word.replace(" ", "_") for word in task(name, root).classnames]
    assert folders == sorted(folders)


def test_class_names_of_signs_clothes_and_land_stand_in_the_published_order(root: Path) -> None:
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


def test_scene_names_drop_letter_and_slashes(root: Path) -> None:
    lines = (root / "SUN397/ClassName.txt").read_text().split()
    deep = next(i for i, line in enumerate(lines) if line.endswith("_house/indoor"))
    word = lines[deep].split("/")[2].removesuffix("_house")
    assert task("SUN397", root).classnames[deep] == f"{word} house indoor"


# --- pictures and labels ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_the_class_of_their_label(name: str, root: Path) -> None:
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


def test_class_names_match_the_folders_of_the_pictures(root: Path) -> None:
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
def test_pixels_of_arrays_are_exact_and_upright(
    name: str, side: int, serial: int, root: Path
) -> None:
    pictures = open_split(name, root, "test")
    expected, _ = trees.arrays(CLASSES[name], 1, serial, side)
    if side == 28:
        expected = expected[..., :1].repeat(3, axis=-1)
    assert all(np.array_equal(pictures[i], expected[i]) for i in range(len(pictures)))


def test_svhn_counts_its_zeros_as_zero_and_stl10_from_one(root: Path) -> None:
    assert loadmat(root / "test_32x32.mat")["y"].max() == 10
    assert sorted(open_split("SVHN", root, "test").labels.tolist()) == list(range(10))
    assert np.fromfile(root / "stl10_binary/test_y.bin", np.uint8).min() == 1
    assert sorted(open_split("STL10", root, "test").labels.tolist()) == list(range(10))


def test_dtd_reads_the_merged_layout(root: Path, tmp_path: Path) -> None:
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


def test_imagenet_may_be_the_data_folder_itself(root: Path) -> None:
    inside, outside = (open_split("ImageNet", path, "test") for path in (root / "imagenet", root))
    assert inside.identity == outside.identity


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 7, 30, 3760, 26640, 60_000])
def test_validation_is_drawn_as_random_split_does(n: int) -> None:
    held = max(1, min(n // 10, 5000))
    generator = torch.Generator().manual_seed(0)
    expected = random_split(range(n), [n - held, held], generator=generator)  # type: ignore[arg-type]
    for ours, theirs in zip(datasets.validation_indices(n), expected, strict=True):
        assert ours.tolist() == list(theirs.indices)


def test_validation_of_mnist_begins_where_the_convention_does() -> None:
    training, validation = datasets.validation_indices(60_000)
    assert (training[0], len(training), len(validation)) == (36044, 55_000, 5000)


def test_validation_refuses_a_single_picture() -> None:
    with pytest.raises(ValueError, match="1 training pictures cannot be divided"):
        datasets.validation_indices(1)


def test_eurosat_splits_as_paint_does() -> None:
    training, test = datasets.eurosat_indices(27_000)
    assert (len(training), len(test)) == (21_600, 2700)
    assert len(set(training) | set(test)) == 24_300  # a tenth is held out and not used
    order = torch.randperm(27_000, generator=torch.Generator().manual_seed(0)).tolist()
    assert training.tolist() == order[:21_600]
    assert test.tolist() == order[24_300:]


@pytest.mark.parametrize("name", ["CIFAR100", "Cars", "DTD", "EuroSAT", "GTSRB", "RESISC45"])
def test_splits_are_disjoint_and_complete(name: str, root: Path) -> None:
    splits = [open_split(name, root, split) for split in SPLITS]
    keys = [
        {p.content[i].tobytes() for i in range(len(p))}  # paths, or pixels
        for p in splits
    ]
    assert [len(key) for key in keys] == [len(p) for p in splits]
    assert len(set.union(*keys)) == sum(map(len, keys))
    training = len(splits[0]) + len(splits[1])
    expected = {"EuroSAT": 80}.get(name, 3 * CLASSES[name])
    assert training == expected
    assert len(splits[2]) == (10 if name == "EuroSAT" else CLASSES[name])


# --- identity --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "DTD", "SUN397"])
def test_identity_is_that_of_the_pictures_not_of_the_place(
    name: str, root: Path, tmp_path: Path
) -> None:
    copy(name, root, tmp_path)
    ids = [open_split(name, root, split).identity for split in SPLITS]
    assert ids == [open_split(name, tmp_path, split).identity for split in SPLITS]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", identity) for identity in ids)


def test_identity_changes_with_a_file_and_with_a_label(root: Path, tmp_path: Path) -> None:
    folder = copy("GTSRB", root, tmp_path)
    before = open_split("GTSRB", tmp_path, "test").identity
    picture = folder / "GTSRB/Final_Test/Images/00000.ppm"
    content = picture.read_bytes()
    picture.write_bytes(content + b"\0")
    longer = open_split("GTSRB", tmp_path, "test").identity
    picture.write_bytes(content)
    table = folder / "GT-final_test.csv"
    table.write_text(table.read_text().replace("35;25;0\n", "35;25;1\n"))
    relabelled = open_split("GTSRB", tmp_path, "test").identity
    assert len({before, longer, relabelled}) == 3


def test_identity_changes_with_a_pixel_and_with_a_label(root: Path, tmp_path: Path) -> None:
    raw = copy("MNIST", root, tmp_path) / "raw"
    seen = {open_split("MNIST", tmp_path, "test").identity}
    for file in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        content = bytearray((raw / file).read_bytes())
        content[-1] -= 1
        (raw / file).write_bytes(content)
        seen.add(open_split("MNIST", tmp_path, "test").identity)
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["STL10", "RESISC45"])
def test_pictures_survive_pickling(name: str, root: Path) -> None:
    pictures = open_split(name, root, "validation")
    again = pickle.loads(pickle.dumps(pictures))
    assert again.identity == pictures.identity
    assert torch.equal(again.labels, pictures.labels)
    assert again[1].tobytes() == pictures[1].tobytes()


# --- errors ----------------------------------------------------------------------------------


def test_unknown_names_list_the_known(root: Path) -> None:
    match = r"'Imagenet'.*ImageNet, CIFAR10.*FashionMNIST"
    with pytest.raises(ValueError, match=match):
        open_split("Imagenet", root, "test")
    with pytest.raises(ValueError, match=match):
        task("Imagenet", root)
    with pytest.raises(ValueError, match=match):
        missing(["Imagenet"], root)
    with pytest.raises(ValueError, match=match):
        fetch.fetch("Imagenet", root)
    with pytest.raises(ValueError, match=r"'val'.*train, validation, test"):
        open_split("MNIST", root, "val")


def test_missing_names_all_at_once(root: Path, tmp_path: Path) -> None:
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


def test_missing_opens_no_picture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("opened a file")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert missing(NAMES, root) == {}


@pytest.mark.parametrize("file", ["resisc45-train.txt", "Testing_01.txt"])
def test_missing_split_lists_are_named(file: str, root: Path, tmp_path: Path) -> None:
    name = "RESISC45" if "resisc" in file else "SUN397"
    folder = copy(name, root, tmp_path)
    (folder / file).rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=rf"{name}: no list {file} of the official split"):
        open_split(name, tmp_path, "test")
    other = tmp_path if name == "RESISC45" else tmp_path / "SUN397/Partitions"
    other.mkdir(exist_ok=True)
    (tmp_path / "kept").rename(other / file)
    for split in SPLITS:
        assert open_split(name, tmp_path, split).identity == open_split(name, root, split).identity


def test_corrupt_picture_is_named(root: Path, tmp_path: Path) -> None:
    folder = copy("EuroSAT", root, tmp_path)
    pictures = open_split("EuroSAT", tmp_path, "test")
    path = folder / "2750" / os.fsdecode(pictures.content[3])
    for content in (b"not a picture", path.read_bytes()[:200], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"picture 3 cannot be read: .*{path.name}.*replace"):
            pictures[3]
    path.unlink()
    with pytest.raises(ValueError, match=rf"picture 3 cannot be read: .*{path.name}"):
        pictures[3]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("CIFAR10", "cifar-10-batches-py/test_batch"),
        ("CIFAR100", "cifar-100-python/meta"),
        ("STL10", "stl10_binary/test_X.bin"),
        ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte"),
        ("SVHN", "test_32x32.mat"),
        ("Cars", "stanford_cars/cars_test_annos_withlabels.mat"),
        ("GTSRB", "gtsrb/GT-final_test.csv"),
        ("DTD", "dtd/dtd/labels/test1.txt"),
    ],
)
def test_truncated_files_are_named(name: str, file: str, root: Path, tmp_path: Path) -> None:
    copy(name, root, tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])
    place = re.escape(str(tmp_path / Path(file).parts[0]))
    with pytest.raises(ValueError, match=rf"{place}|{name}: "):
        open_split(name, tmp_path, "test")


def test_labels_out_of_range_are_refused(root: Path, tmp_path: Path) -> None:
    folder = copy("GTSRB", root, tmp_path)
    table = folder / "GT-final_test.csv"
    table.write_text(table.read_text().replace("35;25;7\n", "35;25;43\n"))
    with pytest.raises(ValueError, match=r"GTSRB: 1 labels lie outside 0\.\.42, first: .*has 43"):
        open_split("GTSRB", tmp_path, "test")
    labels = copy("STL10", root, tmp_path) / "test_y.bin"
    labels.write_bytes(b"\0" + labels.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"STL10: 1 labels lie outside 0\.\.9"):
        open_split("STL10", tmp_path, "test")
    file = copy("SVHN", root, tmp_path).parent / "test_32x32.mat"
    content = loadmat(file)
    savemat(file, {"X": content["X"], "y": content["y"][1:]})
    with pytest.raises(ValueError, match="SVHN: 10 pictures but 9 labels"):
        open_split("SVHN", tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "folder", "match"),
    [
        ("EuroSAT", "eurosat/2750/River", "9 class folders .* expected 10, .*'River'"),
        ("GTSRB", "gtsrb/GTSRB/Training/00007", "42 class folders .* expected 43, .*'00007'"),
        ("RESISC45", "NWPU-RESISC45/lake", "3 of 122 listed pictures are absent .*lake_00"),
    ],
)
def test_lost_class_folders_are_refused(
    name: str, folder: str, match: str, root: Path, tmp_path: Path
) -> None:
    copy(name, root, tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(ValueError, match=match):
        open_split(name, tmp_path, "train")


def test_imagenet_refuses_other_folders(root: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for wnid in trees.wnids()[:999]:
            (tmp_path / "imagenet" / part / wnid).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"999 folders in .*n01440764 to n13133613; .*n15075141"):
        open_split("ImageNet", tmp_path, "test")
    (tmp_path / "imagenet/val/n99999999").mkdir()
    with pytest.raises(ValueError, match=r"1000 folders in .*n99999999; expected the 1000"):
        open_split("ImageNet", tmp_path, "test")


def test_other_class_names_on_disk_are_refused(root: Path, tmp_path: Path) -> None:
    folder = copy("CIFAR10", root, tmp_path)
    names = trees._underscored("CIFAR10")
    trees._pickle(folder / "batches.meta", {"label_names": names[::-1]})
    with pytest.raises(ValueError, match=r"CIFAR10: the class names in .*batches\.meta"):
        open_split("CIFAR10", tmp_path, "test")
    (copy("SUN397", root, tmp_path) / "ClassName.txt").write_text("/a/abbey\n")
    with pytest.raises(ValueError, match=r"ClassName\.txt names 1 classes, expected 397"):
        task("SUN397", tmp_path)
    with pytest.raises(ValueError, match=r"ClassName\.txt names 1 classes, expected 397"):
        open_split("SUN397", tmp_path, "test")


def test_cifar_files_run_no_code(root: Path, tmp_path: Path) -> None:
    class Spoilt:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = copy("CIFAR10", root, tmp_path)
    trees._pickle(folder / "test_batch", {"data": Spoilt(), "labels": []})
    with pytest.raises(ValueError, match=r"test_batch cannot be read .*mkdir has no place"):
        open_split("CIFAR10", tmp_path, "test")
    assert not (tmp_path / "ran").exists()


def test_cifar_files_of_python_2_are_read(root: Path, tmp_path: Path) -> None:
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


# --- table and fetching ----------------------------------------------------------------------


def test_table_lists_the_thirteen(root: Path, tmp_path: Path) -> None:
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


def test_command_prints_the_table_and_refuses_imagenet(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "--data", str(root)]) == 0
    assert "13 of 13 found" in capsys.readouterr().out
    assert main(["data", "--data", str(root), "--fetch", "MNIST"]) == 0  # is there already
    assert main(["data", "--data", str(tmp_path), "--fetch", "ImageNet"]) == 1
    assert "paintlib: ImageNet is never downloaded" in capsys.readouterr().err


def test_fetch_refuses_imagenet_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never downloaded: its terms ask each user to agree"):
        fetch.fetch("ImageNet", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def mirror(monkeypatch: pytest.MonkeyPatch, source: Path) -> list[str]:
    """Let `snapshot_download` copy a local folder; return the list of what is asked for."""
    asked: list[str] = []

    def snapshot_download(repo_id: str, *, local_dir: Path, **options: object) -> str:
        asked.append(repo_id)
        shutil.copytree(source, local_dir, dirs_exist_ok=True)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture(scope="module")
def wds_cars(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def cars_mirror(wds_cars: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    restate(monkeypatch, "Cars", train=588, test=196)
    return mirror(monkeypatch, wds_cars)


def test_fetch_turns_the_mirror_of_cars_into_the_official_layout(
    root: Path, tmp_path: Path, cars_mirror: list[str]
) -> None:
    target = tmp_path / "data"
    assert fetch.fetch("Cars", target) == target
    for split in SPLITS:
        ours, original = (open_split("Cars", path, split) for path in (target, root))
        assert ours.identity == original.identity
        assert ours[2].tobytes() == original[2].tobytes()
    assert task("Cars", target).classnames == task("Cars", root).classnames
    assert [path.name for path in target.iterdir()] == ["stanford_cars"]
    fetch.fetch("Cars", target)  # is there: nothing is asked for
    assert cars_mirror == ["clip-benchmark/wds_cars"]


def test_killed_conversion_leaves_nothing_and_resumes(
    tmp_path: Path, cars_mirror: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data"
    samples = fetch._samples

    def killed(folder: Path):
        yield from list(samples(folder))[:150]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("Cars", target)
    assert [path.name for path in target.iterdir()] == [".Cars.part"]
    assert "Cars" in missing(NAMES, target)
    fetch.fetch("Cars", target)
    assert [path.name for path in target.iterdir()] == ["stanford_cars"]


def test_fetch_counts_what_a_mirror_gives(
    tmp_path: Path, cars_mirror: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    restate(monkeypatch, "Cars", test=8041)
    with pytest.raises(RuntimeError, match="196 pictures in test, expected 8041"):
        fetch.fetch("Cars", tmp_path / "data")
    assert "Cars" in missing(["Cars"], tmp_path / "data")


def test_fetch_resisc45_checks_and_unpacks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for split in SPLITS:
        ours, original = (open_split("RESISC45", path, split) for path in (target, root))
        assert ours.identity == original.identity
    assert set(asked) == {"torchgeo/resisc45"}


def test_fetch_sun397_keeps_partition_1(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, target = tmp_path / "mirror", tmp_path / "data"
    hub.mkdir()
    extra = "SUN397/b/balo_hall/sun_zzzzzzzzzzzzzzzz.jpg"  # in no list, like most of the archive
    with tarfile.open(hub / "SUN397.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in sorted((root / "SUN397").rglob("*.jpg")):
            archive.add(path, path.relative_to(root))
        archive.add(path, extra)
        archive.add(root / "SUN397/ClassName.txt", "SUN397/ClassName.txt")
    with zipfile.ZipFile(tmp_path / "Partitions.zip", "w") as pack:
        for file in ("Training_01.txt", "Testing_01.txt"):
            pack.write(root / "SUN397" / file, f"Partitions/{file}")
        pack.writestr("Partitions/Training_02.txt", "/a/none/sun_a.jpg\n")

    def download_url(url: str, folder: str, file: str, md5: str) -> None:
        shutil.copyfile(tmp_path / "Partitions.zip", Path(folder) / file)

    mirror(monkeypatch, hub)
    monkeypatch.setattr(fetch, "download_url", download_url)
    sums = DATA_SETS["SUN397"].md5 | {"SUN397.tar.gz": md5(hub / "SUN397.tar.gz")}
    restate(monkeypatch, "SUN397", md5=sums)
    fetch.fetch("SUN397", target)
    for split in SPLITS:
        ours, original = (open_split("SUN397", path, split) for path in (target, root))
        assert ours.identity == original.identity
    assert not (target / extra).exists()
    assert not (target / "SUN397/Training_02.txt").exists()


def test_fetch_goes_through_torchvision_and_discards_what_was_half_unpacked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class DTD:
        def __init__(self, folder: str, download: bool) -> None:
            assert download
            base = Path(folder) / "dtd"
            base.mkdir(exist_ok=True)
            calls.append("kept" if (base / "dtd.tar.gz").exists() else "downloaded")
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
    assert calls == ["downloaded", "kept"]
    assert missing(["DTD"], target) == {}
    assert [path.name for path in target.iterdir()] == ["dtd"]
    assert not (target / "dtd/dtd.tar.gz").exists()


def test_fetch_asks_torchvision_for_both_parts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def svhn(folder: str, split: str, download: bool) -> None:
        shutil.copyfile(root / f"{split}_32x32.mat", Path(folder) / f"{split}_32x32.mat")

    monkeypatch.setattr(official, "SVHN", svhn)
    fetch.fetch("SVHN", tmp_path / "data")
    assert missing(["SVHN"], tmp_path / "data") == {}


@pytest.mark.parametrize("name", ["Cars", "MNIST"])
def test_fetch_says_what_failed_and_how_to_go_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(official, "MNIST", fail)
    with pytest.raises(RuntimeError, match=rf"{name} failed .*no route.*same command.*By hand: "):
        fetch.fetch(name, tmp_path)


def test_fetch_does_not_touch_what_stands_there(root: Path, tmp_path: Path) -> None:
    folder = copy("MNIST", root, tmp_path)
    (folder / "raw/t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=r"MNIST is not a whole data set .*t10k-images.*move it"):
        fetch.fetch("MNIST", tmp_path)


def test_fetch_unpacks_the_users_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for wnid in ("n01440764", "n15075141"):
        (tmp_path / "a.JPEG").write_bytes(trees.encoded(1))
        with tarfile.open(tmp_path / f"{wnid}.tar", "w") as archive:
            archive.add(tmp_path / "a.JPEG", f"{wnid}_1.JPEG")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        archive.add(tmp_path / "n01440764.tar", "n01440764.tar")
        archive.add(tmp_path / "n15075141.tar", "n15075141.tar")
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in (1, 2):
            archive.add(tmp_path / "a.JPEG", f"ILSVRC2012_val_{number:08d}.JPEG")
    with pytest.raises(RuntimeError, match=r"img_train\.tar cannot be unpacked: .*corrupted"):
        fetch.fetch("ImageNet", tmp_path)
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *args: None)
    meta = ({"n01440764": ("tench",), "n15075141": ("paper",)}, ["n15075141", "n01440764"])
    monkeypatch.setattr(
        imagenet, "parse_devkit_archive", lambda path: torch.save(meta, Path(path) / "meta.bin")
    )
    with monkeypatch.context() as patch:
        unpack = imagenet.extract_archive

        def killed(source: str, *args: object, **options: object) -> None:
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
