"""The stored outputs of the committed pages are what their code gives, to the last shown digit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book" / "results").glob("*.ipynb"))


def nbval(*notebooks: Path, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "filterwarnings=default", "-o", "addopts=", *map(str, notebooks)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_every_summary_notebook_has_its_page():
    sources = {path.stem for path in (ROOT / "notebooks").glob("*.md")} - {"pair"}
    assert {path.stem for path in PAGES} == sources


def test_committed_pages_hold_no_traceback_and_no_warning():
    for path in (ROOT / "book").glob("*/*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", path
                assert output.get("name") != "stderr", path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_committed_page_is_reproduced_from_the_results(page):
    done = nbval(page)
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_output_altered_by_one_per_cent_is_caught(tmp_path):
    """The test of the test above."""
    page = tmp_path / "book" / "results" / "table1.ipynb"
    page.parent.mkdir(parents=True)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    notebook = nbformat.read(ROOT / "book" / "results" / "table1.ipynb", as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    output = next(o for o in outputs if "<td" in o.data.get("text/html", ""))
    html = output.data["text/html"]
    number = re.search(r">(\d\.\d{4})</td>", html)
    altered = f">{float(number[1]) * 1.01:.4f}</td>"
    output.data["text/html"] = html.replace(number[0], altered, 1)
    nbformat.write(notebook, page)
    done = nbval(page)
    assert done.returncode == 1
    assert "1 failed" in done.stdout, done.stdout[-3000:]
