"""The real data sets: what is on disk, and fetching what can be fetched.

`python -m paintlib data` prints the table, `--fetch NAME` downloads one data set. A download is
put together in the hidden folder `.NAME.part` beside its place and renamed when it is whole, so a
stopped one never looks like a data set; the same command goes on with the archives already there.
"""

import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision import datasets
from torchvision.datasets import imagenet
from torchvision.datasets.utils import calculate_md5, download_url
from tqdm import tqdm

from experiment.real import datasets as paper

__all__ = ["fetch", "run", "table"]

_CARS_MIRROR = "clip-benchmark/wds_cars"
_CARS_COUNTS = {"train": 8144, "test": 8041}
_RESISC45_MIRROR = "torchgeo/resisc45"
_RESISC45_REVISION = "a826b44d938a883185f11ebe3d512d38b464312f"
_RESISC45_MD5 = {
    "NWPU-RESISC45.zip": "75206b2e16446591afa88e2628744886",
    "resisc45-train.txt": "b5a4c05a37de15e4ca886696a85c403e",
    "resisc45-val.txt": "a0770cee4c5ca20b8c32bbd61e114805",
    "resisc45-test.txt": "3dda9e4988b47eb1de9f07993653eb08",
}
# The mirror is a stranger's, the checksums are those of the original archives.
_SUN397_MIRROR = "zhengli97/SUN397_Dataset"
_SUN397_MD5 = "8ca2778205c41d23104230ba66911c7a"
_SUN397_LISTS = "https://3dvision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
_SUN397_LISTS_MD5 = "29a205c0a0129d21f36cbecfefe81881"


class _Source(NamedTuple):
    """Where a data set comes from.

    Attributes:
        size: Space it takes when it is whole.
        how: One line for the table.
        by_hand: Where to look when the download fails.
        get: Leaves the official layout in the folder it is given; resumes there.
    """

    size: str
    how: str
    by_hand: str
    get: Callable[[Path], None] | None = None


def table(root: Path) -> str:
    """Return a text table of the 13 data sets under `root`: found or not, size, how to get them."""
    root = Path(root).expanduser()
    names = paper.SUPPORTED + paper.PATCHING
    lacking = paper.missing(names, root)
    rows = [("data set", "found", "lies in", "on disk", "how to get it")]
    for name in names:
        source = _SOURCES[name]
        found = "no" if name in lacking else "yes"
        rows.append((name, found, ", ".join(_tops(name)), source.size, source.how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    count = len(names) - len(lacking)
    absent = "" if root.is_dir() else ", which does not exist"
    lines += ["", f"{count} of {len(names)} found in {root}{absent}"]
    if lacking:
        if root.is_dir():
            lines += [f"- {reason.partition('; `')[0]}" for reason in lacking.values()]
        lines += ["`python -m paintlib data --fetch NAME` downloads one."]
    return "\n".join(lines)


def fetch(name: str, root: Path) -> Path:
    """Download one data set into `root`, in its official layout; do nothing if it is there.

    Archives are checked by MD5 where the publisher gave one, and by count where a mirror did not.
    Progress goes to standard error.

    Args:
        name: One of the 13 names; ImageNet is only unpacked, from the user's own archives.
        root: The data folder, made if need be.

    Returns:
        `root`.

    Raises:
        ValueError: If the name is unknown, the data set cannot be had this way, or something
            stands in its place.
        RuntimeError: If a download or a check fails.
    """
    if name not in _SOURCES:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(_SOURCES)}")
    root = Path(root).expanduser()
    if not paper.missing([name], root):
        return root
    source = _SOURCES[name]
    if source.get is None:
        _unpack_imagenet(root)
        return root
    if there := [top for top in _tops(name) if (root / top).exists()]:
        reason = paper.missing([name], root)[name].partition(";")[0]
        raise ValueError(
            f"{root / there[0]} is not a whole data set ({reason}); move it away, then fetch again"
        )
    staging = root / f".{name}.part"
    staging.mkdir(parents=True, exist_ok=True)
    _discard_unpacked(staging)
    try:
        source.get(staging)
    except Exception as error:  # three download libraries, each with kinds of its own
        raise RuntimeError(
            f"fetching {name} failed ({type(error).__name__}: {error}); the same command goes on "
            f"from here. By hand: {source.by_hand}"
        ) from error
    if lack := paper.missing([name], staging):
        raise RuntimeError(f"what was fetched is not whole: {lack[name]}")
    for top in _tops(name):
        os.rename(staging / top, root / top)
    shutil.rmtree(staging)
    return root


def run(root: Path, name: str | None = None) -> None:
    """Fetch data set `name` if one is given; print the table."""
    if name is not None:
        fetch(name, root)
    print(table(root))


def _tops(name: str) -> tuple[str, ...]:
    """Return the files and folders of a data set that lie directly in the data folder."""
    return tuple(dict.fromkeys(Path(need).parts[0] for need in paper.NEEDS[name])) or ("imagenet",)


def _is_archive(path: Path, staging: Path) -> bool:
    # SVHN's files are not packed, and checked by MD5 before they are taken for whole
    return path.suffix in {".gz", ".tgz", ".tar", ".zip"} or path.parent == staging


def _discard_unpacked(staging: Path) -> None:
    """Remove all but archives: torchvision takes a half-unpacked folder for a whole one."""
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.relative_to(staging).parts[0] == "hub":
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif not _is_archive(path, staging):
            path.unlink()


# --- by torchvision --------------------------------------------------------------------------


def _torchvision(name: str) -> Callable[[Path], None]:
    def get(staging: Path) -> None:
        kind = getattr(datasets, name)
        parts: tuple[dict[str, str], ...] = ({},)
        if name in ("GTSRB", "SVHN"):
            parts = ({"split": "train"}, {"split": "test"})
        for options in parts:
            kind(str(staging), download=True, **options)
        for top in _tops(name):
            for path in (staging / top).rglob("*"):
                if path.is_file() and _is_archive(path, staging):
                    path.unlink()

    return get


# --- from mirrors on the Hub -----------------------------------------------------------------


def _snapshot(
    repository: str, staging: Path, patterns: list[str], kind: str = "dataset", revision: str = ""
) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    folder = staging / "hub"
    snapshot_download(
        repository,
        repo_type=kind,
        revision=revision or None,
        local_dir=folder,
        allow_patterns=patterns,
    )
    return folder


def _check_md5(file: Path, expected: str) -> None:
    seen = calculate_md5(file)
    if seen != expected:
        file.unlink()  # or the next call would take it for downloaded
        raise ValueError(f"{file.name} has MD5 {seen}, expected {expected}; removed it")


def _cars(staging: Path) -> None:
    """Turn the mirror's tar files of numbered pictures and labels into the official layout."""
    from scipy.io import savemat

    hub = _snapshot(_CARS_MIRROR, staging, ["classnames.txt", "train/*", "test/*"])
    cars = staging / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    classnames = (hub / "classnames.txt").read_text(encoding="utf-8").splitlines()
    classnames = [name.strip() for name in classnames if name.strip()]
    if len(classnames) != paper.CLASSES["Cars"]:
        raise ValueError(f"{len(classnames)} class names, expected {paper.CLASSES['Cars']}")
    cells = np.array(classnames, dtype=object)
    savemat(cars / "devkit/cars_meta.mat", {"class_names": cells})
    for part, annotations in (
        ("train", cars / "devkit/cars_train_annos.mat"),
        ("test", cars / "cars_test_annos_withlabels.mat"),
    ):
        pictures = cars / f"cars_{part}"
        pictures.mkdir()
        rows: list[tuple[int, str]] = []
        total = _CARS_COUNTS[part]
        for image, label in tqdm(_samples(hub / part), f"Cars {part}", total, unit="img"):
            if not 0 <= label < len(classnames):
                raise ValueError(f"label {label} in {part}, expected 0..{len(classnames) - 1}")
            file = f"{len(rows) + 1:05d}.jpg"
            (pictures / file).write_bytes(image)
            rows.append((label + 1, file))  # the official labels begin at 1
        if len(rows) != total:
            raise ValueError(f"{len(rows)} pictures in {part}, expected {total}")
        savemat(
            annotations, {"annotations": np.array(rows, dtype=[("class", "O"), ("fname", "O")])}
        )


def _samples(folder: Path) -> Iterator[tuple[bytes, int]]:
    """Yield picture and label from 0.tar, 1.tar, ...; a pair of members shares its stem."""
    shards = int((folder / "nshards.txt").read_text())
    for shard in range(shards):
        members: dict[str, dict[str, bytes]] = {}
        with tarfile.open(folder / f"{shard}.tar") as archive:
            for member in archive:
                stem, _, kind = member.name.partition(".")
                stream = archive.extractfile(member)
                if stream is None:
                    continue
                pair = members.setdefault(stem, {})
                pair["cls" if kind == "cls" else "image"] = stream.read()
                if len(pair) == 2:
                    del members[stem]
                    yield pair["image"], int(pair["cls"])
        if members:
            raise ValueError(f"{len(members)} pictures of {shard}.tar lack their label")


def _resisc45(staging: Path) -> None:
    hub = _snapshot(_RESISC45_MIRROR, staging, list(_RESISC45_MD5), revision=_RESISC45_REVISION)
    for file, md5 in _RESISC45_MD5.items():
        _check_md5(hub / file, md5)
    archive, *lists = _RESISC45_MD5
    with zipfile.ZipFile(hub / archive) as pack:
        for member in tqdm(pack.infolist(), "RESISC45", unit="file"):
            pack.extract(member, staging)
    for file in lists:
        shutil.copyfile(hub / file, staging / "NWPU-RESISC45" / file)


def _sun397(staging: Path) -> None:
    """Unpack the pictures of Partition 1: 39,700 of the 108,754 in the archive."""
    hub = _snapshot(_SUN397_MIRROR, staging, ["SUN397.tar.gz"], kind="model")
    download_url(_SUN397_LISTS, str(hub), "Partitions.zip", _SUN397_LISTS_MD5)
    checked = hub / "checked"  # summing 37 GB takes minutes: once is enough
    if not checked.exists():
        _check_md5(hub / "SUN397.tar.gz", _SUN397_MD5)
        checked.touch()
    sun397 = staging / "SUN397"
    sun397.mkdir()
    wanted: set[str] = set()
    with zipfile.ZipFile(hub / "Partitions.zip") as pack:
        for member in pack.namelist():
            file = Path(member).name
            if file in ("Training_01.txt", "Testing_01.txt", "ClassName.txt"):
                content = pack.read(member)
                (sun397 / file).write_bytes(content)
                if file != "ClassName.txt":
                    wanted.update(f"SUN397{line.strip()}" for line in content.decode().split())
    names = wanted | {"SUN397/ClassName.txt"}
    with (
        tarfile.open(hub / "SUN397.tar.gz") as archive,
        tqdm(desc="SUN397", total=len(wanted), unit="img") as bar,
    ):
        for item in archive:
            if item.name.removeprefix("./") in names:
                archive.extract(item, staging, filter="data")
                bar.update(item.name.endswith(".jpg"))
    if absent := sorted(name for name in wanted if not (staging / name).is_file()):
        raise ValueError(f"{len(absent)} listed pictures are not in the archive: {absent[0]}")


# --- ImageNet --------------------------------------------------------------------------------


def _unpack_imagenet(root: Path) -> None:
    """Unpack the user's archives beside themselves.

    Raises:
        ValueError: If they are not there: this data set is never downloaded.
    """
    folder = paper.imagenet_folder(root)
    train, val = paper.IMAGENET_TARS
    if folder is None or not any((folder / tar).is_file() for tar in (train, val)):
        raise ValueError(
            "ImageNet is never downloaded: its terms ask each user to agree in person, for "
            "research only. Get the archives from https://image-net.org (ILSVRC 2012, after "
            f"signing in), put {train}, {val} and ILSVRC2012_devkit_t12.tar.gz into "
            f"{root / 'imagenet'} and give this command again to unpack them"
        )
    for part, tar, parse in (
        ("train", train, imagenet.parse_train_archive),
        ("val", val, imagenet.parse_val_archive),
    ):
        if (folder / part).is_dir() or not (folder / tar).is_file():
            continue
        staging = folder / f".{part}.part"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            if part == "val" and not (folder / imagenet.META_FILE).is_file():
                imagenet.parse_devkit_archive(str(folder))
            parse(str(folder), folder=staging.name)
        except (OSError, RuntimeError) as error:
            raise RuntimeError(f"{folder / tar} cannot be unpacked: {error}") from error
        staging.rename(folder / part)
    if lack := paper.missing(["ImageNet"], root):
        raise ValueError(lack["ImageNet"])


_AUTOMATIC = "automatic, by torchvision"
_SOURCES: dict[str, _Source] = {
    "ImageNet": _Source(
        "145 GB",
        "by hand: its terms ask each user to agree; --fetch unpacks the archives",
        "https://image-net.org",
    ),
    "CIFAR10": _Source(
        "0.2 GB",
        _AUTOMATIC,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        _torchvision("CIFAR10"),
    ),
    "CIFAR100": _Source(
        "0.2 GB",
        _AUTOMATIC,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        _torchvision("CIFAR100"),
    ),
    "STL10": _Source(
        "2.9 GB", _AUTOMATIC, "https://cs.stanford.edu/~acoates/stl10", _torchvision("STL10")
    ),
    "Cars": _Source(
        "2 GB",
        f"automatic, from the Hub mirror {_CARS_MIRROR}: the original is gone",
        "pytorch/vision issue 7545 lists copies of the original archives",
        _cars,
    ),
    "DTD": _Source(
        "0.6 GB", _AUTOMATIC, "https://www.robots.ox.ac.uk/~vgg/data/dtd", _torchvision("DTD")
    ),
    "EuroSAT": _Source(
        "0.1 GB", _AUTOMATIC, "https://github.com/phelber/EuroSAT", _torchvision("EuroSAT")
    ),
    "GTSRB": _Source("0.4 GB", _AUTOMATIC, "https://benchmark.ini.rub.de", _torchvision("GTSRB")),
    "MNIST": _Source(
        "0.1 GB",
        _AUTOMATIC,
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        _torchvision("MNIST"),
    ),
    "RESISC45": _Source(
        "0.5 GB",
        f"automatic, from the Hub mirror {_RESISC45_MIRROR}",
        "NWPU-RESISC45.rar of its authors, and the lists resisc45-train.txt and resisc45-test.txt",
        _resisc45,
    ),
    "SUN397": _Source(
        "14 GB",
        f"automatic, 37 GB from the Hub mirror {_SUN397_MIRROR}: the original is gone",
        f"an archive SUN397.tar.gz of MD5 {_SUN397_MD5}, and Partitions.zip of the SUN database",
        _sun397,
    ),
    "SVHN": _Source(
        "0.3 GB", _AUTOMATIC, "http://ufldl.stanford.edu/housenumbers", _torchvision("SVHN")
    ),
    "FashionMNIST": _Source(
        "0.1 GB",
        _AUTOMATIC,
        "https://github.com/zalandoresearch/fashion-mnist",
        _torchvision("FashionMNIST"),
    ),
}


if __name__ == "__main__":
    from experiment.__main__ import main

    sys.exit(main(["data", *sys.argv[1:]]))
