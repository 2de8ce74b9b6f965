"""Class names, prompts and pictures of the 13 data sets, from the official files on disk.

Pictures are read where the official archives unpack to, through torchvision where it knows the
data set; `python -m experiment data` says what is there and fetches what can be fetched.

Three splits each. "test" is the official test set. "validation" is a tenth of the official
training set, at most 5,000 pictures, and "train" is the rest. Where a data set brings a validation
set of its own: DTD's is part of the training set, RESISC45's is not used. EuroSAT has no official
split, see `eurosat_indices`.
"""

import codecs
import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
NEEDS = {name: data.needs for name, data in DATA_SETS.items()}
"""What has to lie under the data folder; ImageNet, and the lists of two others, have a choice."""

_T = TypeVar("_T")
_REMEDY = f"`{COMMAND}` shows what is found, and how to get the rest"
# SHA-256 of the 1,000 class folders of ILSVRC2012, sorted, one a line
_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split, decoded when asked for.

    Attributes:
        labels: int64, shape (n,).
        identity: SHA-256 that says which pictures these are, in this order: over the labels with
            the paths and sizes of the files, or with the pixels where a file holds many pictures.
        folder: What the paths in `content` are relative to, or where the pixels came from.
        content: uint8 pixels, shape (n, height, width) or (n, height, width, 3); or paths, shape
            (n,), as bytes, which take a fifth of the memory of as many `str`.
    """

    labels: Tensor
    identity: str
    folder: Path
    content: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        """Return picture `index` in RGB.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        if self.content.dtype == np.uint8:
            return Image.fromarray(self.content[index]).convert("RGB")
        path = self.folder / os.fsdecode(self.content[index])
        try:
            with path.open("rb") as stream, Image.open(stream) as image:
                if image.mode == "P":  # straight to RGB warns where the palette is transparent
                    return image.convert("RGBA").convert("RGB")
                return image.convert("RGB")
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

    Raises:
        ValueError: If the name is unknown, or names on disk are absent or of the wrong number.
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
    """Return for each data set that cannot be read what it lacks and the remedy.

    Looks for folders and key files only; no picture is opened.

    Raises:
        ValueError: If a name is unknown.
    """
    root = Path(root).expanduser()
    lacks = {name: _lack(name, root) for name in names}
    return {name: str(_refusal(name, lack)) for name, lack in lacks.items() if lack}


def fingerprint(name: str, root: Path) -> str:
    """Return a digest of the times and sizes of a data set's key files and folders.

    It says cheaply whether the data set may have changed since it was decoded; what was decoded is
    told by `Pictures.identity`.
    """
    root, data = Path(root).expanduser(), facts.get(name)
    paths = [root / need for need in data.needs]
    paths += [root / folder / file for folder in data.beside for file in data.lists]
    if folder := {"ImageNet": imagenet_folder(root), "DTD": root / "dtd"}.get(name):
        paths += [folder / "train", folder / "val"]
    digest = hashlib.sha256()
    for path in filter(Path.exists, paths):
        seen = path.stat()
        size = seen.st_size if path.is_file() else 0  # a folder's depends on the file system
        digest.update(f"{path.relative_to(root)} {size} {seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_split(name: str, root: Path, split: str) -> Pictures:
    """Open one split of one data set.

    Args:
        name: One of `facts.DATA_SETS`.
        root: The data folder, which holds the official folders of all data sets.
        split: "train", "validation" or "test"; the first two divide the official training set.

    Raises:
        ValueError: If name or split are unknown, or files are absent, unreadable or not those of
            this data set.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    root = _require(name, root)
    whole = _READERS[name](name, root, "test" if split == "test" else "train")
    indices = np.arange(len(whole.content))
    if name == "EuroSAT":
        indices = eurosat_indices(len(indices))[split == "test"]
    if split != "test":
        indices = indices[validation_indices(len(indices))[split == "validation"]]
    return _pictures(name, whole, indices)


def validation_indices(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide n training pictures into training and validation, see `facts.held_out`.

    The same as `torch.utils.data.random_split` with a generator of seed 0.

    >>> training, validation = validation_indices(60_000)
    >>> int(training[0]), len(training), len(validation)
    (36044, 55000, 5000)
    """
    if n < 2:
        raise ValueError(f"{n} training pictures cannot be divided into training and validation")
    order, held = _order(n), facts.held_out(n)
    return order[: n - held], order[n - held :]


def eurosat_indices(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return training and test indices of EuroSAT, which has no official split.

    Sizes are PAINT's, 21,600 and 2,700 of 27,000; it says of the draw only that it was random.
    This one is the first eight tenths and the last tenth of a permutation of seed 0. The tenth
    between them is in the place of PAINT's own validation set and is not used.

    >>> training, test = eurosat_indices(27_000)
    >>> len(training), len(test)
    (21600, 2700)
    """
    order, tenth = _order(n), n // 10
    return order[: n - 2 * tenth], order[n - tenth :]


def _order(n: int) -> npt.NDArray[np.int64]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()


class _Whole(NamedTuple):
    """An official training or test set: paths of files in `folder`, or pixels in an array."""

    folder: Path
    content: Sequence[str] | npt.NDArray[np.uint8]
    labels: Sequence[int] | npt.NDArray[Any]


def _pictures(name: str, whole: _Whole, indices: npt.NDArray[np.int64]) -> Pictures:
    folder, content, last = whole.folder, whole.content, DATA_SETS[name].classes - 1
    labels = np.asarray(whole.labels, dtype=np.int64)
    if len(labels) != len(content):
        raise _refusal(name, f"{len(content)} pictures but {len(labels)} labels in {folder}")
    wrong = np.flatnonzero((labels < 0) | (labels > last))
    if len(wrong):
        first = f"picture {wrong[0]} has {labels[wrong[0]]}, in {folder}"
        raise _refusal(name, f"{len(wrong)} labels lie outside 0..{last}, first: {first}")
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
    files, absent = [content[i] for i in indices], []
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


def _refusal(name: str, problem: str) -> ValueError:
    return ValueError(f"{name}: {problem}; {_REMEDY}")


def _require(name: str, root: Path) -> Path:
    if reason := missing([name], root):
        raise ValueError(reason[name])
    return Path(root).expanduser()


def _lack(name: str, root: Path) -> str:
    """Say what is absent, or return an empty string."""
    data = facts.get(name)
    if not root.is_dir():
        return f"there is no folder {root}"
    if name == "ImageNet":
        return _imagenet_lack(root)
    if name == "DTD" and _dtd_merged(root):
        return ""
    if absent := [path for path in data.needs if not (root / path).exists()]:
        return f"{len(absent)} of {len(data.needs)} paths absent from {root}, first: {absent[0]}"
    for file in data.lists:
        if not _found(name, root, file):
            places = ", ".join(str(root / folder) for folder in data.beside)
            return f"no list {file} of the official split in any of {places}"
    return ""


def _found(name: str, root: Path, file: str) -> list[Path]:
    paths = [root / folder / file for folder in DATA_SETS[name].beside]
    return [path for path in paths if path.is_file()]


def _lines(file: Path) -> list[str]:
    text = _reading(file, lambda file: file.read_text(encoding="utf-8"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def _reading(source: Path, read: Callable[[Path], _T]) -> _T:
    """Call `read`; turn whatever a broken file makes it raise into a `ValueError` that names it."""
    try:
        return read(source)
    except Exception as error:  # torchvision, scipy and pickle raise a dozen kinds
        raise ValueError(
            f"{source} cannot be read ({type(error).__name__}: {error}); "
            f"move it away, then {_REMEDY}"
        ) from error


def imagenet_folder(root: Path) -> Path | None:
    """Return the folder that holds ImageNet's `train` and `val`, or its archives, or None."""
    for folder in (root / "imagenet", root / "ImageNet"):
        if any((folder / part).exists() for part in (*IMAGENET_TARS, *IMAGENET_TARS.values())):
            return folder
    own = ("train/n01440764", "val/n01440764", *IMAGENET_TARS.values())
    return root if any((root / part).exists() for part in own) else None


def _imagenet_lack(root: Path) -> str:
    folder = imagenet_folder(root)
    if folder is None:
        return f"no folder `train` with 1000 class folders in {root / 'imagenet'} or {root}"
    for part, tar in IMAGENET_TARS.items():
        if (folder / tar).is_file() and not (folder / part).is_dir():
            return f"{folder / tar} is not unpacked: `{COMMAND} --fetch ImageNet`"
        if not (folder / part).is_dir():
            return f"no folder {folder / part}, nor {tar}"
    return ""


def _imagenet(name: str, root: Path, part: str) -> _Whole:
    folder = imagenet_folder(root) or root
    pictures = folder / ("train" if part == "train" else "val")
    wnids = sorted(entry.name for entry in os.scandir(pictures) if entry.is_dir())
    if len(wnids) != 1000 or hashlib.sha256("\n".join(wnids).encode()).hexdigest() != _WNIDS:
        ends = f", {wnids[0]} to {wnids[-1]}" if wnids else ""
        expected = "expected the 1000 of ILSVRC2012, n01440764 to n15075141, with their pictures"
        raise _refusal(name, f"{len(wnids)} folders in {pictures}{ends}; {expected}")
    return _by_folder(name, folder, pictures)


_ARRAY = np.empty(0).__reduce__()[0]
_HARMLESS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): lambda kind, *flags: np.dtype(kind),  # flags are 0 and 1 in old pickles
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("_codecs", "encode"): codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, text and arrays only, since a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return _HARMLESS[module, name]


def _unpickle(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        content = _ArrayUnpickler(stream, encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError("expected a dictionary")
    return content


def _cifar(name: str, root: Path, part: str) -> _Whole:
    # Not through torchvision: it unpickles without restraint once its checksum holds.
    data = DATA_SETS[name]
    *train, test, meta = (root / need for need in data.needs)
    kind = "fine_" if name == "CIFAR100" else ""
    on_disk = _reading(meta, lambda file: _unpickle(file)[f"{kind}label_names"])
    if tuple(word.replace("_", " ") for word in on_disk) != data.classnames:
        raise _refusal(name, f"the class names in {meta} are not those of {name}")

    def read(file: Path) -> tuple[npt.NDArray[np.uint8], list[int]]:
        batch = _unpickle(file)
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        return pixels.transpose(0, 2, 3, 1), batch[f"{kind}labels"]

    batches = [_reading(file, read) for file in (train if part == "train" else [test])]
    labels = [label for _, numbers in batches for label in numbers]
    return _Whole(root / data.folder, np.concatenate([pixels for pixels, _ in batches]), labels)


def _stl10(name: str, root: Path, part: str) -> _Whole:
    # Not through torchvision, which sums all 3 GB at each opening.
    def read(folder: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        pixels = np.fromfile(folder / f"{part}_X.bin", np.uint8).reshape(-1, 3, 96, 96)
        labels = np.fromfile(folder / f"{part}_y.bin", np.uint8).astype(np.int64) - 1
        return pixels.transpose(0, 3, 2, 1), labels  # from channel, column, row

    folder = root / DATA_SETS[name].folder
    return _Whole(folder, *_reading(folder, read))


def _svhn(name: str, root: Path, part: str) -> _Whole:
    def read(file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        content = loadmat(file)
        labels = content["y"].astype(np.int64).ravel()
        return content["X"].transpose(3, 0, 1, 2), np.where(labels == 10, 0, labels)

    file = root / f"{part}_32x32.mat"
    return _Whole(file, *_reading(file, read))


def _mnist(name: str, root: Path, part: str) -> _Whole:
    folder = root / DATA_SETS[name].folder
    mnist = _reading(folder, lambda _: getattr(datasets, name)(str(root), part == "train"))
    return _Whole(folder, mnist.data.numpy(), mnist.targets.numpy())


def _files(folder: Path, samples: Sequence[tuple[str, int]]) -> _Whole:
    above = f"{folder}{os.sep}"
    paths = [path.removeprefix(above) for path, _ in samples]
    return _Whole(folder, paths, [int(label) for _, label in samples])


def _by_folder(name: str, folder: Path, pictures: Path) -> _Whole:
    if name != "ImageNet":
        _check_folders(name, pictures)
    samples = _reading(pictures, lambda path: datasets.ImageFolder(path).samples)
    return _files(folder, samples)


def _check_folders(name: str, pictures: Path) -> None:
    """Refuse a set that lacks class folders: labels would silently shift."""
    expected = set(DATA_SETS[name].folders)
    found = {part for _, parts, _ in os.walk(pictures, followlinks=True) for part in parts}
    if odd := sorted(found ^ expected):
        count = f"{len(found)} class folders in {pictures}, expected {len(expected)}"
        raise _refusal(name, f"{count}, first difference: {odd[0]!r}")


def _eurosat(name: str, root: Path, part: str) -> _Whole:
    folder = root / DATA_SETS[name].folder
    return _by_folder(name, folder, folder)


def _annotated(name: str, root: Path, part: str) -> _Whole:
    """Read Cars or GTSRB."""
    folder = root / DATA_SETS[name].folder
    if name == "GTSRB" and part == "train":
        _check_folders(name, folder / "GTSRB/Training")
    kind = datasets.GTSRB if name == "GTSRB" else datasets.StanfordCars
    return _files(folder, _reading(folder, lambda _: kind(root, part)._samples))


def _dtd_merged(root: Path) -> bool:
    """Whether this is the layout of PAINT's follow-ups: `val` holds the test set."""
    parts = [root / "dtd" / part for part in ("train", "val")]
    return not (root / "dtd/dtd").is_dir() and all(part.is_dir() for part in parts)


def _listed(name: str, root: Path, part: str) -> _Whole:
    """Read the official lists of DTD, RESISC45 or SUN397; a picture's class is in its path."""
    # Not through torchvision, which knows no list of the latter two.
    data = DATA_SETS[name]
    folder = root / data.folder
    if name == "DTD" and _dtd_merged(root):
        return _by_folder(name, folder, folder / ("train" if part == "train" else "val"))
    if name == "DTD":
        halves = ("train", "val") if part == "train" else ("test",)
        lists = [folder / f"dtd/labels/{half}1.txt" for half in halves]
    else:
        lists = _found(name, root, data.lists[part == "test"])[:1]
    classes = data.folders or _classes_on_disk(name, root)
    label = {word: index for index, word in enumerate(classes)}
    samples = []
    for file in lists:
        lines = _lines(file)
        # railway_station_001.jpg lies in railway_station, the others' lines have the folder
        pairs = [(line, line.rpartition("_" if name == "RESISC45" else "/")[0]) for line in lines]
        if odd := [line for line, word in pairs if word not in label]:
            count = f"{len(odd)} of {len(lines)} lines of {file} name no class of {name}"
            expected = f"expected folders such as {classes[0]!r}"
            raise _refusal(name, f"{count}, first: {odd[0]!r}; {expected}")
        for line, word in pairs:
            above = {"DTD": "dtd/images/", "RESISC45": f"{word}/", "SUN397": ""}[name]
            samples.append((above + line.removeprefix("/"), label[word]))
    return _files(folder, samples)


def _classes_on_disk(name: str, root: Path) -> list[str]:
    """Return what Cars and SUN397 name their classes, in the order of the labels."""
    file = root / NEEDS[name][0]
    if name == "SUN397":
        names = _lines(file)
    else:
        names = _reading(file, lambda file: loadmat(file, squeeze_me=True)["class_names"].tolist())
    if len(names) != DATA_SETS[name].classes:
        count = f"{file} names {len(names)} classes, expected {DATA_SETS[name].classes}"
        raise _refusal(name, count)
    return names


_READERS: dict[str, Callable[[str, Path, str], _Whole]] = {
    "ImageNet": _imagenet, "CIFAR10": _cifar, "CIFAR100": _cifar, "STL10": _stl10,
    "Cars": _annotated, "DTD": _listed, "EuroSAT": _eurosat, "GTSRB": _annotated, "MNIST": _mnist,
    "RESISC45": _listed, "SUN397": _listed, "SVHN": _svhn, "FashionMNIST": _mnist,
}  # fmt: skip
