"""The page `explore` in a browser: what it shows is what the results files hold."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "micro"
ALPHAS = [round(0.05 * i, 2) for i in range(21)]


@pytest.fixture
def explore(book_html, browser):
    """Open the page at an address; at the end nothing may have failed or gone to a network."""
    errors, requests, contexts = [], [], []

    def at(address="", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: m.type in ("error", "warning") and errors.append(m.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{(book_html / 'results' / 'explore.html').as_uri()}{address}")
        if options.get("java_script_enabled", True):
            page.wait_for_selector("#explore-accuracies svg")
        return page

    yield at
    for context in contexts:
        context.close()
    assert not errors
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def read(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def marker(page, chart="losses"):
    """Return the alpha at which the chart's marker stands."""
    rule = page.locator(f"#explore-{chart} .mark-rule.role-mark line").get_attribute("transform")
    frame = page.locator(f"#explore-{chart} .role-frame > g > path.background").first
    width = re.search(r"h([\d.]+)", frame.get_attribute("d"))[1]
    return float(re.search(r"\(([\d.]+)", rule)[1]) / float(width)


def numbers(page):
    """Return the table as rows of floats; accuracies as fractions, "–" and blanks as None."""
    rows = page.locator("#explore tbody tr").all()
    cells = [row.locator("td").all_text_contents() for row in rows]
    return [
        [float(c.rstrip("%\xa0")) / (100 if "%" in c else 1) if c.strip("–") else None for c in row]
        for row in cells
    ]


def check(page, supported, patching, alpha, losses=None, tested=None):
    """Compare everything that is shown with the results files."""
    curves = read(f"pairs/{supported}-{patching}.json")["curves"]
    near = min(range(21), key=lambda i: abs(ALPHAS[i] - alpha))
    roles = {"supported": supported, "patching": patching}
    losses = losses or [curves[r]["loss"][near] / curves[r]["loss"][0] for r in roles]
    tested = tested or [None, None]
    page.wait_for_function("document.querySelector('#explore tbody tr')")
    rows = numbers(page)
    for row, role, loss, test in zip(rows, roles, losses, tested, strict=False):
        assert row[:2] == pytest.approx([loss, curves[role]["accuracy"][near]], abs=6e-4)
        assert row[2] == (None if test is None else pytest.approx(test, abs=6e-4))
    assert rows[2][0] == pytest.approx(sum(losses), abs=6e-4)
    assert marker(page) == pytest.approx(alpha, abs=1e-3)
    assert marker(page, "accuracies") == pytest.approx(ALPHAS[near], abs=1e-3)
    for role, task in roles.items():
        described = read("pictures/tasks.json")["tasks"][task]
        predicted = read(f"predictions/{patching}.json")["tasks"][task]
        figures = page.locator(f".explore-pictures[data-role={role}] figure").all()
        assert len(figures) == 12
        right = 0
        for i, figure in enumerate(figures):
            truth = described["classnames"][described["labels"][i]]
            names = [described["classnames"][rank[near]] for rank in predicted["classes"][i]]
            shares = [100 * rank[near] for rank in predicted["probabilities"][i]]
            right += names[0] == truth
            assert figure.get_by_role("img").get_attribute("aria-label").endswith(f": {truth}")
            verdict = "✓\xa0right" if names[0] == truth else "✗\xa0wrong"
            assert figure.locator("figcaption").text_content() == f"{truth}: {verdict}"
            assert figure.locator("li :first-child").all_text_contents() == names
            seen = figure.locator("li :last-child").all_text_contents()
            assert [float(text.rstrip("%\xa0")) for text in seen] == pytest.approx(shares, abs=0.51)
        assert page.locator(f"h3[data-role={role}]").text_content().endswith(f"{right} of 12 right")


@pytest.mark.parametrize("pair", [("CIFAR10", "GTSRB"), ("STL10", "MNIST")])
def test_slider_moves_everything_by_the_keyboard(explore, pair):
    page = explore(f"#supported={pair[0]}&patching={pair[1]}&alpha=0.1")
    check(page, *pair, 0.1)
    tests = read(f"pairs/{pair[0]}-{pair[1]}.json")["test"]
    page.get_by_label("Supported task").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for key, alpha in (("Home", 0.0), ("ArrowRight", 0.05), ("End", 1.0), ("ArrowLeft", 0.95)):
        page.keyboard.press(key)
        known = tests.get({0.0: "zero_shot", 1.0: "fine_tuned"}.get(alpha))
        tested = known and [known[role]["accuracy"] for role in ("supported", "patching")]
        check(page, *pair, alpha, tested=tested)
        assert page.get_by_role("slider").get_attribute("aria-valuetext").startswith(f"{alpha:.2f}")
        assert page.url.endswith(f"#supported={pair[0]}&patching={pair[1]}&alpha={alpha:g}")


def test_buttons_go_to_the_answers(explore):
    page = explore("#supported=CIFAR10&patching=GTSRB&alpha=0")
    record = read("pairs/CIFAR10-GTSRB.json")
    answers = {"log_quintic": "log-quintic", "quintic": "quintic", "grid": "exhaustive search"}
    for name, called in answers.items():
        page.locator(f"#explore button[value={name}]").press("Enter")
        found = record["solutions"][name]
        losses = next(row[2] for row in found["trace"] if row[0] == found["alpha"])
        tested = [record["test"][name][role]["accuracy"] for role in ("supported", "patching")]
        check(page, "CIFAR10", "GTSRB", found["alpha"], losses, tested)
        pressed = page.locator("#explore button[aria-pressed=true]").all()
        assert name in [button.get_attribute("value") for button in pressed]
        assert f"the {called}'s answer" in page.get_by_role("status").text_content()
        assert page.url.endswith(f"alpha={name}")
    assert "nearest sample" not in page.get_by_role("status").text_content()


def test_answers_are_marked_on_the_curve_of_the_sum(explore):
    page = explore("#supported=STL10&patching=DTD")
    marks = page.locator("#explore-losses .mark-symbol.role-mark path")
    labels = [mark.get_attribute("aria-label") for mark in marks.all()]
    found = read("pairs/STL10-DTD.json")["solutions"]
    for name in ("grid", "quintic", "log_quintic"):
        label = next(text for text in labels if text.endswith(f": {name}"))
        alpha, value = (float(number) for number in re.findall(r": ([\d.]+)", label)[:2])
        assert alpha == pytest.approx(found[name]["alpha"], abs=1e-6)
        assert value == pytest.approx(found[name]["value"], abs=2e-4)


def test_another_task_changes_curves_pictures_and_address(explore):
    page = explore("#supported=CIFAR10&patching=GTSRB&alpha=0.5")
    page.get_by_label("Patching task").select_option("EuroSAT")
    check(page, "CIFAR10", "EuroSAT", 0.5)
    page.get_by_label("Supported task").select_option("ImageNet")
    check(page, "ImageNet", "EuroSAT", 0.5)
    assert page.url.endswith("#supported=ImageNet&patching=EuroSAT&alpha=0.5")


def test_address_is_followed_and_nonsense_in_it_ignored(explore):
    page = explore("#supported=NoTask&patching=DTD&alpha=much")
    record = read("pairs/ImageNet-DTD.json")
    assert marker(page) == pytest.approx(record["solutions"]["quintic"]["alpha"], abs=1e-3)
    page.evaluate("location.hash = '#supported=STL10&patching=Cars&alpha=0.37'")
    page.wait_for_function("document.querySelector('#explore b').textContent === '0.35'")
    check(page, "STL10", "Cars", 0.35)


def test_strip_shows_each_picture_once(explore):
    page = explore("#supported=CIFAR10&patching=MNIST&alpha=0.5")
    strip = page.locator(".explore-pictures").first.evaluate(
        "box => box.style.getPropertyValue('--strip')"
    )
    assert strip.startswith("url(data:image/png;base64,")
    shown = page.locator(".explore-pictures[data-role=patching] [role=img]").all()
    places = {picture.evaluate("p => getComputedStyle(p).backgroundPosition") for picture in shown}
    assert len(places) == 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_never_scrolls_sideways(explore, width, scheme):
    page = explore(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_without_javascript_a_sentence_says_where_to_look(explore):
    page = explore(java_script_enabled=False)
    assert page.locator("#explore").is_hidden()
    sentence = page.locator("noscript p")  # by text it would not be found
    assert sentence.is_visible() and "needs JavaScript" in sentence.text_content()
    assert sentence.locator("a").get_attribute("href") == "all_pairs.html"


def test_page_is_light(book_html):
    assert (book_html / "results" / "explore.html").stat().st_size < 2_000_000


def test_charts_can_be_saved_as_svg(explore):
    page = explore()
    for chart in ("losses", "accuracies"):
        link = page.locator(f"#explore-{chart} details a")
        assert link.all_text_contents() == ["Save as SVG"]
        link.dispatch_event("mousedown")  # draws the file
        with page.expect_download() as download:
            link.evaluate("link => link.click()")
        assert download.value.suggested_filename == f"explore-{chart}.svg"
        assert download.value.path().read_text(encoding="utf-8").startswith("<svg")
