import shutil

import nbformat
import pytest
from project import ROOT

from experiment import pages
from experiment.run import Run

HEADER = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, name: python3}
---

# A page

Text.

```{code-cell} ipython3
:tags: [parameters, remove-input]

size = 2
```

"""


@pytest.fixture
def notebook(tmp_path):
    def write(code: str):
        source = tmp_path / "page.md"
        source.write_text(f"{HEADER}```{{code-cell}} ipython3\n{code}\n```\n", encoding="utf-8")
        return source

    return write


@pytest.fixture
def run(tmp_path):
    def page(source, target, parameters=None, **options):
        given = [(name, str(value)) for name, value in (parameters or {}).items()]
        pages.page(Run.of("smoke", root=tmp_path), source, target, parameters=given, **options)

    return page


def test_page_carries_title_parameters_and_outputs_and_is_byte_stable(notebook, run, tmp_path):
    source = notebook("import os\nprint(size, os.path.basename(os.getcwd()))")
    for name in ("one", "two"):
        run(source, tmp_path / name / "p.ipynb", {"size": 5}, title="µA + µB")
    one, two = ((tmp_path / name / "p.ipynb").read_bytes() for name in ("one", "two"))
    assert one.replace(b"5 one", b"5 two") == two
    page = nbformat.reads(one.decode(), as_version=4)
    assert page.cells[0].source.startswith("# µA + µB")
    assert page.cells[-1].outputs[0].text == "5 one\n"  # it ran in the folder of the page
    injected = next(c for c in page.cells if "injected-parameters" in c.metadata.get("tags", []))
    assert "remove-input" in injected.metadata.tags and "size = 5" in injected.source


def test_failing_notebook_never_reaches_the_book(notebook, run, tmp_path):
    target = tmp_path / "p.ipynb"
    run(notebook("print(1)"), target)
    good = target.read_bytes()
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError.*\nThe traceback is in .*p\.txt"):
        run(notebook("1 / (size - 2)"), target)
    assert target.read_bytes() == good
    assert "1 / (size - 2)" in (tmp_path / "artifacts/smoke/failed" / "p.txt").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "artifacts/smoke/failed" / "p.ipynb").exists()
    run(notebook("print(1)"), target)
    assert not (tmp_path / "artifacts/smoke/failed" / "p.txt").exists()


def test_warning_in_a_page_is_a_failure(notebook, run, tmp_path):
    with pytest.raises(RuntimeError, match="careful"):
        run(notebook("import warnings\nwarnings.warn('careful')"), tmp_path / "p.ipynb")
    assert not (tmp_path / "p.ipynb").exists()


def test_unknown_parameter_is_refused(notebook, run, tmp_path):
    with pytest.raises(ValueError, match="has no parameter 'sise'; choose one of size"):
        run(notebook("print(1)"), tmp_path / "p.ipynb", {"sise": 3})


def test_no_page_of_another_run_stands_in_for_one_that_is_missing(tmp_path, monkeypatch):
    run = Run.of("smoke", root=tmp_path)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pages, "_announcement", lambda _: "")
    shutil.copytree("book/results", run.book / "results")
    for name in ("rules", "joint", "seeds"):
        (run.book / f"results/{name}.ipynb").unlink()
    pages.assemble(run)
    there = {page.stem for page in (run.book / "results").glob("*.ipynb")}
    assert "rules" not in there and there >= {"joint", "seeds", "your_checkpoints"}
