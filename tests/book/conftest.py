import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def browser():
    """Chromium, as the system has it."""
    names = ("google-chrome", "chromium", "chromium-browser")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is installed; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def book_html(tmp_path_factory):
    """The site of the reference book, built once for all workers of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    site = shared / "site"
    with FileLock(shared / "site.lock"):
        if not (site / "built").exists():
            build_book(ROOT / "book", site)
            (site / "built").touch()
    return site / "_build" / "html"


def build_book(book: Path, output: Path) -> None:
    """Build a Jupyter Book as the workflow does, but from another folder."""
    output.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(book), "--all",
               "-W", "-n", "--keep-going", "-q", "--path-output", str(output)]  # fmt: skip
    done = subprocess.run(command, cwd=output, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
