"""The marks of equations in the library, as (3.3) eq-root, against the chapters of the book."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted(ROOT.glob("paintlib/*.py"))
MARK = re.compile(r"\((\d+\.\d+)\) (eq-[\w-]+)")


def numbered():
    """Return the number of each equation of the book: of its chapter, then by order in it."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    part = next(part for part in contents["parts"] if part["caption"] == "The paper")
    numbers = {}
    for chapter, pages in enumerate(part["chapters"], start=1):
        files = [page["file"] for page in (pages, *pages.get("sections", []))]
        texts = "\n".join(source(file).read_text("utf-8") for file in files)
        labels = re.findall(r"^ *:label: (eq-\S+)$", texts, flags=re.M)
        numbers |= {label: f"{chapter}.{i}" for i, label in enumerate(labels, start=1)}
    return numbers


def source(file):
    """Return what a page of the book is written in: a chapter, or a notebook."""
    prose = ROOT / "book" / f"{file}.md"
    return prose if prose.exists() else ROOT / "notebooks" / prose.name


def test_equations_are_numbered_by_chapter():
    numbers = numbered()
    assert (numbers["eq-path"], numbers["eq-head"], numbers["eq-root"]) == ("1.1", "2.1", "3.3")
    assert len(numbers) == len(set(numbers.values())) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_marks_are_the_numbers_of_the_book(path):
    text = path.read_text("utf-8")
    marks = [(label, number) for number, label in MARK.findall(text)]
    assert marks == [(label, numbered().get(label)) for label, _ in marks]
    assert len(marks) == text.count("eq-"), "a label has no number, or is broken over two lines"


def test_library_marks_its_equations():
    marked = {label for path in SOURCES for _, label in MARK.findall(path.read_text("utf-8"))}
    assert marked >= {"eq-path", "eq-objective", "eq-bracket", "eq-root", "eq-parts", "eq-stderr"}
    assert marked >= {"eq-images", "eq-gs", "eq-bkt", "eq-forgetting", "eq-prediction", "eq-fisher"}
