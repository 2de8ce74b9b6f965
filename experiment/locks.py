"""Locks that the system drops when their process is gone, however it ended."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def hold(file: Path) -> IO[str] | None:
    """Return the open file that holds a lock until it is closed, and names its process, or None."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def claim_folder(root: Path) -> IO[str]:
    """Take a project's folder for one run, and clear away Snakemake's locks of a killed one."""
    file = root / "artifacts" / ".lock"
    lock = hold(file)
    if lock is None:
        raise ValueError(
            f"another run (process {file.read_text()}) is going on in {root.resolve()}; wait for "
            "it, end it, or use a second clone"
        )
    for stale in (root / ".snakemake" / "locks").glob("*.lock"):
        stale.unlink()
    return lock
