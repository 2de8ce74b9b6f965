"""A page knows what it was made from, and says when that has changed."""

import json
import shutil

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, build_book

from paintlib import __main__, freshness

CODE = '"""What it is for."""\n\ndef f(x):\n    return x + 1\n'


def digest(folder, text, name="code.py"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return freshness.digest(file)


@pytest.mark.parametrize(
    "same",
    [
        CODE.replace("What it is for", "Another purpose"),
        CODE.replace("x + 1", "(x\n        + 1)  # the next one"),
        CODE.replace("    return", "    '''Add one.'''\n    return"),
    ],
)
def test_digest_of_code_ignores_what_no_page_shows(tmp_path, same):
    assert digest(tmp_path, CODE) == digest(tmp_path, same)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("1", "1.0"),
        CODE.replace("x + 1", "x - 1"),
        CODE.replace("(x)", "(x=None)"),
        CODE.replace("return", "yield"),
        CODE + "'text'\nnumber = 'text'\n",
    ],
)
def test_digest_of_code_sees_what_it_does(tmp_path, other):
    assert digest(tmp_path, CODE) != digest(tmp_path, other)


def test_digest_of_code_is_the_same_under_every_python(tmp_path):
    """Of syntax whose trees gained fields in 3.12 and 3.13."""
    text = (
        "@d\nclass A(B, k=1):\n    async def f(self, *a: int) -> str:\n        return f'{a!r:>9}'\n"
    )
    assert digest(tmp_path, text) == "098b8a3f54bd"


def test_digest_of_other_files_is_of_their_bytes(tmp_path):
    assert digest(tmp_path, "# a", "a.md") != digest(tmp_path, "# a ", "a.md")


@pytest.fixture
def project(tmp_path):
    """A project of one page that was made from two files."""
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "data.json").write_text("{}", encoding="utf-8")
    page = tmp_path / "book" / "results" / "page.ipynb"
    page.parent.mkdir(parents=True)
    shutil.copy(ROOT / "book/results/table1.ipynb", page)
    notebook = json.loads(page.read_text(encoding="utf-8"))
    notebook["metadata"][freshness.KEY] = freshness.record(["data.json", "code.py"], tmp_path)
    page.write_text(json.dumps(notebook), encoding="utf-8")
    return tmp_path, page


def test_page_is_fresh_until_an_input_changes_or_goes(project):
    folder, page = project
    assert not freshness.read(page, folder).stale
    (folder / "data.json").write_text("[]", encoding="utf-8")
    (folder / "code.py").unlink()
    found = freshness.read(page, folder)
    assert found.stale and found.changed == ("code.py", "data.json")
    assert str(found).startswith("code.py, data.json changed since it was made at commit ")


def test_page_without_a_record_is_stale(project):
    folder, page = project
    notebook = json.loads(page.read_text(encoding="utf-8"))
    del notebook["metadata"][freshness.KEY]
    page.write_text(json.dumps(notebook), encoding="utf-8")
    assert freshness.read(page, folder).stale


def test_check_names_stale_pages_and_fails(project, monkeypatch, capsys):
    folder, _ = project
    monkeypatch.chdir(folder)
    monkeypatch.setattr(freshness.read, "__defaults__", (folder,))
    assert __main__.main(["check"]) == 0
    (folder / "data.json").write_text("[]", encoding="utf-8")
    assert __main__.main(["check"]) == 1
    assert "page.ipynb: data.json changed since" in capsys.readouterr().out
    shutil.rmtree(folder / "book")
    assert __main__.main(["check"]) == 1  # no page at all


def test_stale_page_is_marked_in_a_book_that_still_builds(tmp_path):
    book = tmp_path / "book"
    (book / "results").mkdir(parents=True)
    (book / "_config.yml").write_text(
        "execute: {execute_notebooks: 'off'}\n"
        "sphinx:\n  extra_extensions: [paintlib.site]\n"
        f"  config: {{paintlib_results: {ROOT / 'results/micro'}, mathjax_path: mathjax.js}}\n",
        encoding="utf-8",
    )
    (book / "index.md").write_text("# Start\n", encoding="utf-8")
    (book / "references.md").write_text("# References\n", encoding="utf-8")
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: index\n"
        "chapters: [{file: references}, {file: results/new}, {file: results/old}]\n",
        encoding="utf-8",
    )
    inputs = freshness.record(["paintlib/solver.py", "notebooks/table1.md"])
    for name, was in (("new", {}), ("old", {"notebooks/table1.md": "0" * 12})):
        notebook = {
            "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Page"}],
            "metadata": {freshness.KEY: {**inputs, "inputs": {**inputs["inputs"], **was}}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (book / "results" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    site = build_book(book, tmp_path)
    assert 'class="stale' not in (site / "results/new.html").read_text(encoding="utf-8")
    old = BeautifulSoup((site / "results/old.html").read_bytes(), "html.parser")
    mark = old.select_one(".stale").text
    assert "notebooks/table1.md changed since it was made at commit" in mark
    assert "solver.py" not in mark
