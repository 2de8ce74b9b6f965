"""Class names, prompts and pictures of the 13 data sets, from the official files on disk.

"test" is the official test set, "validation" a tenth of the official training set, at most 5,000
pictures, and "train" is the rest. Of validation sets that a data set brings, DTD's is part of the
training set, RESISC45's is not used. EuroSAT has no official split, see `eurosat_indices`.
"""

import csv
import hashlib
import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.io import loadmat
from torch import Tensor
from torchvision import datasets

from experiment.profiles import refuse_unknown
from experiment.real import facts
from experiment.real.facts import DATA_SETS
from experiment.tasks import SPLITS, Task

COMMAND = ".venv/bin/python -m experiment data --data FOLDER"
KAGGLE = "ILSVRC/Data/CLS-LOC"  # has the test pictures of ImageNet in one folder, and a table
IMAGENET_TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_REMEDY = f"`{COMMAND}` shows what is found, and how to get the rest"
_HARMLESS = ("numpy.ndarray", "numpy._core.multiarray._reconstruct", "_codecs.encode")

# paths of files in a folder, or pixels; then labels
_Content: TypeAlias = Sequence[str] | npt.NDArray[np.uint8]
_Labels: TypeAlias = npt.NDArray[np.int64]
_Read: TypeAlias = tuple[Path, _Content, Sequence[int] | _Labels]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split, decoded when asked for; a broken one is a ValueError."""

    labels: Tensor  # int64 (n,)
    identity: str  # SHA-256 of the labels, with pixels, or with paths and sizes of the files
    folder: Path  # or file, where the pixels came from
    content: npt.NDArray[Any]  # uint8 pixels (n, height, width[, 3]), or paths in `folder` as bytes

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self, rows: Sequence[int]) -> str:
        """Return a SHA-256 of what the files of some pictures hold; pixels are in the identity."""
        digest = hashlib.sha256()
        for index in rows if self.content.dtype != np.uint8 else ():
            with _reading(path := self.folder / os.fsdecode(self.content[index])):
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Image.Image:
        if self.content.dtype == np.uint8:
            return Image.fromarray(self.content[index]).convert("RGB")
        path = self.folder / os.fsdecode(self.content[index])
        try:
            with path.open("rb") as stream, Image.open(stream) as image:
                # straight from a palette to RGB warns where the palette is transparent
                return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"picture {index} cannot be read: {path} ({error}); "
                "replace this file with the one of the original data set"
            ) from error


@cache
def task(name: str, spaced: bool = False) -> Task:
    """Return class names and prompts of one data set.

    CIFAR100's names have underscores, as PAINT took them from torchvision, or are `spaced`.
    ImageNet's come from open_clip, where classes 657 and 744 are both "missile" and 836 and 837
    both "sunglasses"; here 744 is "projectile" and 836 "sunglass", as in WordNet.
    """
    data = facts.get(name)
    classnames, templates = list(data.classnames), data.templates
    if name == "ImageNet":
        import open_clip  # takes seconds, and no other data set needs it

        classnames = list(open_clip.IMAGENET_CLASSNAMES)
        for index, word in ((744, "projectile"), (836, "sunglass")):
            if classnames.count(classnames[index]) > 1:
                classnames[index] = word
        templates = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    elif name == "CIFAR100" and not spaced:
        classnames = [word.replace(" ", "_") for word in classnames]
    return Task(name, tuple(classnames), templates)


def missing(names: Iterable[str], root: Path) -> dict[str, str]:
    """Return what each data set that cannot be read lacks, and the remedy; open no picture."""
    reasons = {}
    for name in names:
        needs = _needs(name, root)
        if absent := [path for path in needs if not path.exists()]:
            lack = f"{len(absent)} of {len(needs)} paths are absent, first: {absent[0]}"
            tar = absent[0].with_name(IMAGENET_TARS.get(absent[0].name, "none"))
            if tar.is_file():
                lack = f"{tar} is not unpacked: `{COMMAND} --fetch ImageNet`"
            elif (packed := absent[0].with_name(f"{absent[0].name}.gz")).is_file():
                lack = f"{packed} is not unpacked: `gunzip -k {packed.parent}/*.gz`"
            reasons[name] = str(_refusal(name, lack if root.is_dir() else f"no folder {root}"))
    return reasons


def fingerprint(name: str, root: Path) -> str:
    """Return a digest of names, sizes and times of all files of a data set; open none."""
    digest = hashlib.sha256()
    for need in _needs(name, root):
        walk = os.walk(need, followlinks=True)
        inside = [os.path.join(folder, file) for folder, _, files in walk for file in files]
        for path in sorted(filter(os.path.exists, inside or [str(need)])):
            seen = os.stat(path)
            what = f"{os.path.relpath(path, root)} {seen.st_size} {seen.st_mtime_ns}\n"
            digest.update(os.fsencode(what))
    return digest.hexdigest()


def deviation(name: str, root: Path) -> str:
    """Say what cannot be read, or how numbers of pictures differ from the official ones, or ""."""
    data = facts.get(name)
    try:
        seen = [len(_whole(name, root, part)[2]) for part in ("train", "test")]
    except ValueError as error:
        return str(error).removeprefix(f"{name}: ").partition("; ")[0]
    if seen == [data.train, data.test]:
        return ""
    counts = "{:,} training and {:,} test pictures".format(*seen)
    return f"{counts}, officially {data.train:,} and {data.test:,}"


def open_split(name: str, root: Path, split: str, tracks: bool = False) -> Pictures:
    """Open one split of a data set; absent, unreadable or other files are a ValueError.

    With `tracks` GTSRB's validation set is made of whole tracks, see `track_indices`.
    """
    refuse_unknown([split], SPLITS, "unknown split")
    folder, content, labels = _whole(name, root, "test" if split == "test" else "train")
    if split == "test":
        return pictures(name, folder, content, labels)
    by_track = tracks and name == "GTSRB"
    divided = track_indices(content, folder) if by_track else validation_indices(len(labels))
    indices = divided[split == "validation"]
    kept = content[indices] if isinstance(content, np.ndarray) else [content[i] for i in indices]
    return pictures(name, folder, kept, labels[indices])


def pictures(name: str, folder: Path, content: _Content, labels: _Labels) -> Pictures:
    """Return pictures with what identifies them; an absent file is a ValueError."""
    if not len(labels):
        raise _refusal(name, f"no pictures in this split of {folder}")
    digest, absent = hashlib.sha256(), []
    if isinstance(content, np.ndarray):
        stored = np.ascontiguousarray(content)
        for part in (repr(stored.shape).encode(), stored.data, labels.data):
            digest.update(part)
    else:
        for file, label in zip(content, labels, strict=True):
            try:
                size = os.stat(f"{folder}{os.sep}{file}").st_size
                digest.update(os.fsencode(f"{file.replace(os.sep, '/')}\0{size}\0{label}\n"))
            except FileNotFoundError:
                absent.append(file)
        # as bytes, which take a fifth of the memory of as many str
        stored = np.array([os.fsencode(file) for file in content])
    if absent:
        count = f"{len(absent)} of {len(content)} listed pictures are absent"
        raise _refusal(name, f"{count} from {folder}, first: {absent[0]}")
    return Pictures(torch.from_numpy(labels), digest.hexdigest(), folder, stored)


def _whole(name: str, root: Path, part: str) -> tuple[Path, _Content, _Labels]:
    """Read an official training or test set, and refuse labels that cannot be right."""
    if reason := missing([name], root):
        raise ValueError(reason[name])
    drawn = root / "hub" / name / part if _is_drawn(name, root) else None
    folder, content, numbers = read_drawn(drawn) if drawn else _READERS[name](name, root, part)
    labels, last = np.asarray(numbers, dtype=np.int64), DATA_SETS[name].classes - 1
    if len(labels) != len(content):
        raise _refusal(name, f"{len(content)} pictures but {len(labels)} labels in {folder}")
    wrong = np.flatnonzero((labels < 0) | (labels > last))
    if len(wrong):
        first = f"picture {wrong[0]} has {labels[wrong[0]]}, in {folder}"
        raise _refusal(name, f"{len(wrong)} labels lie outside 0..{last}, first: {first}")
    return folder, content, labels


def read_drawn(place: Path) -> tuple[Path, _Content, _Labels]:
    """Read what `experiment.real.hub` has drawn into a folder."""
    with _reading(place / "drawn.json"):
        labels = json.loads((place / "drawn.json").read_text(encoding="utf-8"))["labels"]
        return place, list(labels), np.array(list(labels.values()), dtype=np.int64)


def _shuffled(n: int) -> _Labels:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()


def validation_indices(n: int) -> tuple[_Labels, _Labels]:
    """Divide n training pictures as `torch.utils.data.random_split` with seed 0 does."""
    if n < 2:
        raise ValueError(f"{n} training pictures cannot be divided into training and validation")
    order, kept = _shuffled(n), n - facts.held_out(n)
    return order[:kept], order[kept:]


def track_indices(files: _Content, folder: Path) -> tuple[_Labels, _Labels]:
    """Divide GTSRB's training pictures by track, 30 frames of one sign: 00003_00012 is of track 3.

    Whole tracks are held out, drawn with seed 0, until they make the usual number.
    """
    tracks: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        tracks.setdefault(str(file).rpartition("_")[0], []).append(index)
    if len(tracks) < 2 or "" in tracks:
        raise _refusal("GTSRB", f"the names of the files in {folder} tell no tracks")
    names, held = list(tracks), list[int]()
    for row in _shuffled(len(names)):
        if len(held) < facts.held_out(len(files)):
            held += tracks.pop(names[row])
    kept = [index for track in tracks.values() for index in track]
    return np.array(kept, dtype=np.int64), np.array(held, dtype=np.int64)


def eurosat_indices(n: int) -> tuple[_Labels, _Labels]:
    """Return training and test indices of EuroSAT: eight tenths and the last one, seed 0.

    Sizes are PAINT's, 21,600 and 2,700 of 27,000; it says of the draw only that it was random. The
    tenth between them is in the place of PAINT's own validation set and is not used.
    """
    order = _shuffled(n)
    return order[: n - 2 * (n // 10)], order[n - n // 10 :]


def _refusal(name: str, problem: str) -> ValueError:
    return ValueError(f"{name}: {problem}; {_REMEDY}")


def place_of(name: str, root: Path) -> Path:
    """Return the official folder of a data set, or where people who unpack by hand put it."""
    data = facts.get(name)
    if name == "ImageNet":
        own = ("train/n01440764", "val/n01440764", *IMAGENET_TARS.values())
        places = [root / "imagenet", root / "ImageNet", root, root / KAGGLE]
        return next((p for p in places if any((p / o).exists() for o in own)), places[0])
    places = [root / folder for folder in (data.folder, *data.also)]
    return next((place for place in places if (place / data.needs[-1]).exists()), places[0])


def _is_drawn(name: str, root: Path) -> bool:
    official = place_of(name, root) / facts.get(name).needs[-1]
    return (root / "hub" / name).is_dir() and not official.exists()


def _needs(name: str, root: Path) -> list[Path]:
    """Return the files and folders that a data set cannot be read without, its lists last."""
    data, home = facts.get(name), place_of(name, root)
    if _is_drawn(name, root):
        return [root / "hub" / name / part for part in ("train", "test")]
    if name == "DTD" and _dtd_merged(root):
        return [root / "dtd/train", root / "dtd/val"]
    places = [[home / folder / file for folder in data.beside or ["."]] for file in data.lists]
    lists = [next(filter(Path.is_file, paths), paths[0]) for paths in places]
    return [home / need for need in data.needs] + lists


def _dtd_merged(root: Path) -> bool:
    """Whether this is the layout of PAINT's follow-ups: `val` holds the test set."""
    parts = [root / "dtd" / part for part in ("train", "val")]
    return not (place_of("DTD", root) / "images").is_dir() and all(part.is_dir() for part in parts)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turn whatever a broken file makes a reader raise into a `ValueError` that names it."""
    try:
        yield
    except Exception as error:  # torchvision, scipy and pickle raise a dozen kinds
        raise ValueError(
            f"{source} cannot be read ({type(error).__name__}: {error}); "
            f"move it away, then {_REMEDY}"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, text and arrays only, since a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")
        if f"{module}.{name}" == "numpy.dtype":
            return lambda kind, *flags: np.dtype(kind)  # flags are 0 and 1 in old pickles
        if f"{module}.{name}" not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return super().find_class(module, name)


def _cifar(name: str, root: Path, part: str) -> _Read:
    # Not through torchvision: it unpickles without restraint once its checksum holds.
    *train, test, meta = (place_of(name, root) / need for need in DATA_SETS[name].needs)
    kind, pixels, labels = "fine_" if name == "CIFAR100" else "", [], []
    for file in [meta, *train] if part == "train" else [meta, test]:
        with _reading(file), file.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
            if file == meta:
                on_disk = [word.replace("_", " ") for word in content[f"{kind}label_names"]]
            else:
                batch = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
                pixels.append(batch.transpose(0, 2, 3, 1))
                labels += content[f"{kind}labels"]
    _check_names(name, on_disk, meta)
    return meta.parent, np.concatenate(pixels), labels


def _check_names(name: str, on_disk: Sequence[str], file: Path) -> None:
    if tuple(on_disk) != DATA_SETS[name].classnames:
        raise _refusal(name, f"the class names in {file} are not those of {name}")


def _stl10(name: str, root: Path, part: str) -> _Read:
    # Not through torchvision, which sums all 3 GB at each opening.
    home, (pixels, labels) = place_of(name, root), (f"{part}_{kind}.bin" for kind in "Xy")
    with _reading(home / pixels):
        columns = np.fromfile(home / pixels, np.uint8).reshape(-1, 3, 96, 96)
    numbers = np.fromfile(home / labels, np.uint8).astype(np.int64) - 1
    return home, columns.transpose(0, 3, 2, 1), numbers  # from channel, column, row


def _svhn(name: str, root: Path, part: str) -> _Read:
    file = place_of(name, root) / f"{part}_32x32.mat"
    with _reading(file):
        content = loadmat(file)
        labels = content["y"].astype(np.int64).ravel()
        return file, content["X"].transpose(3, 0, 1, 2), np.where(labels == 10, 0, labels)


def _mnist(name: str, root: Path, part: str) -> _Read:
    home, read = place_of(name, root), []
    for file in DATA_SETS[name].needs[:2] if part == "train" else DATA_SETS[name].needs[2:]:
        with _reading(home / file):
            read.append(datasets.mnist.read_sn3_pascalvincent_tensor(str(home / file)).numpy())
    return home, read[0], read[1].astype(np.int64)


def _files(folder: Path, samples: Iterable[tuple[str, int]]) -> _Read:
    above, pairs = f"{folder}{os.sep}", list(samples)
    return folder, [path.removeprefix(above) for path, _ in pairs], [label for _, label in pairs]


def _by_folder(name: str, root: Path, part: str) -> _Read:
    """Read the class folders of ImageNet, EuroSAT, GTSRB, or DTD in its merged layout."""
    folder = root / "dtd" if name == "DTD" else place_of(name, root)
    within = {"EuroSAT": ".", "GTSRB": "GTSRB/Training"}.get(name, part.replace("test", "val"))
    _check_folders(name, folder / within)
    with _reading(folder / within):
        samples = datasets.ImageFolder(folder / within).samples
        # macOS leaves a file ._x beside each x that it unpacks to a foreign disk
        samples = [pair for pair in samples if not os.path.basename(pair[0]).startswith("._")]
        if name == "EuroSAT":
            samples = [samples[i] for i in eurosat_indices(len(samples))[part == "test"]]
        return _files(folder, samples)


def _cars(name: str, root: Path, part: str) -> _Read:
    # Not through torchvision, whose error does not say which of three files it was reading.
    home = place_of(name, root)
    names, *tables = (home / need for need in DATA_SETS[name].needs[:3])
    with _reading(names):
        on_disk = loadmat(names, squeeze_me=True)["class_names"].tolist()
    _check_names(name, [" ".join(str(word).split()) for word in on_disk], names)
    with _reading(table := tables[part == "test"]):
        rows = np.atleast_1d(loadmat(table, squeeze_me=True)["annotations"])
        return _files(home, [(f"cars_{part}/{r['fname']}", int(r["class"]) - 1) for r in rows])


def _gtsrb(name: str, root: Path, part: str) -> _Read:
    home = place_of(name, root)
    if part == "train":
        return _by_folder(name, root, part)
    with _reading(home / "GT-final_test.csv"):
        text = (home / "GT-final_test.csv").read_text(encoding="utf-8")
        rows = csv.DictReader(text.splitlines(), delimiter=";")
        pairs = [(f"GTSRB/Final_Test/Images/{r['Filename']}", int(r["ClassId"])) for r in rows]
        return _files(home, pairs)


@cache
def imagenet_info() -> Any:
    """Return what timm, which open_clip needs too, knows of ImageNet's classes."""
    if sys.modules.get("timm", "") is None:  # left out by `experiment.__main__`
        del sys.modules["timm"]
    return importlib.import_module("timm.data").ImageNetInfo()  # takes seconds


def _imagenet(name: str, root: Path, part: str) -> _Read:
    home, table = place_of(name, root), root / "LOC_val_solution.csv"
    if part == "train" or home != root / KAGGLE:
        return _by_folder(name, root, part)
    label = {word: index for index, word in enumerate(imagenet_info().label_names())}
    with _reading(table):
        rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
        pairs = [(r["ImageId"], r["PredictionString"].split()[0]) for r in rows]
        return _files(home / "val", [(f"{file}.JPEG", label[word]) for file, word in pairs])


def _check_folders(name: str, folder: Path) -> None:
    """Refuse a set that lacks class folders: labels would silently shift."""
    expected = imagenet_info().label_names() if name == "ImageNet" else DATA_SETS[name].folders
    with _reading(folder):
        found = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    if odd := sorted(found ^ set(expected)):
        count = f"{len(found)} class folders in {folder}, expected {len(expected)}"
        raise _refusal(name, f"{count}, first difference: {odd[0]!r}")


def _listed(name: str, root: Path, part: str) -> _Read:
    """Read the official lists of DTD, RESISC45 or SUN397; a picture's class is in its path."""
    # Not through torchvision, which knows no list of the latter two.
    if name == "DTD" and _dtd_merged(root):
        return _by_folder(name, root, part)
    data, home = DATA_SETS[name], place_of(name, root)
    lists = _needs(name, root)[-len(data.lists) :]  # the last one is of the test set
    label = {word: index for index, word in enumerate(data.folders)}
    samples = []
    for file in lists[:-1] if part == "train" else lists[-1:]:
        # railway_station_001.jpg lies in railway_station, the others' lines have the folder
        end = "_" if name == "RESISC45" else "/"
        with _reading(file):
            text = os.fsdecode(file.read_bytes())  # names of files, whatever the locale
        lines = filter(None, map(str.strip, text.splitlines()))
        pairs = [(line, line.rpartition(end)[0]) for line in lines]
        if name == "SUN397":  # "/a/apartment_building/outdoor" is an "apartment building outdoor"
            pairs = [(line, word[3:].replace("/", "_")) for line, word in pairs]
        if odd := [line for line, word in pairs if word not in label]:
            count = f"{len(odd)} of {len(pairs)} lines of {file} name no class of {name}"
            raise _refusal(name, f"{count}, first: {odd[0]!r}")
        for line, word in pairs:
            above = {"DTD": "images/", "RESISC45": f"{word}/", "SUN397": ""}[name]
            samples.append((above + line.removeprefix("/"), label[word]))
    return _files(home, samples)


_READERS: dict[str, Callable[[str, Path, str], _Read]] = {
    "ImageNet": _imagenet, "CIFAR10": _cifar, "CIFAR100": _cifar, "STL10": _stl10,
    "Cars": _cars, "DTD": _listed, "EuroSAT": _by_folder, "GTSRB": _gtsrb,
    "MNIST": _mnist, "RESISC45": _listed, "SUN397": _listed, "SVHN": _svhn, "FashionMNIST": _mnist,
}  # fmt: skip
