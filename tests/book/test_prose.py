"""The pages of the book: they say what they show, and every figure can be read and downloaded."""

import importlib
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from experiment.run import OF_NO_RUN
from paintlib.solver import Status

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PROSE = sorted([*BOOK.glob("*.md"), *BOOK.glob("chapters/*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))
PAGES = sorted(BOOK.glob("*/*.ipynb"))
IMAGES = {"image/svg+xml", "image/png"}
CSV = "data:text/csv"


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def opening(text: str) -> str:
    """Return the first paragraph below the title; empty where something else comes first."""
    title, _, rest = text.strip().partition("\n")
    assert re.match(r"# \S", title), title
    rest = re.sub(r'^<div lang="ja">', "", rest.strip()).strip()
    first = rest.split("\n\n")[0]
    return "" if re.match(r"[`#|:({-]", first) else first


@pytest.mark.parametrize("path", PROSE, ids=ids)
def test_page_has_a_title_and_says_what_it_shows(path):
    assert re.search(r"[.。]", opening(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_notebook_has_a_title_and_says_what_it_shows_before_any_code(path):
    first = jupytext.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert "." in opening(first.source)


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_figure_has_its_data_below_it_and_a_text_for_those_who_cannot_see(path):
    waiting = False
    for cell in nbformat.read(path, as_version=4).cells:
        if "remove-cell" in cell.metadata.get("tags", []):
            continue  # what the page does not show
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if IMAGES & data.keys():
                assert not waiting, f"no CSV before cell {cell.id}"
                waiting = True
                assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40, cell.id
            elif any(CSV in text for kind, text in data.items() if kind.startswith("text/")):
                waiting = False
    assert not waiting, "the last figure has no CSV"


def test_no_figure_of_the_prose_is_without_a_text_for_those_who_cannot_see():
    for path in PROSE:
        text = path.read_text(encoding="utf-8")
        assert text.count("```{figure}") == len(re.findall(r"^:alt: .{20,}$", text, flags=re.M)), (
            path
        )


def test_names_in_the_notation_are_those_of_the_code():
    text = (BOOK / "chapters/notation.md").read_text("utf-8")
    names = re.findall(r"`((?:paintlib|experiment)\.[\w.]+)`", text)
    assert len(names) > 30
    for name in names:
        parts = name.split(".")
        found = importlib.import_module(parts[0])
        for number, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                found = importlib.import_module(".".join(parts[:number]))
            else:
                found = getattr(found, part, None)


def test_notation_links_every_numbered_equation():
    chapters = [path.read_text("utf-8") for path in (*BOOK.glob("chapters/*.md"), *NOTEBOOKS)]
    defined = set(re.findall(r"^:label: (\S+)$", "\n".join(chapters), flags=re.M))
    linked = re.findall(r"\{eq\}`(\S+?)`", (BOOK / "chapters/notation.md").read_text("utf-8"))
    derived = {"eq-quasiconvex", "eq-identity", "eq-departure"}  # they define no symbol
    assert defined - derived == set(linked)


def test_every_way_a_search_can_end_is_listed():
    text = (BOOK / "chapters/error_bar.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", text, flags=re.M)
    assert rows == [(status.name, status.value) for status in Status]


def test_glossary_is_sorted_and_its_links_lead_to_its_own_terms():
    text = (BOOK / "chapters/glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)$", text.split("```{glossary}")[1].split("```")[0], flags=re.M)
    assert terms == sorted(terms, key=str.lower)
    used = "\n".join(path.read_text(encoding="utf-8") for path in PROSE)
    for shown, target in re.findall(r"\{term\}`([^`<]+?)(?: <([^>]+)>)?`", used):
        assert (target or shown).lower() in {term.lower() for term in terms}


def test_both_summaries_state_the_same_numbers():
    def rows(name):
        text = (BOOK / name).read_text(encoding="utf-8").split("\n| |")[1].split("\n\n")[0]
        number = r"\{glue:text\}`(.+?)`|(\d+(?:\.\d+)?)"
        rows = [re.findall(number, row.replace("_ja:", ":")) for row in text.splitlines()[2:]]
        return [sorted(a or b for a, b in row) for row in rows]

    assert rows("index.md") == rows("summary_ja.md")
    assert len(rows("index.md")) == 4 and all(rows("index.md"))


def test_number_of_pages_of_results_is_told_right():
    (told,) = re.findall(
        r"^\| `summary` \| (\d+) \|", (BOOK / "run.md").read_text("utf-8"), flags=re.M
    )
    assert int(told) == len(NOTEBOOKS) - 2 - len(OF_NO_RUN)  # all but pair.md and own_curves.md


def words(path: Path) -> str:
    """Return what a page has to read: its prose, and what its code has printed as Markdown."""
    if path.suffix == ".md":
        return re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
    cells = nbformat.read(path, as_version=4).cells
    printed = (
        out.get("data", {}).get("text/markdown", "") for c in cells for out in c.get("outputs", ())
    )
    return "\n".join([c.source for c in cells if c.cell_type == "markdown"] + [*printed])


def test_no_page_has_a_turn_that_contributing_replaces():
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    turns = [turn.replace(r"\|", "|") for turn in re.findall(r"^\| `(.+)` \|", table, flags=re.M)]
    assert len(turns) > 3
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in [*PROSE, *PAGES, ROOT / "README.md"]
        for turn in turns
        for match in re.finditer(turn, words(path), flags=re.I)
    ]
    assert not found, "\n".join(found)
