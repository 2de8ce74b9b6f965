"""What is known of the 13 real data sets before their files are looked at, from `facts.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment.profiles import refuse_unknown
from experiment.run import Run
from experiment.tasks import SPLITS, SplitName


@dataclass(frozen=True)
class DataSet:
    """One data set; counts are official ones, of pictures with labels."""

    train: int
    validation: int  # of the training pictures
    test: int
    classes: int
    classnames: tuple[str, ...]  # CLIP's, the index is the label; ImageNet's are in open_clip
    templates: tuple[str, ...]  # CLIP's prompts, as PAINT uses them; ImageNet's are in open_clip
    prompts: int  # texts of the zero-shot head: each class name in each template
    folders: tuple[str, ...]  # of the classes, in the order of the labels
    needs: tuple[str, ...]  # files and folders that have to lie in `folder`
    lists: tuple[str, ...]  # files of the official training set, then that of the test set
    beside: tuple[str, ...]  # folders that the lists may lie in, seen from `folder`
    also: tuple[str, ...]  # where people who unpack by hand put what belongs into `folder`
    size: str  # of it on disk
    by_hand: str  # where to look when the download fails
    hub: Mapping[str, Any]  # its mirror on the Hugging Face Hub, for `datasets.load_dataset`
    folder: str = ""  # official folder under the data folder, which "" stands for
    hub_head: Mapping[str, list[str]] = field(default_factory=dict)  # of public fine-tuned weights
    how: str = "automatic, by torchvision"


def held_out(train: int) -> int:
    """Return how many of `train` pictures make the validation set: a tenth, 1 to 5,000."""
    return max(1, min(train // 10, 5000))  # PAINT's convention


def get(name: str) -> DataSet:
    """Return the data set called `name`, one of the 13."""
    refuse_unknown([name], DATA_SETS, "unknown data set")
    return DATA_SETS[name]


def size(run: Run, task: str, split: str) -> int:
    """Return how many pictures of a split of a data set the run uses."""
    data, most = get(task), run.profile.images(split)
    whole = {"train": data.train - data.validation, "validation": data.validation,
             "test": data.test}[split]  # fmt: skip
    return min(most or whole, whole)


def splits(run: Run, task: str) -> dict[SplitName, int]:
    """Return the splits of a data set that the run reads, and their sizes."""
    trained = task in run.profile.patching and run.source == "own"
    read = {"train": trained, "validation": run.choosing == "validation", "test": True}
    return {split: size(run, task, split) for split in SPLITS if read[split]}


def _spelt_out(row: dict[str, Any]) -> DataSet:
    row["train"], row["test"] = row.pop("pictures")
    row["validation"] = held_out(row["train"])
    for key in ("needs", "lists", "beside", "folders", "also"):
        row[key] = tuple(row.get(key, "").split())
    names = [" ".join(name.split()) for name in row.get("classnames", "").split(",") if name]
    row["classnames"] = tuple(names)
    row["folders"] = row["folders"] or tuple(name.replace(" ", "_") for name in names)
    articles, short = row.pop("articles", [""]), row.get("templates", [])
    row["templates"] = tuple(line.replace("*", word) for word in articles for line in short)
    row.setdefault("classes", len(names))
    row.setdefault("prompts", row["classes"] * len(row["templates"]))
    return DataSet(**row)


_TABLE = tomllib.loads(Path(__file__).with_name("facts.toml").read_text(encoding="utf-8"))
DATA_SETS = {name: _spelt_out(row) for name, row in _TABLE.items()}
