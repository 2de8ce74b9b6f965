"""What is on disk of the real data sets, and fetching what can be fetched."""

import os
import shutil
from pathlib import Path

from torchvision import datasets as official
from torchvision.datasets import imagenet

from experiment.real import datasets, hub
from experiment.real.facts import DATA_SETS


def data(_run: object, data: Path = Path("data"), name: str | None = None) -> None:
    """Fetch data set `name` if one is given; print the table."""
    if name is not None:
        fetch(name, data)
    print(table(data))


def table(root: Path) -> str:
    """Return what of the 13 data sets is under `root`, their sizes, and how to get them."""
    lacking = datasets.missing(DATA_SETS, root)
    odd = {name: datasets.deviation(name, root) for name in DATA_SETS if name not in lacking}
    rows = [("data set", "found", "lies in", "on disk", "how to get it")]
    for name, data in DATA_SETS.items():
        there = "no" if name in lacking else "in part" if odd[name] else "yes"
        rows.append((name, there, ", ".join(_tops(name)), data.size, data.how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    absent = "" if root.is_dir() else ", which does not exist"
    some = f", {n} of them in part" if (n := len([*filter(None, odd.values())])) else ""
    lines += ["", f"{len(odd)} of {len(DATA_SETS)} found{some} in {root}{absent}"]
    if root.is_dir():
        lines += [f"- {reason.partition('; `')[0]}" for reason in lacking.values()]
        lines += [f"- {name}: {what}" for name, what in odd.items() if what]
    if lacking:
        lines.append(f"`{datasets.COMMAND} --fetch NAME` downloads one.")
    return "\n".join(lines)


def fetch(name: str, root: Path) -> None:
    """Download one data set into `root`, in its official layout; do nothing if it is there.

    torchvision checks archives by MD5, `hub.fetch` numbers of pictures and names of classes.
    ImageNet is only unpacked, from the user's own archives.
    """
    if not (lack := datasets.missing([name], root).get(name)):
        return
    if name == "ImageNet":
        return _unpack_imagenet(root)
    if there := [top for top in _tops(name) if (root / top).exists()]:
        raise ValueError(
            f"{root / there[0]} is not a whole data set ({lack.partition(';')[0]}); "
            "move it away, then fetch again"
        )
    part = root / f".{name}.part"
    staging = part / "whole"
    try:
        shutil.rmtree(staging, ignore_errors=True)  # torchvision takes half a folder for a whole
        staging.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{root} cannot be written to ({error}); --data names another") from error
    get = hub.fetch if name in ("Cars", "RESISC45", "SUN397") else _official
    try:
        get(name, staging)
        for split in ("train", "test"):
            datasets.open_split(name, staging, split)  # refuses what is not whole
    except Exception as error:  # three download libraries, each with kinds of its own
        raise RuntimeError(
            f"fetching {name} failed ({type(error).__name__}: {error}); the same command begins "
            f"again. By hand: {DATA_SETS[name].by_hand}"
        ) from error
    for top in _tops(name) if get is _official else [f"hub/{name}"]:
        (root / top).parent.mkdir(exist_ok=True)
        os.rename(staging / top, root / top)
    shutil.rmtree(part)


def _tops(name: str) -> list[str]:
    """Return the files and folders of a data set that lie directly in the data folder."""
    data = DATA_SETS[name]
    return [*dict.fromkeys(Path(data.folder, need).parts[0] for need in data.needs)]


def _official(name: str, staging: Path) -> None:
    options = [{"split": part} for part in ("train", "test")] if name in ("GTSRB", "SVHN") else [{}]
    for option in options:
        getattr(official, name)(str(staging), download=True, **option)
    for path in list(staging.rglob("*")):
        if path.suffix in {".gz", ".zip"}:
            path.unlink()


def _unpack_imagenet(root: Path) -> None:
    """Unpack the user's archives beside themselves: this data set is never downloaded."""
    folder, tars = datasets.place_of("ImageNet", root), datasets.IMAGENET_TARS
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
