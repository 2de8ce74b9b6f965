"""Where the evidence lies: of the run itself, or kept beside the reference's results.

`make evidence` writes `evidence/PATCHING.json` and `samples/PATCHING.json` of a run, and keeps
`seeds/SEED.json` and `ablations/PROFILE.json` of others beside those of the reference.
"""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment import results
from experiment.run import Run

REFERENCE = "results/micro"
DIGITS = 9  # of the numbers that are kept: float32 has fewer, and a gain is a difference


def find(folder: Path | str, kind: str = "evidence") -> Path:
    """Return the results whose evidence a page shows: a run's own, or those of the reference."""
    own = results.find(folder)
    if kind in ("seeds", "ablations"):
        there = (own / kind).is_dir()
    else:
        there = bool(evidence := read(own)) and all(
            (own / kind / f"{task}.json").exists() for task in evidence
        )
    return own if there else results.find(REFERENCE)


def whose(folder: Path | str, kind: str = "evidence") -> str:
    """Return a note for a page that shows the evidence of the reference and not of its own run."""
    if find(folder, kind).samefile(results.find(folder)):
        return ""
    return (
        "This page shows the evidence of the reference run: it takes hours, and `make evidence` "
        "computes it for a run of your own. "
    )


def keep(run: Run) -> None:
    """Add to the committed results what this run says: as the reference, a seed or an ablation."""
    if run.profile.name.partition("-")[0] != "micro":
        raise ValueError(f"{run.name} is no run of micro; its evidence stays in {run.results}")
    kept = results.ROOT / REFERENCE
    if run.name == "micro":
        for kind in ("evidence", "samples"):
            for file in (run.results / kind).glob("*.json"):
                results.write_json(
                    kept / kind / file.name, _short(results.read_json(file)), flat=True
                )
    name = f"seeds/{run.seed}" if run.profile.name == "micro" else f"ablations/{run.name}"
    results.write_json(kept / f"{name}.json", summary(run.results), flat=True)


def summary(folder: Path | str) -> dict[str, Any]:
    """Return what is kept of a run: its pairs without the grid's samples, and its evidence."""
    folder = results.find(folder)
    pairs = results.read_pairs(folder)
    for pair in pairs:
        for found in pair["solutions"].values():
            found["trace"] = [
                row for row in found["trace"] if row[0] not in pair["curves"]["alphas"]
            ]
    evidence = read(folder)
    for found in evidence.values():
        for name in ("entropy", "lines", "fisher"):  # of the reference alone, which keeps them
            found.pop(name, None)
    kept: dict[str, Any] = _short({"pairs": pairs, "evidence": evidence})
    return kept


def _short(value: Mapping[str, Any]) -> Any:
    """Return numbers with the digits that another run could repeat at best."""
    return json.loads(json.dumps(value), parse_float=lambda x: float(f"{float(x):.{DIGITS}g}"))


def read(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Return the evidence of a run by patching task; nothing if it is not of all pairs as they are.

    It is made by a command of its own, so a run may have been made anew since, or be killed in it.
    """
    folder = results.find(folder)
    run, found = results.read_json(folder / "run.json"), read_kept(folder, "evidence")
    for supported, patching in itertools.product(run.get("supported", ()), run.get("patching", ())):
        pair = results.read_json(folder / f"pairs/{supported}-{patching}.json")
        told = found.get(patching, {})
        same = math.isclose(told.get("length", 0.0), pair["metrics"]["length"], rel_tol=1e-8)
        if not same or supported not in told["forgetting"]:
            return {}
    return found


def read_kept(folder: Path | str, kind: str) -> dict[str, dict[str, Any]]:
    """Return the summaries of other runs, `seeds` or `ablations`, by their names."""
    files = sorted((results.find(folder) / kind).glob("*.json"))
    return {file.stem: results.read_json(file) for file in files}
