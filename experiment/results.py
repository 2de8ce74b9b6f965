"""What a run leaves behind: one JSON file per pair, its schema, and one file of provenance."""

import functools
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from paintlib.files import replacing

ROOT = Path(__file__).resolve().parent.parent
REBUILD = "delete it and run `make book` to rebuild it"


def find(folder: Path | str) -> Path:
    """Return the folder of a run's results, given from here or from the project's folder."""
    for place in (Path(folder), ROOT / folder):
        if (place / "run.json").exists():
            return place
    raise ValueError(
        f"there are no results in {folder}, seen from {Path.cwd()} or from {ROOT}; `make book` "
        "makes artifacts/RUN/results/RUN, and results/micro comes with the project"
    )


@functools.cache
def pair_schema() -> dict[str, Any]:
    """Return the JSON schema of a pair's file; its descriptions are the documentation."""
    return read_json(Path(__file__).with_name("pair.schema.json"))


def write_pair(path: Path, record: Mapping[str, Any]) -> None:
    """Check one pair's record against the schema and write it, whole or not at all."""
    _check(record, f"the record of {path}")
    write_json(path, record)


def read_pair(path: Path | str) -> dict[str, Any]:
    """Read one pair's record, or refuse a file that is missing, truncated or not of the schema."""
    _check(record := read_json(path), path, f"; {REBUILD}")
    return record


def read_pairs(folder: Path | str) -> list[dict[str, Any]]:
    """Read all pairs of a run, in the order of its `run.json`."""
    folder = find(folder)
    run = read_json(folder / "run.json")
    records = []
    for pair in itertools.product(run["supported"], run["patching"]):
        path = folder / "pairs" / f"{'-'.join(pair)}.json"
        records.append(record := read_pair(path))
        if (record["supported"], record["patching"]) != pair:
            raise ValueError(f"{path} holds {record['supported']}-{record['patching']}")
    return records


def write_json(path: Path | str, content: Mapping[str, Any], *, flat: bool = False) -> None:
    """Write JSON, whole or not at all; `flat` puts each list of numbers on one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    if flat:
        text = re.sub(r"\[\n[-+.,\de\s]+\]", lambda numbers: "".join(numbers[0].split()), text)
    with replacing(Path(path)) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object, or name the file that holds none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); {REBUILD}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _check(record: Mapping[str, Any], what: Path | str, remedy: str = "") -> None:
    validator = jsonschema.Draft202012Validator(pair_schema())
    if error := jsonschema.exceptions.best_match(validator.iter_errors(record)):
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise ValueError(f"{what} does not follow the schema at {where}: {error.message}{remedy}")
