"""What is on disk of the real data sets, and fetching what can be fetched.

`python -m experiment data` prints the table, `--fetch NAME` downloads one data set. A download is
put together in the hidden folder `.NAME.part` beside its place and renamed when it is whole, so a
stopped one never looks like a data set; the same command goes on with what a mirror has sent.
"""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat
from torchvision import datasets as official
from torchvision.datasets import imagenet
from torchvision.datasets.utils import calculate_md5, download_url, extract_archive
from tqdm import tqdm

from experiment.real import datasets
from experiment.real.facts import DATA_SETS


def data(_run: object, data: Path = Path("data"), name: str | None = None) -> None:
    """Fetch data set `name` if one is given; print the table."""
    if name is not None:
        fetch(name, data)
    print(table(data))


def table(root: Path) -> str:
    """Return a text table of the 13 data sets under `root`: found or not, size, how to get them."""
    root = Path(root).expanduser()
    lacking = datasets.missing(DATA_SETS, root)
    rows = [("data set", "found", "lies in", "on disk", "how to get it")]
    for name, data in DATA_SETS.items():
        found = "no" if name in lacking else "yes"
        rows.append((name, found, ", ".join(_tops(name)), data.size, data.how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    absent = "" if root.is_dir() else ", which does not exist"
    lines += ["", f"{len(DATA_SETS) - len(lacking)} of {len(DATA_SETS)} found in {root}{absent}"]
    if root.is_dir():
        lines += [f"- {reason.partition('; `')[0]}" for reason in lacking.values()]
    if lacking:
        lines.append(f"`{datasets.COMMAND} --fetch NAME` downloads one.")
    return "\n".join(lines)


def fetch(name: str, root: Path) -> None:
    """Download one data set into `root`, in its official layout; do nothing if it is there.

    Archives are checked by MD5 where the publisher gave one, and by count where a mirror did not.
    ImageNet is only unpacked, from the user's own archives.
    """
    root = Path(root).expanduser()
    lack = datasets.missing([name], root).get(name)
    if not lack:
        return
    if name == "ImageNet":
        _unpack_imagenet(root)
        return
    if there := [top for top in _tops(name) if (root / top).exists()]:
        raise ValueError(
            f"{root / there[0]} is not a whole data set ({lack.partition(';')[0]}); "
            "move it away, then fetch again"
        )
    part = root / f".{name}.part"
    staging = part / "whole"
    shutil.rmtree(staging, ignore_errors=True)  # torchvision takes half a folder for a whole one
    staging.mkdir(parents=True)
    get = {"Cars": _cars, "RESISC45": _resisc45, "SUN397": _sun397}.get(name, _official)
    try:
        get(name, staging)
        datasets.task(name, staging)
        for split in ("train", "test"):
            datasets.open_split(name, staging, split)  # refuses what is not whole
    except Exception as error:  # three download libraries, each with kinds of its own
        raise RuntimeError(
            f"fetching {name} failed ({type(error).__name__}: {error}); the same command goes on "
            f"from here. By hand: {DATA_SETS[name].by_hand}"
        ) from error
    for top in _tops(name):
        os.rename(staging / top, root / top)
    shutil.rmtree(part)


def _tops(name: str) -> tuple[str, ...]:
    """Return the files and folders of a data set that lie directly in the data folder."""
    places = DATA_SETS[name].needs or (DATA_SETS[name].folder,)
    return tuple(dict.fromkeys(Path(place).parts[0] for place in places))


def _official(name: str, staging: Path) -> None:
    """Let torchvision download and unpack."""
    options = [{"split": part} for part in ("train", "test")] if name in ("GTSRB", "SVHN") else [{}]
    for option in options:
        getattr(official, name)(str(staging), download=True, **option)
    for path in list(staging.rglob("*")):
        if path.suffix in {".gz", ".zip"}:
            path.unlink()


def _mirrored(name: str, staging: Path, files: Sequence[str]) -> Path:
    """Download files of a mirror, check those whose MD5 is known, and return their folder."""
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    hub, data = staging.with_name("hub"), DATA_SETS[name]
    snapshot_download(**data.mirror, local_dir=hub, allow_patterns=list(files))
    for file in files:
        if file in data.md5 and (seen := calculate_md5(hub / file)) != data.md5[file]:
            (hub / file).unlink()  # or the next call would take it for downloaded
            raise ValueError(f"{file} has MD5 {seen}, expected {data.md5[file]}; removed it")
    return hub


def _cars(name: str, staging: Path) -> None:
    """Turn the mirror's tar files of numbered pictures and labels into the official layout."""
    hub, data = _mirrored(name, staging, ["classnames.txt", "train/*", "test/*"]), DATA_SETS[name]
    cars = staging / data.folder
    (cars / "devkit").mkdir(parents=True)
    classnames = np.array(datasets.lines(hub / "classnames.txt"), dtype=object)
    savemat(cars / "devkit/cars_meta.mat", {"class_names": classnames})
    for part, total, annotations in (
        ("train", data.train, "devkit/cars_train_annos.mat"),
        ("test", data.test, "cars_test_annos_withlabels.mat"),
    ):
        (cars / f"cars_{part}").mkdir()
        rows: list[tuple[int, str]] = []
        for image, label in tqdm(_samples(hub / part), f"Cars {part}", total, unit="img"):
            rows.append((label + 1, f"{len(rows) + 1:05d}.jpg"))  # the official labels begin at 1
            (cars / f"cars_{part}" / rows[-1][1]).write_bytes(image)
        if len(rows) != total:
            raise ValueError(f"{len(rows)} pictures in {part}, expected {total}")
        struct = np.array(rows, dtype=[("class", "O"), ("fname", "O")])
        savemat(cars / annotations, {"annotations": struct})


def _samples(folder: Path) -> Iterator[tuple[bytes, int]]:
    """Yield picture and label from 0.tar, 1.tar, ...; a pair of members shares its stem."""
    for shard in range(int((folder / "nshards.txt").read_text())):
        pairs: dict[str, dict[bool, bytes]] = {}
        with tarfile.open(folder / f"{shard}.tar") as archive:
            for member in archive:
                stem, _, kind = member.name.partition(".")
                if stream := archive.extractfile(member):
                    pairs.setdefault(stem, {})[kind == "cls"] = stream.read()
                    if len(pairs[stem]) == 2:
                        pair = pairs.pop(stem)
                        yield pair[False], int(pair[True])


def _resisc45(name: str, staging: Path) -> None:
    archive, *lists = DATA_SETS[name].md5
    hub = _mirrored(name, staging, [archive, *lists])
    extract_archive(str(hub / archive), str(staging))
    for file in lists:
        shutil.copy(hub / file, staging / DATA_SETS[name].folder)


def _sun397(name: str, staging: Path) -> None:
    """Unpack the pictures of Partition 1: 39,700 of the 108,754 in the archive."""
    archive, partitions = DATA_SETS[name].md5
    hub, data = _mirrored(name, staging, [archive]), DATA_SETS[name]
    download_url(data.lists_url, str(hub), partitions, data.md5[partitions])
    (staging / name).mkdir()
    wanted = {f"{name}/ClassName.txt"}
    with zipfile.ZipFile(hub / partitions) as pack:
        for member in pack.namelist():
            file = staging / name / Path(member).name
            if file.name in data.lists:
                file.write_bytes(pack.read(member))
                wanted.update(f"{name}{line}" for line in datasets.lines(file))
    with tarfile.open(hub / archive) as packed:
        for item in tqdm(packed, name, unit="file"):
            if item.name.removeprefix("./") in wanted:
                packed.extract(item, staging, filter="data")


def _unpack_imagenet(root: Path) -> None:
    """Unpack the user's archives beside themselves: this data set is never downloaded."""
    folder, tars = datasets.imagenet_folder(root), datasets.IMAGENET_TARS
    if not any((folder / tar).is_file() for tar in tars.values()):
        raise ValueError(
            "ImageNet is never downloaded: its terms ask each user to agree in person, for "
            "research only. Get the archives from https://image-net.org (ILSVRC 2012, after "
            f"signing in), put {', '.join(tars.values())} and ILSVRC2012_devkit_t12.tar.gz into "
            f"{folder} and give this command again to unpack them"
        )
    for part in [part for part in tars if not (folder / part).is_dir()]:
        staging = folder / f".{part}.part"
        shutil.rmtree(staging, ignore_errors=True)
        if part == "val" and not (folder / imagenet.META_FILE).is_file():
            imagenet.parse_devkit_archive(str(folder))
        getattr(imagenet, f"parse_{part}_archive")(str(folder), folder=staging.name)
        staging.rename(folder / part)
