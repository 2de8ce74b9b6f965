"""Class names, prompts and pictures of the 13 data sets, from the official files on disk.

Pictures are read where the official archives unpack to, through torchvision where it knows the
data set; `python -m experiment data` says what is there and fetches what can be fetched.

"test" is the official test set, "validation" a tenth of the official training set, at most 5,000
pictures, and "train" is the rest. Of validation sets that a data set brings, DTD's is part of the
training set, RESISC45's is not used. EuroSAT has no official split, see `eurosat_indices`.
"""

import hashlib
import os
import pickle
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

from experiment.real import facts
from experiment.real.facts import DATA_SETS
from experiment.tasks import SPLITS, Task

COMMAND = ".venv/bin/python -m experiment data --data FOLDER"
IMAGENET_TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_REMEDY = f"`{COMMAND}` shows what is found, and how to get the rest"
_HARMLESS = ("numpy.ndarray", "numpy._core.multiarray._reconstruct", "_codecs.encode")

# an official training or test set: paths of files in a folder, or pixels in an array; then labels
_Whole: TypeAlias = tuple[
    Path, Sequence[str] | npt.NDArray[np.uint8], Sequence[int] | npt.NDArray[np.int64]
]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split, decoded when asked for; a broken one is a ValueError.

    `content` holds uint8 pixels `(n, height, width)` or `(n, height, width, 3)`; or paths relative
    to `folder`, as bytes, which take a fifth of the memory of as many `str`.
    """

    labels: Tensor  # int64 (n,)
    identity: str  # SHA-256 of the labels, with pixels, or with paths and sizes of the files
    folder: Path  # or file, where the pixels came from
    content: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

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
def task(name: str, root: Path) -> Task:
    """Return class names and prompts of one data set; those of Cars and SUN397 are on disk.

    ImageNet's come from open_clip, with two repairs. That list names classes 657 and 744 both
    "missile" and classes 836 and 837 both "sunglasses", so one of each pair could never be
    predicted. Here 744 is "projectile" and 836 is "sunglass", as in WordNet.
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
    elif not classnames:
        classnames = _classes_on_disk(name, _require(name, root))
    if name == "SUN397":  # "/a/apartment_building/outdoor" is an "apartment building outdoor"
        classnames = [path.strip("/").partition("/")[2] for path in classnames]
        classnames = [path.replace("/", " ").replace("_", " ") for path in classnames]
    return Task(name, tuple(classnames), templates, label=name)


def missing(names: Iterable[str], root: Path) -> dict[str, str]:
    """Return what each data set that cannot be read lacks, and the remedy; open no picture."""
    root, reasons = Path(root).expanduser(), {}
    for name in names:
        needs = _needs(name, root)
        if absent := [path for path in needs if not path.exists()]:
            lack = f"{len(absent)} of {len(needs)} paths are absent, first: {absent[0]}"
            tar = absent[0].with_name(IMAGENET_TARS.get(absent[0].name, "none"))
            if tar.is_file():
                lack = f"{tar} is not unpacked: `{COMMAND} --fetch ImageNet`"
            reasons[name] = str(_refusal(name, lack if root.is_dir() else f"no folder {root}"))
    return reasons


def fingerprint(name: str, root: Path) -> str:
    """Return a digest of times and sizes of key files: it says cheaply what may have changed."""
    root = Path(root).expanduser()
    digest = hashlib.sha256()
    for path in filter(Path.exists, _needs(name, root)):
        seen = path.stat()
        size = seen.st_size if path.is_file() else 0  # a folder's depends on the file system
        digest.update(f"{path.relative_to(root)} {size} {seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_split(name: str, root: Path, split: str) -> Pictures:
    """Open one split of a data set; absent, unreadable or other files are a ValueError."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    root = _require(name, root)
    folder, content, numbers = _READERS[name](name, root, "test" if split == "test" else "train")
    labels, last = np.asarray(numbers, dtype=np.int64), DATA_SETS[name].classes - 1
    if len(labels) != len(content):
        raise _refusal(name, f"{len(content)} pictures but {len(labels)} labels in {folder}")
    wrong = np.flatnonzero((labels < 0) | (labels > last))
    if len(wrong):
        first = f"picture {wrong[0]} has {labels[wrong[0]]}, in {folder}"
        raise _refusal(name, f"{len(wrong)} labels lie outside 0..{last}, first: {first}")
    indices = np.arange(len(content))
    if name == "EuroSAT":
        indices = eurosat_indices(len(indices))[split == "test"]
    if split != "test":
        indices = indices[validation_indices(len(indices))[split == "validation"]]
    if not len(indices):
        raise _refusal(name, f"no pictures in this split of {folder}")
    labels = labels[indices]
    digest = hashlib.sha256()
    if isinstance(content, np.ndarray):
        array = np.ascontiguousarray(content[indices])
        digest.update(repr(array.shape).encode())
        digest.update(array.data)
        digest.update(labels.data)
        return Pictures(torch.from_numpy(labels), digest.hexdigest(), folder, array)
    files, absent = [content[i] for i in indices.tolist()], []
    for file, label in zip(files, labels, strict=True):
        try:
            size = os.stat(f"{folder}{os.sep}{file}").st_size
            digest.update(f"{file.replace(os.sep, '/')}\0{size}\0{label}\n".encode())
        except FileNotFoundError:
            absent.append(file)
    if absent:
        count = f"{len(absent)} of {len(files)} listed pictures are absent"
        raise _refusal(name, f"{count} from {folder}, first: {absent[0]}")
    encoded = np.array([os.fsencode(file) for file in files])
    return Pictures(torch.from_numpy(labels), digest.hexdigest(), folder, encoded)


def validation_indices(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide n training pictures as `torch.utils.data.random_split` with seed 0 does."""
    if n < 2:
        raise ValueError(f"{n} training pictures cannot be divided into training and validation")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    kept = n - facts.held_out(n)
    return order[:kept], order[kept:]


def eurosat_indices(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return training and test indices of EuroSAT: eight tenths and the last one, seed 0.

    Sizes are PAINT's, 21,600 and 2,700 of 27,000; it says of the draw only that it was random. The
    tenth between them is in the place of PAINT's own validation set and is not used.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    return order[: n - 2 * (n // 10)], order[n - n // 10 :]


def _refusal(name: str, problem: str) -> ValueError:
    return ValueError(f"{name}: {problem}; {_REMEDY}")


def _require(name: str, root: Path) -> Path:
    if reason := missing([name], root):
        raise ValueError(reason[name])
    return Path(root).expanduser()


def _needs(name: str, root: Path) -> list[Path]:
    """Return the files and folders that a data set cannot be read without, its lists last."""
    data = facts.get(name)
    if name == "ImageNet":
        return [imagenet_folder(root) / part for part in IMAGENET_TARS]
    if name == "DTD" and _dtd_merged(root):
        return [root / "dtd/train", root / "dtd/val"]
    places = [[root / folder / file for folder in data.beside] for file in data.lists]
    lists = [next(filter(Path.is_file, paths), paths[0]) for paths in places]
    return [root / need for need in data.needs] + lists


def imagenet_folder(root: Path) -> Path:
    """Return the folder that has or is to have ImageNet's `train` and `val`, or their archives."""
    own = ("train/n01440764", "val/n01440764", *IMAGENET_TARS.values())
    for folder in (root / "imagenet", root / "ImageNet", root):
        if any((folder / part).exists() for part in own):
            return folder
    return root / "imagenet"


def _dtd_merged(root: Path) -> bool:
    """Whether this is the layout of PAINT's follow-ups: `val` holds the test set."""
    parts = [root / "dtd" / part for part in ("train", "val")]
    return not (root / "dtd/dtd").is_dir() and all(part.is_dir() for part in parts)


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


def _cifar(name: str, root: Path, part: str) -> _Whole:
    # Not through torchvision: it unpickles without restraint once its checksum holds.
    data = DATA_SETS[name]
    *train, test, meta = (root / need for need in data.needs)
    kind = "fine_" if name == "CIFAR100" else ""
    pixels, labels = [], []
    for file in [meta, *train] if part == "train" else [meta, test]:
        with _reading(file), file.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
            if file == meta:
                on_disk = [word.replace("_", " ") for word in content[f"{kind}label_names"]]
            else:
                batch = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
                pixels.append(batch.transpose(0, 2, 3, 1))
                labels += content[f"{kind}labels"]
    if tuple(on_disk) != data.classnames:
        raise _refusal(name, f"the class names in {meta} are not those of {name}")
    return root / data.folder, np.concatenate(pixels), labels


def _stl10(name: str, root: Path, part: str) -> _Whole:
    # Not through torchvision, which sums all 3 GB at each opening.
    folder = root / DATA_SETS[name].folder
    with _reading(folder):
        pixels, labels = (np.fromfile(folder / f"{part}_{kind}.bin", np.uint8) for kind in "Xy")
        columns = pixels.reshape(-1, 3, 96, 96)  # channel, column, row
        return folder, columns.transpose(0, 3, 2, 1), labels.astype(np.int64) - 1


def _svhn(name: str, root: Path, part: str) -> _Whole:
    file = root / f"{part}_32x32.mat"
    with _reading(file):
        content = loadmat(file)
        labels = content["y"].astype(np.int64).ravel()
        return file, content["X"].transpose(3, 0, 1, 2), np.where(labels == 10, 0, labels)


def _mnist(name: str, root: Path, part: str) -> _Whole:
    folder = root / DATA_SETS[name].folder
    with _reading(folder):
        mnist = getattr(datasets, name)(str(root), part == "train")
    return folder, mnist.data.numpy(), mnist.targets.numpy()


def _files(folder: Path, samples: Iterable[tuple[str, int]]) -> _Whole:
    above = f"{folder}{os.sep}"
    paths = [path.removeprefix(above) for path, _ in samples]
    return folder, paths, [int(label) for _, label in samples]


def _by_folder(name: str, root: Path, part: str) -> _Whole:
    """Read the class folders of ImageNet, EuroSAT, or DTD in its merged layout."""
    folder = imagenet_folder(root) if name == "ImageNet" else root / DATA_SETS[name].folder
    pictures = folder if name == "EuroSAT" else folder / ("train" if part == "train" else "val")
    _check_folders(name, pictures)
    with _reading(pictures):
        return _files(folder, datasets.ImageFolder(pictures).samples)


def _annotated(name: str, root: Path, part: str) -> _Whole:
    """Read Cars or GTSRB."""
    folder = root / DATA_SETS[name].folder
    if name == "GTSRB" and part == "train":
        _check_folders(name, folder / "GTSRB/Training")
    kind = datasets.GTSRB if name == "GTSRB" else datasets.StanfordCars
    with _reading(folder):
        return _files(folder, kind(root, part)._samples)


def _check_folders(name: str, pictures: Path) -> None:
    """Refuse a set that lacks class folders: labels would silently shift."""
    expected = DATA_SETS[name].folders
    if name == "ImageNet":
        from timm.data.imagenet_info import ImageNetInfo  # open_clip needs timm too

        expected = ImageNetInfo().label_names()
    found = {part for _, parts, _ in os.walk(pictures, followlinks=True) for part in parts}
    if odd := sorted(found ^ set(expected)):
        count = f"{len(found)} class folders in {pictures}, expected {len(expected)}"
        raise _refusal(name, f"{count}, first difference: {odd[0]!r}")


def _listed(name: str, root: Path, part: str) -> _Whole:
    """Read the official lists of DTD, RESISC45 or SUN397; a picture's class is in its path."""
    # Not through torchvision, which knows no list of the latter two.
    data = DATA_SETS[name]
    folder = root / data.folder
    if name == "DTD" and _dtd_merged(root):
        return _by_folder(name, root, part)
    lists = _needs(name, root)[-len(data.lists) :]  # the last one is of the test set
    classes = data.folders or _classes_on_disk(name, root)
    label = {word: index for index, word in enumerate(classes)}
    samples = []
    for file in lists[:-1] if part == "train" else lists[-1:]:
        # railway_station_001.jpg lies in railway_station, the others' lines have the folder
        end = "_" if name == "RESISC45" else "/"
        pairs = [(line, line.rpartition(end)[0]) for line in lines(file)]
        if odd := [line for line, word in pairs if word not in label]:
            count = f"{len(odd)} of {len(pairs)} lines of {file} name no class of {name}"
            expected = f"expected folders such as {classes[0]!r}"
            raise _refusal(name, f"{count}, first: {odd[0]!r}; {expected}")
        for line, word in pairs:
            above = {"DTD": "dtd/images/", "RESISC45": f"{word}/", "SUN397": ""}[name]
            samples.append((above + line.removeprefix("/"), label[word]))
    return _files(folder, samples)


def lines(file: Path) -> list[str]:
    """Return the lines of a text file, stripped, without those that are empty."""
    with _reading(file):
        text = file.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _classes_on_disk(name: str, root: Path) -> list[str]:
    """Return what Cars and SUN397 name their classes, in the order of the labels."""
    file = root / DATA_SETS[name].needs[0]
    if name == "SUN397":
        names = lines(file)
    else:
        with _reading(file):
            names = loadmat(file, squeeze_me=True)["class_names"].tolist()
    if len(names) != DATA_SETS[name].classes:
        count = f"{file} names {len(names)} classes, expected {DATA_SETS[name].classes}"
        raise _refusal(name, count)
    return names


_READERS: dict[str, Callable[[str, Path, str], _Whole]] = {
    "ImageNet": _by_folder, "CIFAR10": _cifar, "CIFAR100": _cifar, "STL10": _stl10,
    "Cars": _annotated, "DTD": _listed, "EuroSAT": _by_folder, "GTSRB": _annotated,
    "MNIST": _mnist, "RESISC45": _listed, "SUN397": _listed, "SVHN": _svhn, "FashionMNIST": _mnist,
}  # fmt: skip
