"""The pages "Trade-offs" and "All pairs" in a browser, opened as files."""

import json
import re
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def visit(book_html, browser):
    """Open a page of results; afterwards no script may have failed and no network been asked."""
    context = browser.new_context()
    problems, requests = [], []

    def open_(name: str, **viewport: int):
        page = context.new_page()
        page.set_viewport_size({"width": 1280, "height": 900} | viewport)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((book_html / "results" / f"{name}.html").as_uri())
        return page

    yield open_
    context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture
def tradeoffs(visit):
    page = visit("tradeoffs")
    page.wait_for_selector("#tradeoffs:not([hidden])")
    return page


@pytest.fixture
def data(tradeoffs):
    return json.loads(tradeoffs.text_content("#tradeoffs-data"))


def settle(page, **settings: object) -> str:
    """Set controls as a user does, and return what the page then says."""
    return page.evaluate(
        """settings => {
          const { elements } = document.getElementById("tradeoffs");
          for (const [name, value] of Object.entries(settings)) {
            elements[name].value = value;
            elements[name].dispatchEvent(new Event("input", { bubbles: true }));
          }
          return document.getElementById("tradeoffs-result").textContent;
        }""",
        settings,
    )


def alpha(text: str) -> float:
    return float(re.search(r"α\* = ([\d.]+)\. ", text)[1])


def test_chart_takes_the_width_that_a_late_style_leaves_it(tradeoffs):
    tradeoffs.evaluate("document.getElementById('tradeoffs-chart').style.width = '250px'")
    tradeoffs.wait_for_function("document.querySelector('#tradeoffs-chart svg').clientWidth <= 250")


@pytest.mark.parametrize(
    ("rule", "settings"), [("weight", [0, 0.25, 0.5, 0.83, 1]), ("ceiling", [0, 1, 7.5, 20])]
)
def test_page_chooses_the_alphas_that_python_chooses(tradeoffs, data, rule, settings):
    for setting in settings:
        expected = {}
        for pair in data["pairs"]:
            kept, repaired = np.array([pair["supported"], pair["patching"]])
            judged = (1 - setting) * kept + setting * repaired
            if rule == "ceiling":  # allowed is a rise of so many per cent
                judged = np.where(kept <= 1 + setting / 100, repaired, np.inf)
            expected[pair["id"]] = data["alphas"][judged.argmin()]
        settle(tradeoffs, rule=rule, **{rule: setting})
        found = {pair: alpha(settle(tradeoffs, pair=pair)) for pair in expected}
        assert found == expected
        mean = alpha(settle(tradeoffs, pair="all"))
        assert mean == pytest.approx(np.mean([*expected.values()]), abs=5.01e-4)


def test_page_says_the_accuracies_at_that_alpha(tradeoffs, data):
    for pair in data["pairs"][:3]:
        text = settle(tradeoffs, pair=pair["id"], weight=0.37)
        shown = [float(x) for x in re.findall(r"([\d.]+) %", text)]
        expected = [
            100 * np.interp(x, data["samples"], row)
            for row in pair["accuracy"]
            for x in (alpha(text), 0)
        ]
        assert shown == pytest.approx(expected, abs=0.0501)


def test_slider_moves_by_keyboard_and_only_its_own_is_shown(tradeoffs):
    weight, ceiling = (tradeoffs.get_by_label(text) for text in ("Weight of", "Highest rise"))
    before = alpha(tradeoffs.text_content("#tradeoffs-result"))
    weight.focus()
    for _ in range(20):
        weight.press("ArrowRight")
    assert weight.input_value() == "0.7" and not ceiling.is_visible()
    assert alpha(tradeoffs.text_content("#tradeoffs-result")) > before
    tradeoffs.get_by_label("Rule").select_option("ceiling")
    assert ceiling.is_visible() and not weight.is_visible()


def address(page) -> str:
    return urllib.parse.unquote(page.url.partition("#")[2])


def test_address_holds_the_choice_and_back_returns_to_it(visit, tradeoffs):
    tradeoffs.locator("select[name=pair]").select_option("CIFAR10-GTSRB")
    tradeoffs.get_by_label("Rule").select_option("ceiling")
    slider = tradeoffs.get_by_label("Highest rise")
    slider.focus()
    slider.press("ArrowRight")
    assert address(tradeoffs) == "pair=CIFAR10-GTSRB&rule=ceiling&ceiling=1.5"
    said = tradeoffs.text_content("#tradeoffs-result")
    tradeoffs.goto(tradeoffs.url.partition("#")[0].replace("tradeoffs", "claims"))
    tradeoffs.go_back()
    tradeoffs.wait_for_selector("#tradeoffs:not([hidden])")
    assert tradeoffs.text_content("#tradeoffs-result") == said
    assert slider.input_value() == "1.5" and slider.is_visible()
    tradeoffs.evaluate("location.hash = '#pair=all&rule=weight&weight=0.25'")
    tradeoffs.wait_for_function(
        "document.getElementById('tradeoffs-result').textContent.startsWith('Means')"
    )
    assert tradeoffs.get_by_label("Weight of").input_value() == "0.25"


def test_odd_address_leaves_the_default_and_is_told(tradeoffs):
    before, note = tradeoffs.text_content("#tradeoffs-result"), tradeoffs.get_by_role("alert")
    for odd in ("toString", "", "-1", "1e9", "NaN", "0x1"):
        given = "&".join(f"{name}={odd}" for name in ("pair", "rule", "weight", "ceiling"))
        tradeoffs.evaluate("hash => { location.hash = hash; }", given)
        note.get_by_text(re.compile(f"Unknown in the address.*“{odd}”")).wait_for()
        assert note.text_content().count(f"“{odd}”") == 4
        assert tradeoffs.text_content("#tradeoffs-result") == before
    tradeoffs.get_by_label("Rule").select_option("ceiling")
    assert note.text_content() == "" and address(tradeoffs) == "pair=all&rule=ceiling&ceiling=1"


def test_chart_has_a_curve_and_a_dot_for_each_pair_and_moves(tradeoffs, data):
    curves = tradeoffs.locator("#tradeoffs-chart .mark-line.role-mark path")
    dots = tradeoffs.locator("#tradeoffs-chart .mark-symbol.role-mark path")
    pairs = len(data["pairs"])
    assert (curves.count(), dots.count()) == (pairs + 1 + 1, pairs + 1)  # the mean, the selected
    before = dots.first.get_attribute("transform")
    settle(tradeoffs, weight=1)
    tradeoffs.wait_for_function(
        "old => document.querySelector('#tradeoffs-chart .mark-symbol.role-mark path')"
        ".getAttribute('transform') !== old",
        arg=before,
    )


def test_matrix_links_lead_to_files_and_cover_every_pair(visit, book_html):
    page = visit("all_pairs")
    links = page.eval_on_selector_all(
        "table.matrix a", "links => links.map(a => a.getAttribute('href'))"
    )
    pairs = list((ROOT / "results/micro/pairs").glob("*.json"))
    assert len(links) == len(set(links)) == len(pairs)
    for link in set(links):
        assert (book_html / "results" / urllib.parse.unquote(link)).is_file(), link


def test_matrix_scrolls_in_its_own_box_on_a_phone_and_keeps_its_row_names(visit):
    page = visit("all_pairs", width=390)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    matrix = page.locator("table.matrix").first
    matrix.evaluate("table => { table.scrollLeft = 120; }")
    assert matrix.evaluate("table => table.scrollLeft") == 120
    name, box = matrix.locator("tbody th").first.bounding_box(), matrix.bounding_box()
    assert name["x"] == pytest.approx(box["x"], abs=3)


def column(page, index: int) -> list[str]:
    table = page.locator("table.dataframe").first
    cells = table.locator(f"tbody td:nth-child({index + 1})")
    return [text.strip() for text in cells.all_text_contents()]


@pytest.mark.parametrize(
    ("name", "title"),
    [("all_pairs", "transfer"), ("solvers", "excess, median"), ("forgetting", "95 %")],
)
def test_table_is_sorted_by_keyboard_in_both_directions(visit, name, title):
    page = visit(name)
    headers = page.locator("table.dataframe").first.locator("thead th")
    at = next(i for i, h in enumerate(headers.all_text_contents()) if h.startswith(title))

    def number(text):  # "−0.008", "2.6·10⁻⁸", "+0.05 to +0.50"
        plain = text.split()[0].replace("\N{MINUS SIGN}", "-").replace("·10", "e")
        return float(plain.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))

    header, numbers = headers.nth(at), sorted(map(number, column(page, at)))
    assert numbers[0] < 1e-7
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert [*map(number, column(page, at))] == numbers
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert [*map(number, column(page, at))] == numbers[::-1]
    headers.first.locator("button").click()
    assert header.get_attribute("aria-sort") is None
    assert column(page, 0) == sorted(column(page, 0), key=lambda text: _natural(text.lower()))


def _natural(text: str) -> list[tuple[str, int]]:
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)(\d*)", text)]
