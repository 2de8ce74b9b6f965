"""The 13 data sets of the paper: class names, prompts and pictures from the official files on disk.

Class names and prompts are those of CLIP, as PAINT uses them. Pictures are read where the official
archives unpack to, through torchvision where it knows the data set; `python -m paintlib data`
says what is there and fetches what can be fetched.

Three splits each. "test" is the official test set. "validation" is a tenth of the official
training set, at most 5,000 pictures, and "train" is the rest. Where a data set brings a validation
set of its own: DTD's is part of the training set, RESISC45's is not used. EuroSAT has no official
split, see `eurosat_indices`.
"""

import codecs
import hashlib
import itertools
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from experiment.tasks import SPLITS, Task

__all__ = [
    "CLASSES",
    "IMAGENET_TARS",
    "NEEDS",
    "PATCHING",
    "SUPPORTED",
    "Pictures",
    "eurosat_indices",
    "fingerprint",
    "imagenet_folder",
    "missing",
    "open_split",
    "task",
    "validation_indices",
]

SUPPORTED = ("ImageNet", "CIFAR10", "CIFAR100", "STL10")
PATCHING = (
    "Cars",
    "DTD",
    "EuroSAT",
    "GTSRB",
    "MNIST",
    "RESISC45",
    "SUN397",
    "SVHN",
    "FashionMNIST",
)

VALIDATION_MOST = 5000  # PAINT's convention: a tenth of the training set, but no more than this
IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_REMEDY = "`python -m paintlib data` shows what is found, and how to get the rest"
# SHA-256 of the 1,000 class folders of ILSVRC2012, sorted, one a line
_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


def _words(text: str) -> tuple[str, ...]:
    """Split a list written one name after the other with commas."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def _filled(kinds: str, articles: str) -> tuple[str, ...]:
    """Put each article into each kind of prompt: all kinds with the first article, then the next.

    >>> _filled("a photo of|an icon of", "a {}.|the {}.")[1:3]
    ('an icon of a {}.', 'a photo of the {}.')
    """
    return tuple(f"{kind} {end}" for end in articles.split("|") for kind in kinds.split("|"))


_DIGITS = tuple("0123456789")
_CIFAR_PROMPTS = tuple(
    f"a {kind}photo of {article} {size}{{}}."
    for article in ("a", "the")
    for kind, size in (
        ("", ""),
        ("blurry ", ""),
        ("black and white ", ""),
        ("low contrast ", ""),
        ("high contrast ", ""),
        ("bad ", ""),
        ("good ", ""),
        ("", "small "),
        ("", "big "),
    )
)
_NUMBER_PROMPT = ('a photo of the number: "{}".',)
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "CIFAR10": _CIFAR_PROMPTS,
    "CIFAR100": _CIFAR_PROMPTS,
    "STL10": ("a photo of a {}.", "a photo of the {}."),
    "Cars": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my clean {}.",
        "a photo of my new {}.",
        "a photo of my old {}.",
    ),
    "DTD": tuple(
        f"a photo of {article} {{}} {noun}."
        for article in ("a", "the")
        for noun in ("texture", "pattern", "thing", "object")
    ),
    "EuroSAT": _filled("a centered satellite photo of", "{}.|a {}.|the {}."),
    "GTSRB": tuple(
        f'a {kind} photo of a "{{}}" traffic sign.'
        for kind in ("zoomed in", "centered", "close up")
    ),
    "MNIST": _NUMBER_PROMPT,
    "RESISC45": _filled(
        "satellite imagery of|aerial imagery of|satellite photo of|aerial photo of"
        "|satellite view of|aerial view of",
        "{}.|a {}.|the {}.",
    ),
    "SUN397": ("a photo of a {}.", "a photo of the {}."),
    "SVHN": _NUMBER_PROMPT,
    "FashionMNIST": _filled(
        "a photo of|a blurry photo of|a black and white photo of|a thumbnail of", "a {}.|the {}."
    ),
}

# The index of a name is the label on disk. Cars and SUN397 bring their names along.
_CLASSNAMES: dict[str, tuple[str, ...]] = {
    "CIFAR10": _words("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"),
    "CIFAR100": _words(
        """apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy,
        bridge, bus, butterfly, camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock,
        cloud, cockroach, couch, crab, crocodile, cup, dinosaur, dolphin, elephant, flatfish,
        forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, leopard, lion,
        lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, oak tree, orange,
        orchid, otter, palm tree, pear, pickup truck, pine tree, plain, plate, poppy, porcupine,
        possum, rabbit, raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, skunk,
        skyscraper, snail, snake, spider, squirrel, streetcar, sunflower, sweet pepper, table,
        tank, telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale,
        willow tree, wolf, woman, worm"""
    ),
    "STL10": _words("airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck"),
    "DTD": _words(
        """banded, blotchy, braided, bubbly, bumpy, chequered, cobwebbed, cracked, crosshatched,
        crystalline, dotted, fibrous, flecked, freckled, frilly, gauzy, grid, grooved,
        honeycombed, interlaced, knitted, lacelike, lined, marbled, matted, meshed, paisley,
        perforated, pitted, pleated, polka-dotted, porous, potholed, scaly, smeared, spiralled,
        sprinkled, stained, stratified, striped, studded, swirly, veined, waffled, woven,
        wrinkled, zigzagged"""
    ),
    "EuroSAT": _words(
        """annual crop land, forest, brushland or shrubland, highway or road,
        industrial buildings or commercial buildings, pasture land, permanent crop land,
        residential buildings or homes or apartments, river, lake or sea"""
    ),
    # "horizonal" and "bicyle" are spelt so in CLIP's prompts, and so in published numbers
    "GTSRB": _words(
        """red and white circle 20 kph speed limit, red and white circle 30 kph speed limit,
        red and white circle 50 kph speed limit, red and white circle 60 kph speed limit,
        red and white circle 70 kph speed limit, red and white circle 80 kph speed limit,
        end / de-restriction of 80 kph speed limit, red and white circle 100 kph speed limit,
        red and white circle 120 kph speed limit,
        red and white circle red car and black car no passing,
        red and white circle red truck and black car no passing,
        red and white triangle road intersection warning, white and yellow diamond priority road,
        red and white upside down triangle yield right-of-way, stop, empty red and white circle,
        red and white circle no truck entry, red circle with white horizonal stripe no entry,
        red and white triangle with exclamation mark warning,
        red and white triangle with black left curve approaching warning,
        red and white triangle with black right curve approaching warning,
        red and white triangle with black double curve approaching warning,
        red and white triangle rough / bumpy road warning,
        red and white triangle car skidding / slipping warning,
        red and white triangle with merging / narrow lanes warning,
        red and white triangle with person digging / construction / road work warning,
        red and white triangle with traffic light approaching warning,
        red and white triangle with person walking warning,
        red and white triangle with child and person walking warning,
        red and white triangle with bicyle warning,
        red and white triangle with snowflake / ice warning,
        red and white triangle with deer warning, white circle with gray strike bar no speed limit,
        blue circle with white right turn arrow mandatory,
        blue circle with white left turn arrow mandatory,
        blue circle with white forward arrow mandatory,
        blue circle with white forward or right turn arrow mandatory,
        blue circle with white forward or left turn arrow mandatory,
        blue circle with white keep right arrow mandatory,
        blue circle with white keep left arrow mandatory,
        blue circle with white arrows indicating a traffic circle,
        white circle with gray strike bar indicating no passing for cars has ended,
        white circle with gray strike bar indicating no passing for trucks has ended"""
    ),
    "MNIST": _DIGITS,
    "RESISC45": _words(
        """airplane, airport, baseball diamond, basketball court, beach, bridge, chaparral, church,
        circular farmland, cloud, commercial area, dense residential, desert, forest, freeway,
        golf course, ground track field, harbor, industrial area, intersection, island, lake,
        meadow, medium residential, mobile home park, mountain, overpass, palace, parking lot,
        railway, railway station, rectangular farmland, river, roundabout, runway, sea ice, ship,
        snowberg, sparse residential, stadium, storage tank, tennis court, terrace,
        thermal power station, wetland"""
    ),
    "SVHN": _DIGITS,
    "FashionMNIST": _words(
        "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    ),
}
CLASSES = {"ImageNet": 1000, "Cars": 196, "SUN397": 397} | {
    name: len(classnames) for name, classnames in _CLASSNAMES.items()
}

# Class folders in the order of the labels, where they are not ImageNet's
_FOLDERS: dict[str, tuple[str, ...]] = {
    "DTD": _CLASSNAMES["DTD"],
    "EuroSAT": _words(
        """AnnualCrop, Forest, HerbaceousVegetation, Highway, Industrial, Pasture, PermanentCrop,
        Residential, River, SeaLake"""
    ),
    "GTSRB": tuple(f"{sign:05d}" for sign in range(43)),
    "RESISC45": tuple(name.replace(" ", "_") for name in _CLASSNAMES["RESISC45"]),
}

# What has to lie under the data folder. ImageNet, and the lists of two others, have a choice.
_IDX = tuple(f"{kind}-ubyte" for kind in ("train-images-idx3", "train-labels-idx1",
                                         "t10k-images-idx3", "t10k-labels-idx1"))  # fmt: skip
_CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
NEEDS: dict[str, tuple[str, ...]] = {
    "ImageNet": (),
    "CIFAR10": tuple(
        f"cifar-10-batches-py/{file}" for file in (*_CIFAR10_BATCHES, "test_batch", "batches.meta")
    ),
    "CIFAR100": tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta")),
    "STL10": tuple(
        f"stl10_binary/{file}.bin" for file in ("train_X", "train_y", "test_X", "test_y")
    ),
    "Cars": tuple(
        f"stanford_cars/{file}"
        for file in (
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
            "cars_train",
            "cars_test",
        )
    ),
    "DTD": (
        "dtd/dtd/images",
        *(f"dtd/dtd/labels/{part}1.txt" for part in ("train", "val", "test")),
    ),
    "EuroSAT": ("eurosat/2750",),
    "GTSRB": ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
    "MNIST": tuple(f"MNIST/raw/{file}" for file in _IDX),
    "RESISC45": ("NWPU-RESISC45",),
    "SUN397": ("SUN397/ClassName.txt",),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
    "FashionMNIST": tuple(f"FashionMNIST/raw/{file}" for file in _IDX),
}
_LISTS = {  # name -> files of the official split, and the folders they may lie in
    "RESISC45": (("resisc45-train.txt", "resisc45-test.txt"), ("NWPU-RESISC45", ".")),
    "SUN397": (
        ("Training_01.txt", "Testing_01.txt"),
        ("SUN397", "SUN397/Partitions", "Partitions"),
    ),
}


@dataclass(frozen=True, eq=False)
class Pictures(Dataset[Image.Image]):
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
    _check_name(name)
    if name == "ImageNet":
        return Task(name, *_imagenet_prompts(), label=name)
    if name in _CLASSNAMES:
        return Task(name, _CLASSNAMES[name], _TEMPLATES[name], label=name)
    _require(name, root := Path(root).expanduser())
    if name == "Cars":
        file = root / "stanford_cars/devkit/cars_meta.mat"
        classnames = _reading(file, lambda: datasets.StanfordCars(root, "train").classes)
    else:
        file = root / "SUN397/ClassName.txt"
        classnames = [_scene(path) for path in _lines(file)]
    if len(classnames) != CLASSES[name]:
        raise ValueError(f"{file} names {len(classnames)} classes, expected {CLASSES[name]}")
    return Task(name, tuple(classnames), _TEMPLATES[name], label=name)


def missing(names: Iterable[str], root: Path) -> dict[str, str]:
    """Return for each data set that cannot be read what it lacks and the remedy.

    Looks for folders and key files only; no picture is opened.

    Raises:
        ValueError: If a name is unknown.
    """
    root = Path(root).expanduser()
    reasons = {}
    for name in names:
        _check_name(name)
        if lack := _lack(name, root):
            reasons[name] = f"{name}: {lack}; {_REMEDY}"
    return reasons


def fingerprint(name: str, root: Path) -> str:
    """Return a digest of the times and sizes of a data set's key files and folders.

    It says cheaply whether the data set may have changed since it was decoded; what was decoded is
    told by `Pictures.identity`.
    """
    root = Path(root).expanduser()
    paths = [root / need for need in NEEDS[name]]
    lists, folders = _LISTS.get(name, ((), ()))
    paths += [root / folder / file for folder in folders for file in lists]
    if name == "ImageNet" and (folder := imagenet_folder(root)):
        paths += [folder / "train", folder / "val"]
    if name == "DTD":
        paths += [root / "dtd" / part for part in ("train", "val")]
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            seen = path.stat()
            size = seen.st_size if path.is_file() else 0  # a folder's depends on the file system
            digest.update(f"{path.relative_to(root)} {size} {seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_split(name: str, root: Path, split: str) -> Pictures:
    """Open one split of one data set.

    Args:
        name: One of `SUPPORTED` and `PATCHING`.
        root: The data folder, which holds the official folders of all data sets.
        split: "train", "validation" or "test"; the first two divide the official training set.

    Raises:
        ValueError: If name or split are unknown, or files are absent, unreadable or not those of
            this data set.
    """
    _check_name(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    root = Path(root).expanduser()
    _require(name, root)
    whole = _READERS[name](name, root, split != "test")
    n = len(whole.content)
    indices = np.arange(n)
    if name == "EuroSAT":
        indices = eurosat_indices(n)[0 if split != "test" else 1]
    if split != "test":
        indices = indices[validation_indices(len(indices))[0 if split == "train" else 1]]
    _logger.info("%s %s: %d of %d pictures", name, split, len(indices), n)
    return _pictures(name, whole, indices)


def validation_indices(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide n training pictures into training and validation: a tenth, at most 5,000, at least 1.

    The same as `torch.utils.data.random_split` with a generator of seed 0.

    >>> training, validation = validation_indices(60_000)
    >>> int(training[0]), len(training), len(validation)
    (36044, 55000, 5000)
    """
    if n < 2:
        raise ValueError(f"{n} training pictures cannot be divided into training and validation")
    held = max(1, min(n // 10, VALIDATION_MOST))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
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
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    tenth = n // 10
    return order[: n - 2 * tenth], order[n - tenth :]


@dataclass(frozen=True)
class _Whole:
    """An official training or test set; `content` is paths of files, or pixels in an array."""

    folder: Path
    content: Sequence[str] | npt.NDArray[np.uint8]
    labels: Sequence[int] | npt.NDArray[Any]


def _pictures(name: str, whole: _Whole, indices: npt.NDArray[np.int64]) -> Pictures:
    labels = np.asarray(whole.labels, dtype=np.int64)
    if len(labels) != len(whole.content):
        raise ValueError(
            f"{name}: {len(whole.content)} pictures but {len(labels)} labels in {whole.folder}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES[name]))
    if len(wrong):
        raise ValueError(
            f"{name}: {len(wrong)} labels lie outside 0..{CLASSES[name] - 1}, first: picture "
            f"{wrong[0]} has {labels[wrong[0]]}, in {whole.folder}; {_REMEDY}"
        )
    if not len(indices):
        raise ValueError(f"{name}: no pictures in this split of {whole.folder}; {_REMEDY}")
    labels = labels[indices]
    digest = hashlib.sha256()
    if isinstance(whole.content, np.ndarray):
        array = np.ascontiguousarray(whole.content[indices])
        digest.update(repr(array.shape).encode())
        digest.update(array.data)
        digest.update(labels.data)
        return Pictures(torch.from_numpy(labels), digest.hexdigest(), whole.folder, array)
    above = str(whole.folder) + os.sep
    files = [whole.content[i].removeprefix(above) for i in indices]
    absent = []
    for file, label in zip(files, labels, strict=True):
        try:
            size = os.stat(above + file).st_size
        except FileNotFoundError:
            absent.append(file)
            continue
        digest.update(f"{file.replace(os.sep, '/')}\0{size}\0{label}\n".encode())
    if absent:
        raise ValueError(
            f"{name}: {len(absent)} of {len(files)} listed pictures are absent from "
            f"{whole.folder}, first: {absent[0]}; {_REMEDY}"
        )
    encoded = np.array([os.fsencode(file) for file in files])
    return Pictures(torch.from_numpy(labels), digest.hexdigest(), whole.folder, encoded)


def _check_name(name: str) -> None:
    if name not in CLASSES:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(SUPPORTED + PATCHING)}")


def _require(name: str, root: Path) -> None:
    if reason := missing([name], root):
        raise ValueError(reason[name])


def _lack(name: str, root: Path) -> str:
    """Say what is absent, or return an empty string."""
    if not root.is_dir():
        return f"there is no folder {root}"
    if name == "ImageNet":
        return _imagenet_lack(root)
    if name == "DTD" and _dtd_merged(root):
        return ""
    absent = [path for path in NEEDS[name] if not (root / path).exists()]
    if absent:
        return f"{len(absent)} of {len(NEEDS[name])} paths absent from {root}, first: {absent[0]}"
    lists, folders = _LISTS.get(name, ((), ()))
    for file in lists:
        if not any((root / folder / file).is_file() for folder in folders):
            places = ", ".join(str(root / folder) for folder in folders)
            return f"no list {file} of the official split in any of {places}"
    return ""


def _list_file(name: str, root: Path, training: bool) -> Path:
    (train, test), folders = _LISTS[name]
    paths = [root / folder / (train if training else test) for folder in folders]
    return next(path for path in paths if path.is_file())


def _lines(file: Path) -> list[str]:
    text = _reading(file, lambda: file.read_text(encoding="utf-8"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def _reading(source: Path, read: Callable[[], _T]) -> _T:
    """Call `read`; turn whatever a broken file makes it raise into a `ValueError` that names it."""
    try:
        return read()
    except Exception as error:  # torchvision, scipy and pickle raise a dozen kinds
        raise ValueError(
            f"{source} cannot be read ({type(error).__name__}: {error}); "
            f"move it away, then {_REMEDY}"
        ) from error


def _by_folder(name: str, paths: Iterable[str | Path]) -> tuple[list[str], list[int]]:
    """Return paths with the label that the name of their folder stands for."""
    label = {folder: index for index, folder in enumerate(_FOLDERS[name])}
    files = [str(path) for path in paths]
    folders = [os.path.basename(os.path.dirname(file)) for file in files]
    if unknown := sorted({folder for folder in folders if folder not in label}):
        raise ValueError(
            f"{name}: {len(unknown)} folders are not classes of it, first: {unknown[0]!r}; "
            f"expected {len(label)} such as {_FOLDERS[name][0]!r}"
        )
    return files, [label[folder] for folder in folders]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _same_folders(name: str, folder: Path) -> None:
    """Refuse a set that lacks class folders: labels would silently shift."""
    found, expected = set(_subfolders(folder)), set(_FOLDERS[name])
    if found != expected:
        odd = sorted(found ^ expected)
        raise ValueError(
            f"{name}: {len(found)} class folders in {folder}, expected {len(expected)}, "
            f"first difference: {odd[0]!r}; {_REMEDY}"
        )


# --- ImageNet --------------------------------------------------------------------------------


def _imagenet_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    import open_clip  # takes seconds, and no other data set needs it

    classnames = list(open_clip.IMAGENET_CLASSNAMES)
    for index, word in ((744, "projectile"), (836, "sunglass")):
        if classnames.count(classnames[index]) > 1:
            classnames[index] = word
    templates = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(classnames), templates


def imagenet_folder(root: Path) -> Path | None:
    """Return the folder that holds ImageNet's `train` and `val`, or its archives, or None."""
    for folder in (root / "imagenet", root / "ImageNet"):
        if any((folder / part).exists() for part in ("train", "val", *IMAGENET_TARS)):
            return folder
    own = any((root / part / "n01440764").is_dir() for part in ("train", "val"))
    return root if own or any((root / tar).exists() for tar in IMAGENET_TARS) else None


def _imagenet_lack(root: Path) -> str:
    folder = imagenet_folder(root)
    if folder is None:
        return f"no folder `train` with 1000 class folders in {root / 'imagenet'} or {root}"
    for part, tar in zip(("train", "val"), IMAGENET_TARS, strict=True):
        if (folder / part).is_dir():
            continue
        if (folder / tar).is_file():
            return f"{folder / tar} is not unpacked: `python -m paintlib data --fetch ImageNet`"
        return f"no folder {folder / part}, nor {tar}"
    return ""


def _imagenet(name: str, root: Path, training: bool) -> _Whole:
    folder = imagenet_folder(root) or root
    pictures = folder / ("train" if training else "val")
    wnids = _subfolders(pictures)
    if len(wnids) != 1000 or hashlib.sha256("\n".join(wnids).encode()).hexdigest() != _WNIDS:
        ends = f", {wnids[0]} to {wnids[-1]}" if wnids else ""
        raise ValueError(
            f"{name}: {len(wnids)} folders in {pictures}{ends}; expected the 1000 of ILSVRC2012, "
            "n01440764 to n15075141, each with its pictures"
        )
    samples = _reading(pictures, lambda: datasets.ImageFolder(pictures).samples)
    return _Whole(folder, [path for path, _ in samples], [label for _, label in samples])


# --- many pictures in one file ---------------------------------------------------------------


def _dtype(kind: str, align: object = False, copy: object = False) -> np.dtype[Any]:
    return np.dtype(kind, align=bool(align), copy=bool(copy))  # old pickles say 0 and 1


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, text and arrays only, since a pickle can otherwise run any code."""

    _array = np.empty(0).__reduce__()[0]
    _allowed: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy._core.multiarray", "_reconstruct"): _array,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return self._allowed[module, name]


def _unpickle(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        content = _ArrayUnpickler(stream, encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError("expected a dictionary")
    return content


def _cifar(name: str, root: Path, training: bool) -> _Whole:
    # Not through torchvision: it unpickles without restraint once its checksum holds.
    first = name == "CIFAR10"
    folder = root / ("cifar-10-batches-py" if first else "cifar-100-python")
    meta, names = ("batches.meta", "label_names") if first else ("meta", "fine_label_names")
    if first:
        files = _CIFAR10_BATCHES if training else ("test_batch",)
    else:
        files = ("train",) if training else ("test",)
    on_disk = _reading(folder / meta, lambda: _unpickle(folder / meta)[names])
    if tuple(word.replace("_", " ") for word in on_disk) != _CLASSNAMES[name]:
        raise ValueError(f"{name}: the class names in {folder / meta} are not those of {name}")
    pixels, labels = [], []
    for file in files:

        def read(path: Path = folder / file) -> tuple[npt.NDArray[np.uint8], list[int]]:
            batch = _unpickle(path)
            data = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            return data.transpose(0, 2, 3, 1), batch["labels" if first else "fine_labels"]

        data, numbers = _reading(folder / file, read)
        pixels.append(data)
        labels.extend(numbers)
    return _Whole(folder, np.concatenate(pixels), labels)


class _STL10(datasets.STL10):  # type: ignore[misc]
    def _check_integrity(self) -> bool:
        return True  # summing 5 GB takes a minute a call; fetching has done so once


class _SVHN(datasets.SVHN):  # type: ignore[misc]
    def _check_integrity(self) -> bool:
        return True  # as above


def _stl10(name: str, root: Path, training: bool) -> _Whole:
    folder = root / "stl10_binary"
    stl10 = _reading(folder, lambda: _STL10(str(root), "train" if training else "test"))
    # torchvision turns labels 1..10 into 0..9 in uint8, where 0 becomes 255 and is refused
    return _Whole(folder, stl10.data.transpose(0, 2, 3, 1), stl10.labels)


def _svhn(name: str, root: Path, training: bool) -> _Whole:
    part = "train" if training else "test"
    file = root / f"{part}_32x32.mat"
    svhn = _reading(file, lambda: _SVHN(str(root), part))
    return _Whole(file, svhn.data.transpose(0, 2, 3, 1), np.atleast_1d(svhn.labels))


def _mnist(name: str, root: Path, training: bool) -> _Whole:
    folder = root / name / "raw"
    read = datasets.MNIST if name == "MNIST" else datasets.FashionMNIST
    mnist = _reading(folder, lambda: read(str(root), training))
    return _Whole(folder, mnist.data.numpy(), mnist.targets.numpy())


# --- one file a picture ----------------------------------------------------------------------


def _cars(name: str, root: Path, training: bool) -> _Whole:
    folder = root / "stanford_cars"
    part = "train" if training else "test"
    samples = _reading(folder, lambda: datasets.StanfordCars(root, part)._samples)
    return _Whole(folder, [path for path, _ in samples], [int(label) for _, label in samples])


def _dtd_merged(root: Path) -> bool:
    """Whether this is the layout of PAINT's follow-ups: `val` holds the test set."""
    return not (root / "dtd/dtd").is_dir() and all(
        (root / "dtd" / part).is_dir() for part in ("train", "val")
    )


def _dtd(name: str, root: Path, training: bool) -> _Whole:
    folder = root / "dtd"
    if _dtd_merged(root):
        pictures = folder / ("train" if training else "val")
        _same_folders(name, pictures)
        samples = _reading(pictures, lambda: datasets.ImageFolder(pictures).samples)
        return _Whole(folder, *_by_folder(name, (path for path, _ in samples)))
    parts = ("train", "val") if training else ("test",)
    files = _reading(folder, lambda: [datasets.DTD(root, part)._image_files for part in parts])
    return _Whole(folder, *_by_folder(name, itertools.chain(*files)))


def _eurosat(name: str, root: Path, training: bool) -> _Whole:
    folder = root / "eurosat/2750"
    _same_folders(name, folder)
    samples = _reading(folder, lambda: datasets.EuroSAT(root).samples)
    return _Whole(folder, *_by_folder(name, (path for path, _ in samples)))


def _gtsrb(name: str, root: Path, training: bool) -> _Whole:
    folder = root / "gtsrb"
    if training:
        _same_folders(name, folder / "GTSRB/Training")
    part = "train" if training else "test"
    samples = _reading(folder, lambda: datasets.GTSRB(root, part)._samples)
    return _Whole(folder, [path for path, _ in samples], [label for _, label in samples])


def _resisc45(name: str, root: Path, training: bool) -> _Whole:
    folder = root / "NWPU-RESISC45"
    files = _lines(_list_file(name, root, training))
    # airport_001.jpg lies in airport; railway_station_001.jpg in railway_station
    paths = (folder / file.rpartition("_")[0] / file for file in files)
    return _Whole(folder, *_by_folder(name, paths))


def _scene(path: str) -> str:
    """Turn the folder of a scene into its name.

    >>> _scene("/a/apartment_building/outdoor")
    'apartment building outdoor'
    """
    return " ".join(path.strip("/").split("/")[1:]).replace("_", " ")


def _sun397(name: str, root: Path, training: bool) -> _Whole:
    # Not through torchvision, which searches all 108,754 pictures and knows no partition.
    folder = root / "SUN397"
    scenes = {scene: index for index, scene in enumerate(_lines(folder / "ClassName.txt"))}
    if len(scenes) != CLASSES[name]:
        raise ValueError(
            f"{name}: {len(scenes)} scenes in {folder / 'ClassName.txt'}, expected {CLASSES[name]}"
        )
    file = _list_file(name, root, training)
    pictures = _lines(file)
    labels = [scenes.get(picture.rpartition("/")[0], -1) for picture in pictures]
    if -1 in labels:
        raise ValueError(
            f"{name}: {labels.count(-1)} lines of {file} are in no scene of ClassName.txt, "
            f"first: {pictures[labels.index(-1)]!r}; expected lines such as /a/abbey/sun_a.jpg"
        )
    return _Whole(folder, [str(folder / picture.lstrip("/")) for picture in pictures], labels)


_READERS: dict[str, Callable[[str, Path, bool], _Whole]] = {
    "ImageNet": _imagenet,
    "CIFAR10": _cifar,
    "CIFAR100": _cifar,
    "STL10": _stl10,
    "Cars": _cars,
    "DTD": _dtd,
    "EuroSAT": _eurosat,
    "GTSRB": _gtsrb,
    "MNIST": _mnist,
    "RESISC45": _resisc45,
    "SUN397": _sun397,
    "SVHN": _svhn,
    "FashionMNIST": _mnist,
}
