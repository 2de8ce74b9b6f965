"""A copy of the project for tests that run its workflow, as a clone would have it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(
        ["git", *identity, *command], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def copy_project(folder: Path, without: Iterable[str] = ()) -> Path:
    """Clone the project as it is now, `without` some files, and give the clone this environment."""
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).exists() and name not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it is")
    environment = Path(sys.executable).parent.parent
    (folder / ".venv").symlink_to(environment)
    (environment / ".ready").touch()  # it is installed already, whatever the times of the copies
    return folder


def make(folder: Path, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Call make as a user does: no variable of ours is set, but for where to import from."""
    ours = {"PAINTLIB_DATA", "MAKEFLAGS", "MAKELEVEL"}
    others = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**others, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
