"""Drive Snakemake through a whole run: one run at a time, its progress, its time left."""

from __future__ import annotations

import csv
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from paintlib import warm
from paintlib.experiment import Run


def book(run: Run, cores: int, data: Path = Path("data"), weights: str = "") -> int:
    """Bring a run's book up to date and print where it is.

    A run that was killed goes on from its last finished step.

    Args:
        run: what to run.
        cores: how many steps may run side by side.
        data: the folder of the real data sets.
        weights: where the public weights of profile `paper` come from; "" for the default.

    Returns:
        Snakemake's exit status.

    Raises:
        ValueError: `cores` is not positive, or data sets or weights are missing (all are named).
        RuntimeError: another run in this folder is still going.
    """
    if cores < 1:
        raise ValueError(f"cores = {cores}; at least one is needed")
    data = data.expanduser()
    if run.profile.real:
        from paintlib import steps

        steps.check_inputs(run, data)
    run.artifacts.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stop)
    lock = os.open(run.root / "artifacts" / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        # held by this process and by Snakemake, and dropped by the system when both are gone
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _snakemake(run, cores, lock, data, weights)
    except BlockingIOError:
        raise RuntimeError(
            "another `make book` is running in this folder; wait for it, or use a second clone"
        ) from None
    finally:
        os.close(lock)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _snakemake(run: Run, cores: int, lock: int, data: Path, weights: str) -> int:
    command = [
        sys.executable, "-m", "snakemake", "--cores", str(cores), "--keep-going",
        "--nolock", "--rerun-incomplete", "--quiet", "host", "reason",
        *_resources(run), "--config", f"profile={run.profile.name}", f"seed={run.seed}",
    ]  # fmt: skip
    if run.profile.real:
        command += [f"limit={run.profile.limit}", f"tasks={','.join(run.profile.tasks)}"]
        command += [f"finetuned={run.finetuned}", f"weights={weights}"]
    progress = Progress(expected_seconds(run), cores)
    log = run.artifacts / "log.txt"
    for report in (run.artifacts / "failed").glob("*"):
        report.unlink()
    # universal newlines: the bars of the steps redraw themselves with carriage returns
    with (
        log.open("w", encoding="utf-8") as everything,
        warm.serving() as served,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env={**os.environ, **served, "PAINTLIB_DATA": str(data.resolve())},
            pass_fds=[lock],
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                everything.write(line)
                everything.flush()
                if text := progress.read(line.rstrip()):
                    print(text, flush=True)
        except BaseException:  # Ctrl-C and `kill` alike: Snakemake stops its steps, then we go
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        for report in sorted((run.artifacts / "failed").glob("*.txt")):
            print(f"paintlib: traceback in {report}", file=sys.stderr)
        print(
            f"paintlib: the run failed; all output is in {log}. Finished steps are kept: mend the "
            "cause and give the same command again.",
            file=sys.stderr,
        )
        return process.returncode
    index = (run.book / "_build/html/index.html").resolve()
    print(f"{progress.clock()}  the book is at {index}")
    return 0


def _resources(run: Run) -> list[str]:
    """Let only so many steps run side by side as memory holds, and one on each GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    resources = ["--resources", f"mem_mb={memory}"]
    if run.profile.real:
        import torch

        if count := torch.cuda.device_count():
            resources.append(f"gpu={count}")
    return resources


def expected_seconds(run: Run) -> dict[str, float]:
    """Return the mean time of a job of each rule, from the last run that left its times."""
    rows: list[dict[str, str]] = []
    known = [run.results] if run.profile.real else [run.results, run.root / "results" / "micro"]
    for folder in known:
        if (file := folder / "timings.csv").exists():
            with file.open(encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            break
    jobs = Counter("summary" if row["step"] == "page" else row["step"] for row in rows)
    totals: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        totals["summary" if row["step"] == "page" else row["step"]] += float(row["seconds"])
    return {step: totals[step] / count for step, count in jobs.items()}


class Progress:
    """Reads Snakemake's output, keeps what matters, and says which step, k of n, and time left."""

    def __init__(self, seconds: dict[str, float], cores: int) -> None:
        self.seconds, self.cores = seconds, cores
        self.began = time.monotonic()
        self.left: Counter[str] = Counter()
        self.total = self.done = 0
        self._in_table = False

    def read(self, line: str) -> str | None:
        """Return the text to show for one line of Snakemake's output, if any."""
        if re.match(r"^job\s+count", line):
            self._in_table = True
        elif self._in_table and (row := re.match(r"^(\w+)\s+(\d+)$", line)):
            if row[1] == "total":
                self._in_table, self.total = False, int(row[2])
                return f"{self.clock()}  {self.total} steps to do{self.remaining()}"
            self.left[row[1]] = int(row[2])
        elif finished := re.match(r"^Finished jobid: \d+ \(Rule: (\w+)\)", line):
            self.left[finished[1]] -= 1
            self.done += 1
            share = f"step {self.done} of {self.total} done"
            return f"{self.clock()}  {share} ({finished[1]}){self.remaining()}"
        elif bar := re.match(r"^[\w\- ]+: +[1-9]\d*%\|.*?\]", line):
            return f"       {bar[0]}"
        elif "[IPKernelApp]" in line:
            return None  # a kernel that is told to stop says so
        elif re.search(r"^paintlib:|Error|Exception|ERROR|WARNING|[Ww]arning:", line):
            return line
        return None

    def clock(self) -> str:
        """Return the time since the start."""
        return _minutes(time.monotonic() - self.began)

    def remaining(self) -> str:
        """Return the time left, from the last run's times and this run's pace."""
        if not self.seconds:
            return ""
        serial = self.left["pretrain"] * self.seconds.get("pretrain", 0.0)
        shared = sum(
            count * self.seconds.get(rule, 5.0)
            for rule, count in self.left.items()
            if rule != "pretrain" and count > 0
        )
        return f", about {_minutes(serial + shared / self.cores)} left"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
