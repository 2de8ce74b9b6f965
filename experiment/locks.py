"""Who runs, and how it ends: locks that are gone with their process, and steps with their run."""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import IO

import psutil

RUN = "PAINTLIB_RUN"  # the environment's variable that tells a step the process of its run


def hold(file: Path) -> IO[str] | None:
    """Return the open file that holds a lock until it is closed, and names its process, or None."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    owner = f"{os.getpid()} on {socket.gethostname()}".encode()
    with file.open("r+b") as text:  # over the last name, so that whoever reads now finds one
        text.write(owner)
        text.truncate()
    return lock


def claim_folder(root: Path) -> IO[str]:
    """Take a project's folder for one run, and clear away Snakemake's locks of a killed one."""
    file = root / "artifacts" / ".lock"
    lock = hold(file)
    if lock is None:
        owner = file.read_text()
        raise ValueError(
            f"another run (process {owner}) is going on in {root.resolve()}; wait for it, end it "
            f"and its steps by `kill {owner.partition(' ')[0]}`, or use a second clone"
        )
    for stale in (root / ".snakemake" / "locks").glob("*.lock"):
        stale.unlink()
    return lock


def end_steps_at_sigterm() -> None:
    """Let `kill PID` of this run end its steps too, at once; Snakemake alone waits for them."""

    def end(*_: object) -> None:
        steps = psutil.Process().children(recursive=True)
        for send, patience in ((psutil.Process.terminate, 3), (psutil.Process.kill, 0)):
            for step in steps:
                with contextlib.suppress(psutil.NoSuchProcess):
                    send(step)
            time.sleep(patience)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


def end_with_run() -> None:
    """End this step with its run, however that ended, or else it would compute for nobody."""
    run = int(os.environ.get(RUN, 0))

    def watch() -> None:
        while psutil.pid_exists(run):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(1)  # it computes too long to listen

    if run:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing half-written is left
        threading.Thread(target=watch, daemon=True).start()


def end_run(why: str) -> None:
    """End the run that this step belongs to, if any, with all its other steps."""
    if run := int(os.environ.get(RUN, 0)):
        print(f"paintlib: {why}, so the run ends", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this step ends by itself
        os.kill(run, signal.SIGTERM)
