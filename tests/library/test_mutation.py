"""Tests of the tests: a library broken on purpose must make the solver's tests fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTATIONS = {
    "sign of the derivative": ("fits.py", "p.deriv()(x) *", "-p.deriv()(x) *"),
    "best becomes worst": (
        "solver.py",
        "return min(self.samples, key=",
        "return max(self.samples, key=",
    ),
}


def solver_tests(package: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "quintic",
    ]
    environment = {**os.environ, "PYTHONPATH": str(package), "HYPOTHESIS_MAX_EXAMPLES": "50"}
    return subprocess.run(
        [*command, "-k", "quintic", str(ROOT / "tests" / "test_solver.py")],
        cwd=package, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_solver_is_caught(tmp_path, name):
    shutil.copytree(ROOT / "paintlib", tmp_path / "paintlib")
    file, before, after = MUTATIONS[name]
    source = tmp_path / "paintlib" / file
    text = source.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"the mutation {name!r} no longer fits the solver"
    source.write_text(text.replace(before, after), encoding="utf-8")
    done = solver_tests(tmp_path)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-2000:]
