"""Small generated data sets in the 13 official layouts: `python tests/trees.py FOLDER`.

The mean colour of a picture tells its class, see `class_of`. Formats, file names and label
conventions are the official ones.
"""

import importlib.util
import io
import pickle
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from experiment.real.facts import DATA_SETS

NAMES = tuple(DATA_SETS)
_LEVELS = 24  # distance of two digits in 0..255: well above noise and JPEG


def write(root: Path, names: Iterable[str] = NAMES, per_class: int = 3) -> None:
    """Write data sets under `root`: `per_class` training pictures a class, and one test picture.

    EuroSAT, whose split is drawn, gets 10 pictures a class in all.
    """
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[name](root, per_class)


def wnids() -> list[str]:
    """Return the 1,000 class folders of ImageNet, from a list that timm brings along."""
    spec = importlib.util.find_spec("timm")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return (folder / "data/_info/imagenet_synsets.txt").read_text().split()


def pixels(label: int, serial: int = 0, height: int = 30, width: int = 40) -> np.ndarray:
    """Return a noisy square of the class's colour, uint8 (height, width, 3)."""
    digits = np.array([label % 10, label // 10 % 10, label // 100 % 10])
    noise = np.random.default_rng((label, serial)).integers(-8, 9, (height, width, 1))
    return (16 + _LEVELS * digits + noise).astype(np.uint8)


def class_of(image: Image.Image) -> int:
    """Return the class a colour stands for; modulo 10 for a grey picture, which repeats a digit."""
    mean = np.asarray(image.convert("RGB"), dtype=float).mean((0, 1))
    digits = [int(digit) for digit in np.rint((mean - 16) / _LEVELS)]
    if len(set(digits)) == 1:
        return digits[0]
    return digits[0] + 10 * digits[1] + 100 * digits[2]


def encoded(label: int, serial: int = 0, kind: str = "JPEG") -> bytes:
    """Return a picture file; one in six is grey or, whatever its name says, a PNG with alpha."""
    odd = (7 * label + serial) % 12
    size = (30 + serial % 3, 40 - serial % 2)
    image = Image.fromarray(pixels(label, serial, *size))
    if kind == "JPEG" and odd == 3:
        image = Image.fromarray(np.asarray(image)[..., 0])
    elif kind == "JPEG" and odd == 5:
        kind, alpha = "PNG", Image.new("L", image.size, 200)
        image.putalpha(alpha)
        if label % 2:
            image = image.quantize(64)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def arrays(classes: int, count: int, serial: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, side, side, 3) and labels (n,), the classes in turn."""
    labels = np.tile(np.arange(classes), count)
    images = [pixels(k, serial + i, side, side) for i, k in enumerate(labels)]
    return np.stack(images), labels


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _text(path: Path, lines: Iterable[str]) -> None:
    _save(path, "".join(f"{line}\n" for line in lines).encode())


def _imagenet(root: Path, per_class: int) -> None:
    for label, wnid in enumerate(wnids()):
        for serial in range(per_class):
            _save(root / f"imagenet/train/{wnid}/{wnid}_{serial}.JPEG", encoded(label, serial))
        picture = f"ILSVRC2012_val_{label + 1:08d}.JPEG"
        _save(root / f"imagenet/val/{wnid}/{picture}", encoded(label, per_class))


def _pickle(path: Path, content: dict) -> None:
    _save(path, pickle.dumps(content, protocol=2))


def _batch(classes: int, count: int, serial: int, key: str) -> dict:
    images, labels = arrays(classes, count, serial, 32)
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return {"data": np.ascontiguousarray(data), key: labels.tolist()}


def _cifar10(root: Path, per_class: int) -> None:
    folder = root / "cifar-10-batches-py"
    for batch in range(1, 6):
        _pickle(folder / f"data_batch_{batch}", _batch(10, per_class, 100 * batch, "labels"))
    _pickle(folder / "test_batch", _batch(10, 1, 0, "labels"))
    _pickle(folder / "batches.meta", {"label_names": _underscored("CIFAR10")})


def _cifar100(root: Path, per_class: int) -> None:
    folder = root / "cifar-100-python"
    _pickle(folder / "train", _batch(100, per_class, 1000, "fine_labels"))
    _pickle(folder / "test", _batch(100, 1, 0, "fine_labels"))
    _pickle(folder / "meta", {"fine_label_names": _underscored("CIFAR100")})


def _underscored(name: str) -> list[str]:
    return [word.replace(" ", "_") for word in DATA_SETS[name].classnames]


def _stl10(root: Path, per_class: int) -> None:
    folder = root / "stl10_binary"
    for part, count in (("train", per_class), ("test", 1)):
        images, labels = arrays(10, count, 10 * count, 96)
        _save(folder / f"{part}_X.bin", images.transpose(0, 3, 2, 1).tobytes())  # column by column
        _save(folder / f"{part}_y.bin", (labels + 1).astype(np.uint8).tobytes())
    _save(folder / "unlabeled_X.bin", b"")
    _text(folder / "class_names.txt", DATA_SETS["STL10"].classnames)
    _text(folder / "fold_indices.txt", ["0"] * 10)


def _cars(root: Path, per_class: int) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True, exist_ok=True)
    names = np.array(DATA_SETS["Cars"].classnames, dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    for part, count, file in (
        ("train", per_class, "devkit/cars_train_annos.mat"),
        ("test", 1, "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for number, label in enumerate(np.tile(np.arange(196), count), start=1):
            picture = f"{number:05d}.jpg"
            _save(folder / f"cars_{part}" / picture, encoded(int(label), number))
            rows.append((1, 1, 30, 20, np.uint8(label + 1), picture))
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        table = np.array(rows, dtype=[(field, "O") for field in fields])
        savemat(folder / file, {"annotations": table})


def _dtd(root: Path, per_class: int) -> None:
    folder = root / "dtd/dtd"
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(DATA_SETS["DTD"].classnames):
        for serial in range(per_class + 1):
            part = "test" if serial == per_class else ("val" if serial % 2 else "train")
            picture = f"{name}/{name}_{serial:04d}.jpg"
            _save(folder / "images" / picture, encoded(label, serial))
            lists[part].append(picture)
    for part, pictures in lists.items():
        _text(folder / f"labels/{part}1.txt", pictures)


_EUROSAT = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"  # noqa: E501


def _eurosat(root: Path, per_class: int) -> None:
    for label, name in enumerate(_EUROSAT.split()):
        for serial in range(1, 11):
            _save(root / f"eurosat/2750/{name}/{name}_{serial}.jpg", encoded(label, serial))


def _gtsrb(root: Path, per_class: int) -> None:
    folder = root / "gtsrb"
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        training = folder / f"GTSRB/Training/{label:05d}"
        for serial in range(per_class):
            _save(
                training / f"{serial // 2:05d}_{serial % 2:05d}.ppm", encoded(label, serial, "PPM")
            )
        _text(training / f"GT-{label:05d}.csv", rows[:1])
        number = (label * 5) % 43  # test files are not in the order of their classes
        _save(folder / f"GTSRB/Final_Test/Images/{number:05d}.ppm", encoded(label, 99, "PPM"))
        rows.append(f"{number:05d}.ppm;40;30;5;5;35;25;{label}")
    _text(folder / "GT-final_test.csv", rows)


def _idx(root: Path, per_class: int) -> None:
    for part, count in (("train", per_class), ("t10k", 1)):
        images, labels = arrays(10, count, 10 * count, 28)
        # big-endian, as in 1998: type and rank, then the sizes
        head = bytes([0, 0, 8, 3]) + np.array([len(images), 28, 28], ">i4").tobytes()
        _save(root / f"raw/{part}-images-idx3-ubyte", head + images[..., 0].tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([len(labels)], ">i4").tobytes()
        _save(root / f"raw/{part}-labels-idx1-ubyte", head + labels.astype(np.uint8).tobytes())


def _resisc45(root: Path, per_class: int) -> None:
    folder = root / "NWPU-RESISC45"
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(_underscored("RESISC45")):
        for serial, part in enumerate(["train"] * per_class + ["val", "test"], start=1):
            picture = f"{name}_{serial:03d}.jpg"
            _save(folder / name / picture, encoded(label, serial))
            lists[part].append(picture)
    for part, pictures in lists.items():
        _text(folder / f"resisc45-{part}.txt", pictures[::-1])


def scenes() -> list[str]:
    """Return the 397 scenes as ClassName.txt lists them, two or three levels deep."""
    folders = [name.replace(" ", "_") for name in DATA_SETS["SUN397"].classnames]
    deep = re.compile("_(indoor|outdoor|natural|urban|exterior|interior)$")
    return [f"/{folder[0]}/" + deep.sub(r"/\1", folder) for folder in folders]


def _sun397(root: Path, per_class: int) -> None:
    folder = root / "SUN397"
    lists: dict[str, list[str]] = {"Training_01": [], "Testing_01": []}
    for label, scene in enumerate(scenes()):
        for serial in range(per_class + 1):
            letters = "".join(chr(97 + (label * 7 + serial * 5 + i * (label % 11)) % 26)
                              for i in range(15))  # fmt: skip
            picture = f"{scene}/sun_{chr(97 + serial % 26)}{letters}.jpg"
            _save(folder / picture[1:], encoded(label, serial))
            lists["Testing_01" if serial == per_class else "Training_01"].append(picture)
    _text(folder / "ClassName.txt", scenes())
    for part, pictures in lists.items():
        _text(folder / f"{part}.txt", pictures)


def _svhn(root: Path, per_class: int) -> None:
    for part, count in (("train", per_class), ("test", 1)):
        images, labels = arrays(10, count, 10 * count, 32)
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]  # the digit 0 is class 10
        savemat(root / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})


_WRITERS = {
    "ImageNet": _imagenet,
    "CIFAR10": _cifar10,
    "CIFAR100": _cifar100,
    "STL10": _stl10,
    "Cars": _cars,
    "DTD": _dtd,
    "EuroSAT": _eurosat,
    "GTSRB": _gtsrb,
    "MNIST": lambda root, per_class: _idx(root / "MNIST", per_class),
    "RESISC45": _resisc45,
    "SUN397": _sun397,
    "SVHN": _svhn,
    "FashionMNIST": lambda root, per_class: _idx(root / "FashionMNIST", per_class),
}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
