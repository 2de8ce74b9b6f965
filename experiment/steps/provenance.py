"""Where a run comes from: commit, device, versions, and the seconds that each step took."""

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

import pandas as pd

from experiment import results, weights
from experiment.run import Run

_PACKAGES = ("torch", "open_clip_torch", "numpy", "scipy", "matplotlib", "papermill", "jupytext",
             "jupyter-book", "nbval", "snakemake")  # fmt: skip


def provenance(run: Run) -> None:
    """Write `provenance.json`."""
    seconds = {}
    for file in sorted((run.folder / "benchmarks").rglob("*.tsv")):
        took = pd.read_csv(file, sep="\t")["s"][0]
        seconds[file.stem.replace(".", "/", 1)] = round(float(took), 1)
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    baseline = weights.metadata(run.baseline(run.profile.supported[0]))
    device = baseline.get("gpu") or processor()  # this step may run where there is no GPU
    content = {"commit": _commit(), "device": device, "versions": versions, "seconds": seconds}
    measured = [task for task in run.profile.patching if run.noise(task).exists()]
    noise = {task: max(results.read_json(run.noise(task)).values()) for task in measured}
    content |= {"noise": noise} if noise else {}
    results.write_json(run.results / "provenance.json", content)


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the short hash of the code's commit, with "+" if the code differs from it."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, cwd=results.ROOT, text=True)
        return said.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
