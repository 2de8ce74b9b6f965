"""What the benchmarks share: how to time a call, and what to say about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from experiment.steps.provenance import processor


def timed(call: Callable[[], object], kind: str = "cpu") -> float:
    """Return the seconds of one call, on a GPU until it has finished."""
    if kind == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternately(
    calls: Sequence[Callable[[], object]], repeats: int, kind: str
) -> list[list[float]]:
    """Return the seconds of `repeats` rounds, each of which times every call once, in turn.

    So what else the machine does falls on all of them alike, and their ratios stay fair.
    """
    for call in calls:
        call()  # the first call allocates and tunes
    return [[timed(call, kind) for call in calls] for _ in range(repeats)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest value, and their number."""
    low, high, middle = min(values), max(values), statistics.median(values)
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4),
            "repeats": len(values)}  # fmt: skip


def describe(kind: str, threads: int, note: str) -> dict[str, Any]:
    """Return what a result says about the machine and the software."""
    packages = ("torch", "torchvision", "pillow")
    return {
        "device": name(kind),
        "kind": kind,
        "cores": os.cpu_count(),
        "threads": threads,
        "note": note,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
    }


def slug(kind: str) -> str:
    """Return the name of the machine as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name(kind).lower()).strip("-")


def name(kind: str) -> str:
    """Return the name of the GPU or the processor."""
    return torch.cuda.get_device_name() if kind == "cuda" else processor()
