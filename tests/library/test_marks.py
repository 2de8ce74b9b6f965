"""The marks of equations in the library, as (3.3) eq-root, against the chapters of the book."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted(ROOT.glob("paintlib/*.py"))
MARK = re.compile(r"\((\d+\.\d+)\) (eq-[\w-]+)")


def numbered():
    """Return the number of each equation of the book: of its chapter, then by order in it."""
    contents = (ROOT / "_toc.yml").read_text("utf-8")
    part = contents.split("caption: The paper\n")[1].split("- caption")[0]
    numbers = {}
    for chapter, file in enumerate(re.findall(r"file: (\S+)", part), start=1):
        text = (ROOT / "book" / f"{file}.md").read_text("utf-8")
        labels = re.findall(r"^ *:label: (eq-\S+)$", text, flags=re.M)
        numbers |= {label: f"{chapter}.{i}" for i, label in enumerate(labels, start=1)}
    return numbers


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
