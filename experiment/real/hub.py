"""Pictures of the real data sets from their mirrors on the Hugging Face Hub, through `datasets`.

`DATA=hub` draws what a run needs, `--fetch NAME` a whole data set whose original is gone, into the
folder `hub/NAME`: pictures as the mirror encodes them, and `drawn.json` with repository and commit.
"""

import importlib
import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiment.profiles import SUPPORTED
from experiment.progress import bar
from experiment.real import datasets, facts

Row = tuple[int, bytes, int]  # its place, the picture, our label
ROOT = Path("hub")  # what DATA says
_LOGIN = "accept its terms at https://huggingface.co/datasets/{}, then `.venv/bin/hf auth login`"


def check(names: Iterable[str], root: Path) -> None:
    """Refuse before anything starts what cannot be drawn: without the library, or a login."""
    from huggingface_hub import get_token

    _library()
    if "ImageNet" in names and not (root / "hub/ImageNet").is_dir() and not get_token():
        page = facts.get("ImageNet").hub["path"]
        raise ValueError(f"ImageNet needs your own account: {_LOGIN.format(page)}")


def fetch(name: str, root: Path, accept: bool = False) -> None:
    """Draw a whole data set into `root/hub/NAME`: its official training and test set."""
    for part in ("train", "test"):
        _draw(name, root / "hub" / name / part, part, None, accept)


def open_split(name: str, root: Path, split: str, images: int | None, accept: bool = False
) -> datasets.Pictures:  # fmt: skip
    """Open one split of a mirror, drawn into `root/hub/NAME` where it is not there yet.

    Of a sample of `images` every class has an equal share, drawn with seed 0. `accept` takes a
    mirror whose number of pictures is not the official one.
    """
    if images is None:
        fetch(name, root, accept)
        return datasets.open_split(name, root, split)
    place = root / "hub" / name / f"{split}-{images}"
    _draw(name, place, split, images, accept)
    return datasets.pictures(name, *datasets.read_drawn(place))


def _draw(name: str, place: Path, split: str, images: int | None, accept: bool) -> None:
    """Draw the pictures of a split into a folder, or wait for a clone that shares it and does."""
    with FileLock(place.with_name(f"{place.name}.lock")):
        if not place.is_dir():
            _write(name, place, split, images, accept)


def _write(name: str, place: Path, split: str, images: int | None, accept: bool) -> None:
    """Write the pictures of a split into a folder, and last `drawn.json`."""
    data, part = facts.get(name), "test" if split == "test" else "train"
    official, said = data.test if part == "test" else data.train, dict(data.hub)
    path, image, label = said["path"], said.get("image", "image"), said.get("label", "label")
    staging, labels, count = place.with_name(f".{place.name}.part"), dict[str, int](), 0
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    library = _library()
    try:
        revision = _revision(said, place.parent)
        rows = library.load_dataset(path, said.get("name"), split=said.get(part, part),
                                    streaming=True, revision=revision)  # fmt: skip
        rows = rows.cast_column(image, library.Image(decode=False))
        number = _numbers(name, path, rows.features[label])

        def read() -> Iterator[Row]:
            nonlocal count
            for row in bar(rows, f"{name} {split}", total=official, unit="img"):
                count += 1
                yield count - 1, row[image]["bytes"], number[row[label]]

        shuffled = said.get("shuffled", False)
        chosen = read() if images is None else _sample(name, split, read(), images, shuffled)
        for index, picture, own in chosen:
            (staging / f"{index:07d}").write_bytes(picture)
            labels[f"{index:07d}"] = own
    except Exception as error:  # of the library and of two network clients
        if str(error).startswith(f"{name}: "):  # our own, of the names
            raise
        text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        login = f"; {_LOGIN.format(path)}" if name == "ImageNet" else ""
        raise RuntimeError(
            f"{name}: {path} cannot be read from the Hub ({text}); the same command begins this "
            f"split again{login}"
        ) from error
    if (images is None or not shuffled) and count != official and not accept:
        raise ValueError(
            f"{name}: {path} has {count:,} {part} pictures, officially {official:,}; "
            f"ACCEPT={name} takes them nevertheless"
        )
    about = {"repository": path, "revision": revision, "split": split, "labels": labels}
    (staging / "drawn.json").write_text(json.dumps(about, indent=0), encoding="utf-8")
    staging.rename(place)


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(
            "drawing from the Hub needs the package `datasets`: .venv/bin/pip install datasets"
        ) from error


def _revision(said: dict[str, Any], home: Path) -> str | None:
    """Return the commit to read: of what is drawn already, of the table, or the newest."""
    for note in home.glob("*/drawn.json"):
        return str(json.loads(note.read_text(encoding="utf-8"))["revision"])
    if "revision" in said or Path(said["path"]).is_dir():
        return said.get("revision")
    from huggingface_hub import HfApi  # slow to import

    return HfApi().dataset_info(said["path"]).sha


def _numbers(name: str, path: str, feature: Any) -> list[int]:
    """Return our label of each of a mirror's labels, by the names of the classes."""
    known: dict[str, list[int]] = {}
    for number, words in enumerate(_names(name)):
        for word in dict.fromkeys(map(_plain, words)):
            known.setdefault(word, []).append(number)
    found, unknown = [], []
    for said in getattr(feature, "names", None) or []:
        word = _plain(said)
        # ImageNet has two cranes, which a mirror may call crane and crane2
        if places := known.get(word) or known.get(word.rstrip("0123456789")):
            found.append(places.pop(0))
        else:
            unknown.append(said)
    classes = facts.get(name).classes
    if unknown or len(set(found)) != classes:
        first = f"; unknown: {len(unknown)}, first {unknown[0]!r}" if unknown else ""
        named = f"name {len(set(found))} of {classes} classes{first}"
        raise ValueError(
            f"{name}: the labels of {path} {named}; labels are mapped by name, so it is of "
            "no use: DATA=FOLDER takes the official files"
        )
    return found


def _names(name: str) -> Iterable[tuple[str, ...]]:
    """Return what each class may be called, in the order of our labels."""
    data = facts.get(name)
    if name != "ImageNet":
        return zip(data.classnames, data.folders, strict=True)
    info = datasets.imagenet_info()
    return zip(info.label_names(), info.label_descriptions(), strict=True)


def _plain(name: str) -> str:
    """Return a class name without what mirrors spell in many ways: "/a/apse/indoor"."""
    return re.sub("[^a-z0-9]", "", re.sub("^/?[a-z]/", "", name.lower()))


def _sample(
    name: str, split: str, rows: Iterable[Row], images: int, shuffled: bool
) -> Iterator[Row]:
    """Draw twice each class's share, seeded, from which `pixels.choose` makes up for small classes.

    A shuffled mirror is read until the shares are full, any other to its end. A supported task is
    never trained on, so all training pictures are open to its validation.
    """
    data = facts.get(name)
    held = set(datasets.validation_indices(data.train)[1].tolist())
    divided = split != "test" and name not in SUPPORTED
    share, draw = math.ceil(images / data.classes), random.Random(0)
    kept: dict[int, list[Row]] = {}
    seen = Counter[int]()
    for row in rows:
        if divided and (row[0] in held) != (split == "validation"):
            continue
        mine = kept.setdefault(row[2], [])
        place = len(mine) if len(mine) < 2 * share else draw.randrange(seen[row[2]] + 1)
        seen[row[2]] += 1
        if place < 2 * share:
            mine[place : place + 1] = [row]
        if shuffled and sum(min(len(own), share) for own in kept.values()) == images:
            break
    return iter(sorted(row for rows in kept.values() for row in rows))
