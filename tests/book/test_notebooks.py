"""The committed pages are complete and whole; `make test` also runs each of them again by nbval."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat

from experiment import pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "book").glob("*/*.ipynb"))
assert PAGES


def code(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [c.source for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]


def test_every_notebook_has_its_page_and_every_page_the_code_of_its_notebook():
    sources = {path.stem: code(jupytext.read(path)) for path in (ROOT / "notebooks").glob("*.md")}
    summaries = {path.stem: path for path in PAGES if path.parent.name == "results"}
    assert summaries.keys() == sources.keys() - {"pair", "own_curves"}
    for path in PAGES:
        source = sources["pair" if path.parent.name == "pairs" else path.stem]
        assert code(nbformat.read(path, as_version=4)) == source, f"{path}: `make reference`"


def test_pages_hold_no_traceback_no_warning_and_nothing_that_changes_from_run_to_run():
    for path in PAGES:
        page = nbformat.read(path, as_version=4)
        assert page.metadata.keys() == {"kernelspec"}
        for cell in page.cells:
            assert cell.metadata.keys() <= {"tags", "mystnb"}
            for output in cell.get("outputs", []):
                assert output.output_type != "error", path
                assert output.get("name") != "stderr", path


def test_no_page_is_left_out_of_make_test():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]
    tried = settings["ini_options"]["testpaths"]
    assert {path.parent.relative_to(ROOT).as_posix() for path in PAGES} <= {*tried}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^test: env\n\t.* -m pytest .*--nbval", makefile, re.M)


def test_figures_of_the_prose_are_those_of_the_pages():
    results = ROOT / "book/results"
    own = pages.figures(results / "claims.ipynb")
    drawn = pages.figures(results / "pictures.ipynb") | {"headline": own["0"]}
    drawn["picture-headline-ja"] = own["picture-headline-ja"]
    assert {"picture-walk", "picture-quintic", "headline"} <= drawn.keys()
    kept = {f.stem: f.read_text(encoding="utf-8") for f in ROOT.glob("results/micro/*.svg")}
    assert kept == drawn, "`make reference`"


def test_cells_are_short():
    for path in (ROOT / "notebooks").glob("*.md"):
        for source in code(jupytext.read(path)):
            assert len(source.splitlines()) <= 15, f"{path}: {source.splitlines()[0]}"


def test_an_output_altered_by_one_per_cent_is_caught(tmp_path):
    """The test of `make test`."""
    page = tmp_path / "book" / "results" / "all_pairs.ipynb"
    page.parent.mkdir(parents=True)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    notebook = nbformat.read(ROOT / "book" / "results" / "all_pairs.ipynb", as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    output = next(o for o in outputs if "<td" in o.data.get("text/html", ""))
    html = output.data["text/html"]
    number = re.search(r">0\.(\d\d)</a>", html)
    altered = f">0.{int(number[1]) + 1:02d}</a>"
    output.data["text/html"] = html.replace(number[0], altered, 1)
    nbformat.write(notebook, page)
    command = [sys.executable, "-m", "pytest", "-n0", "--nbval", "-q", "-p", "no:cacheprovider",
               str(page)]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "1 failed" in done.stdout, done.stdout[-3000:]
