"""What a run leaves behind: one JSON file per pair, its schema, and where it came from."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

_ROOT = Path(__file__).resolve().parent.parent
_CODE = ("paintlib", "notebooks", "Snakefile")  # what can change a number
_PACKAGES = ("torch", "open_clip_torch", "numpy", "scipy", "matplotlib")


@functools.cache
def pair_schema() -> dict[str, Any]:
    """Return the JSON schema of a pair's file; its descriptions are the documentation."""
    text = importlib.resources.files("paintlib").joinpath("pair.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def write_pair(path: Path, record: Mapping[str, Any]) -> None:
    """Check one pair's record against the schema and write it, whole or not at all.

    Raises:
        ValueError: the record does not follow the schema, or holds a number that is not finite.
    """
    _check(record, path)
    write_json(path, record)


def read_pair(path: Path | str) -> dict[str, Any]:
    """Read one pair's record.

    Raises:
        ValueError: the file is missing, truncated or not of the schema; it is named.
    """
    record = read_json(path)
    _check(record, path)
    return record


def read_pairs(folder: Path | str) -> list[dict[str, Any]]:
    """Read all pairs of a run, in the order of its `run.json`.

    Args:
        folder: `results/<run>`, which holds `run.json` and `pairs/`.

    Raises:
        ValueError: a pair's file is missing, damaged, or of another run.
    """
    folder = Path(folder)
    run = read_json(folder / "run.json")
    records = []
    for supported in run["supported"]:
        for patching in run["patching"]:
            path = folder / "pairs" / f"{supported}-{patching}.json"
            record = read_pair(path)
            if (record["supported"], record["patching"]) != (supported, patching):
                raise ValueError(f"{path} holds {record['supported']}-{record['patching']}")
            records.append(record)
    return records


def write_json(path: Path | str, content: Mapping[str, Any], *, flat: bool = False) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file; its folder is made.
        content: an object.
        flat: put each list of numbers on one line, for files that hold thousands.

    Raises:
        ValueError: a number is not finite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        if flat:
            text = re.sub(r"\[\n[-+.,\de\s]+\]", lambda numbers: "".join(numbers[0].split()), text)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, truncated or no object; it is named with the remedy.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as JSON ({error}); delete it and run `make book` to rebuild it"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def provenance(
    profile: str,
    seed: int,
    device: str,
    wall_seconds: float,
    *,
    limit: int,
    weights: str,
    finetuned: str,
) -> dict[str, Any]:
    """Return where a number comes from.

    Args:
        profile: name of the profile.
        seed: of the run.
        device: what computed it.
        wall_seconds: how long that took.
        limit: images a split of a dry run; 0 otherwise.
        weights: where the zero-shot weights come from.
        finetuned: where the fine-tuned weights come from.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "profile": profile,
        "seed": seed,
        "limit": limit,
        "weights": weights,
        "finetuned": finetuned,
        "commit": commit(),
        "versions": versions,
        "device": device,
        "wall_seconds": round(wall_seconds, 2),
    }


def commit() -> str:
    """Return the short hash of the code's commit, with "+" if the code differs from it."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--", *_CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _check(record: Mapping[str, Any], path: Path | str) -> None:
    validator = jsonschema.Draft202012Validator(pair_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(record))
    if error is None:
        samples = {len(record["curves"]["alphas"])} | {
            len(record["curves"][task][kind])
            for task in ("supported", "patching")
            for kind in ("loss", "accuracy")
        }
        if len(samples) == 1:
            return
        where, what = "curves", f"rows of different lengths {sorted(samples)}"
    else:
        where, what = "/".join(map(str, error.absolute_path)) or "the top level", error.message
    raise ValueError(
        f"{path} does not follow the schema at {where}: {what}; "
        "delete it and run `make book` to rebuild it"
    )
