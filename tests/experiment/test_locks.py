"""Who runs and how it ends: real processes, killed."""

import inspect
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT

from experiment import locks, results, weights
from experiment.__main__ import find, main

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PATIENCE = 60


@pytest.fixture
def start():
    """Start Python and go on when it has printed a line; what still runs at the end is killed."""
    started = []

    def begin(code: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**ENVIRONMENT, **environment}, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_lock_names_its_process_and_is_gone_with_it(start, tmp_path):
    code = f"""
import time; from pathlib import Path; from experiment import locks
lock = locks.claim_folder(Path({str(tmp_path)!r})); print("held", flush=True); time.sleep(600)
"""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/.lock").write_text("a much longer text of the run before this one")
    other = start(code)
    with pytest.raises(ValueError, match=rf"\(process {other.pid} on \S+\) .*`kill {other.pid}`"):
        locks.claim_folder(tmp_path)
    other.kill()
    other.wait(PATIENCE)
    locks.claim_folder(tmp_path).close()


def test_killed_run_takes_its_steps_along(start):
    run = start("import time; print('runs', flush=True); time.sleep(600)")
    code = """
import time; from experiment import locks
locks.end_with_run(); print('steps', flush=True)
try: time.sleep(600)
finally: print('cleaned', flush=True)
"""
    step, deaf = (
        start(c, **{locks.RUN: str(run.pid)})
        for c in (code, code.replace("print('steps'", "locks.signal.signal(15, 1); print('deaf'"))
    )
    run.kill()
    run.wait(PATIENCE)
    assert step.communicate(timeout=PATIENCE)[0] == "cleaned\n"
    assert deaf.wait(PATIENCE) == 1


def test_sigterm_ends_the_steps_of_a_run_before_the_run(start):
    deaf = "import signal, time; signal.signal(15, 1); print('x', flush=True); time.sleep(600)"
    code = f"""
import subprocess, sys, time; from experiment import locks
plain = subprocess.Popen(["sleep", "600"])
deaf = subprocess.Popen([sys.executable, "-c", {deaf!r}], stdout=subprocess.PIPE)
deaf.stdout.readline()
locks.end_steps_at_sigterm()
try: print('runs', flush=True); time.sleep(600)
except KeyboardInterrupt: print(plain.wait(), deaf.wait(), flush=True)
"""
    run = start(code)
    run.terminate()
    assert run.communicate(timeout=PATIENCE)[0].split() == [
        str(-signal.SIGTERM),
        str(-signal.SIGKILL),
    ]


@pytest.mark.parametrize(
    ("command", "ends"),
    [("pretrain", True), ("decode CIFAR10", True), ("baseline CIFAR10 STL10", True),
     ("verify heads SVHN", True), ("verify fine_tuned SVHN", True), ("finetune SVHN", False),
     ("pair SVHN", False), ("describe", False)],
)  # fmt: skip
def test_failed_step_ends_the_run_if_no_pair_can_be_made(command, ends, monkeypatch):
    def fails(run, *tasks):
        raise ValueError("on purpose")

    asked = []
    monkeypatch.setattr("experiment.__main__.find", lambda name: fails)
    monkeypatch.setattr(locks, "end_run", asked.append)
    assert main([*command.split(), "--profile", "smoke"]) == 1
    assert asked == [f"no pair can be made without {command}"] * ends
    asked.clear()
    if command == "finetune SVHN":  # the only patching task
        main(["finetune", "SVHN", "--profile", "smoke", "--tasks", "CIFAR10,SVHN"])
        assert asked


def test_every_step_that_takes_a_card_has_asked_for_it():
    """Else it takes that of another, which then shares a third one's for hours."""
    rules = re.split(r"^ *rule ", (ROOT / "Snakefile").read_text("utf-8"), flags=re.M)[1:]
    steps = {said[1]: rule for rule in rules if (said := re.search(r"{STEP} (\w+)", rule))}
    takes = {name for name in steps if "Session(run)" in inspect.getsource(find(name))}
    assert takes == {name for name, rule in steps.items() if "gpu=GPU" in rule} >= {"describe"}


def test_run_is_told_to_end(start):
    run = start("import time; print('runs', flush=True); time.sleep(600)")
    locks.end_run("of no run")
    told = subprocess.run(
        [sys.executable, "-c", "from experiment import locks; locks.end_run('no pair')"],
        env={**ENVIRONMENT, locks.RUN: str(run.pid)}, check=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert told.stderr == "paintlib: no pair, so the run ends\n"
    assert run.wait(PATIENCE) == -signal.SIGTERM


def save(file: Path) -> None:
    weights.save(file, {"w": torch.zeros(1_000_000)})


def write(file: Path) -> None:
    results.write_json(file, {"w": "x" * 4_000_000})


@pytest.mark.parametrize("writer", [save, write])
def test_full_disk_is_a_message_and_leaves_nothing(writer, tmp_path, monkeypatch, capsys):
    """A limit on the size of files stands in for a disk without room."""
    target = tmp_path / "whole.file"
    monkeypatch.setattr("experiment.__main__.find", lambda name: lambda run: writer(target))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert main(["describe", "--profile", "smoke"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.startswith("paintlib: describe: ") and str(target) in said
    assert "File too large" in said and said.endswith("the same command goes on from here\n")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        weights.save(tmp_path / "w.safetensors", {"w": torch.zeros(3)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o640


def given_to_snakemake(folder, nvidia_smi="exit 1", **settings):
    """Return the arguments that `make book` gives Snakemake."""
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"))
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/.ready").touch()
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    programs = {".venv/bin/snakemake": 'printf "%s\\n" "$@"', "nvidia-smi": nvidia_smi}
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["make", "book", "-o", ".venv/.ready", *(f"{k}={v}" for k, v in settings.items())],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split("\n")


def test_settings_may_hold_apostrophes_and_spaces(tmp_path):
    odd = {"DATA": "/a/user's data", "WEIGHTS": "it's.pt", "FINETUNED": "b c"}
    given = given_to_snakemake(tmp_path, **odd)
    assert all(f"{name.lower()}={value}" in given for name, value in odd.items())


@pytest.mark.parametrize(
    ("gpus", "visible", "said"),
    [(3, None, ["gpu=3"]), (3, "1", ["gpu=1"]), (3, "0,2", ["gpu=2"]), (3, "-1", []), (3, "", []),
     (0, None, []), (0, "0", [])],
)  # fmt: skip
def test_a_step_runs_on_each_gpu_that_torch_may_see(gpus, visible, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = given_to_snakemake(tmp_path, f"for i in $(seq {gpus}); do echo GPU $i; done")
    assert [word for word in given if word.startswith("gpu=")] == said
