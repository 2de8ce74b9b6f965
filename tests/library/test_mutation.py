"""A test of the tests: a library broken on purpose fails them. `make mutants` goes further."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_derivative_of_the_wrong_sign_is_caught(tmp_path):
    shutil.copytree(ROOT / "paintlib", tmp_path / "paintlib")
    source = tmp_path / "paintlib" / "fits.py"
    text = source.read_text(encoding="utf-8")
    assert text.count("(p.deriv()(x) *") == 1, "the mutation no longer fits the source"
    source.write_text(text.replace("(p.deriv()(x) *", "(-p.deriv()(x) *"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n0", "-qx", "--noconftest"]
    done = subprocess.run(
        [*command, "-k", "needs_six or slope", str(Path(__file__).with_name("test_solver.py"))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-2000:]
