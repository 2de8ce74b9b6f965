"""The page `explore` in a browser: what it shows is what the results files hold."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiment import compare, curves, replay, report
from paintlib.normalisation import NORMALISATIONS

from .test_own_curves import BAD, GOOD, PUBLISHED

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


def losses_at(solution):
    """Return both normalised losses that a search has seen at its answer."""
    return next(row[2] for row in solution["trace"] if row[0] == solution["alpha"])


def wait_for(page, text, where=".explore-note"):
    page.locator(where, has_text=text).first.wait_for()


def check(page, supported, patching, alpha, losses=None):
    """Compare everything that is shown with the results files."""
    curves = read(f"pairs/{supported}-{patching}.json")["curves"]
    near = min(range(21), key=lambda i: abs(ALPHAS[i] - alpha))
    roles = {"supported": supported, "patching": patching}
    truth = read(f"evidence/{patching}.json")["truth"]
    tasks = [truth["tasks"][task] for task in (supported, patching)]
    tested = [np.interp(alpha, truth["alphas"], task["accuracy"]) for task in tasks]
    losses = losses or [curves[r]["loss"][near] / curves[r]["loss"][0] for r in roles]
    page.wait_for_function("document.querySelector('#explore tbody tr')")
    rows = numbers(page)
    for row, role, loss, test in zip(rows, roles, losses, tested, strict=False):
        assert row[:2] == pytest.approx([loss, curves[role]["accuracy"][near]], abs=6e-4)
        assert row[2] == pytest.approx(test, abs=6e-4)
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
    page.get_by_label("Supported task").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for key, alpha in (("Home", 0.0), ("ArrowRight", 0.05), ("End", 1.0), ("ArrowLeft", 0.95)):
        page.keyboard.press(key)
        check(page, *pair, alpha)
        assert page.get_by_role("slider").get_attribute("aria-valuetext").startswith(f"{alpha:.2f}")
        assert page.url.endswith(f"#supported={pair[0]}&patching={pair[1]}&alpha={alpha:g}")


def test_buttons_go_to_the_answers(explore):
    page = explore("#supported=CIFAR10&patching=GTSRB&alpha=0")
    record = read("pairs/CIFAR10-GTSRB.json")
    answers = {"log_quintic": "log-quintic", "quintic": "quintic", "grid": "exhaustive search"}
    for name, called in answers.items():
        page.locator(f"#explore button[value={name}]").press("Enter")
        found = record["solutions"][name]
        check(page, "CIFAR10", "GTSRB", found["alpha"], losses_at(found))
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


def test_address_is_followed_and_nonsense_in_it_told_and_ignored(explore):
    page = explore("#supported=NoTask&patching=DTD&alpha=much")
    told = page.locator(".explore-note").text_content()
    assert "the supported task “NoTask”, α = “much”. You see µImageNet + µDTD." in told
    record = read("pairs/ImageNet-DTD.json")
    assert marker(page) == pytest.approx(record["solutions"]["quintic"]["alpha"], abs=1e-3)
    page.evaluate("location.hash = '#supported=STL10&patching=Cars&alpha=0.37'")
    page.wait_for_function("document.querySelector('#explore b').textContent === '0.35'")
    check(page, "STL10", "Cars", 0.35)
    assert page.locator(".explore-note").text_content() == ""


@pytest.mark.parametrize("odd", ["toString", "__proto__", "%20own"])
def test_name_that_is_no_task_is_refused(explore, odd):
    page = explore(f"#supported={odd}&patching={odd}&alpha={odd}")
    found = read("pairs/ImageNet-Cars.json")["solutions"]["quintic"]
    check(page, "ImageNet", "Cars", found["alpha"], losses_at(found))
    assert page.locator(".explore-note").text_content().count("“") == 3
    page.evaluate("location.hash = '#alpha=1e9'")
    wait_for(page, "1e9")
    page.get_by_role("button", name="zero-shot").click()
    assert page.locator(".explore-note").text_content() == ""


def test_paper_gets_no_controls(explore):
    paper = {"width": 718, "height": 1047}
    page = explore("#supported=STL10&patching=DTD&alpha=0.4", viewport=paper)
    page.emulate_media(media="print")
    for control in page.locator("#explore :is(input, select, button, summary)").all():
        assert not control.is_visible()
    for part in (".explore-numbers p", "#explore-losses svg", ".explore-pictures figure"):
        assert page.locator(part).first.is_visible()
    assert "α\xa0=\xa00.40" in page.get_by_role("status").text_content()


def open_file(page, name, text):
    file = {"name": name, "mimeType": "text/plain", "buffer": text.encode()}
    page.get_by_label("Open your own curves").set_input_files(file)


def test_own_curves_are_shown_as_a_pair(explore, tmp_path):
    page = explore("#supported=STL10&patching=DTD&alpha=0.4")
    file = tmp_path / "mine.csv"
    file.write_text(GOOD, encoding="utf-8")
    open_file(page, "mine.csv", GOOD)
    wait_for(page, "mine.csv", "#explore th[scope=row]")
    pair = curves.read(file)
    found = compare.answers(*replay.on_curves(pair, "zero_shot"))
    shown = numbers(page)
    expected = report.normalised(pair, at=[found["quintic"].alpha])[:, 0]
    assert [row[0] for row in shown] == pytest.approx([*expected, sum(expected)], abs=6e-4)
    assert shown[0][2] is None
    assert "No test accuracy is known" in page.get_by_role("status").text_content()
    assert marker(page) == pytest.approx(found["quintic"].alpha, abs=1e-3)
    assert not page.get_by_role("button", name="log-quintic").is_visible()
    assert not page.locator(".explore-pictures").first.is_visible()
    assert "#" not in page.url  # no address can bring a file back
    page.get_by_role("slider").press("Home")
    page.get_by_role("slider").press("ArrowRight")
    assert numbers(page)[0][:2] == pytest.approx([np.exp(1.5 * 0.05**2), 0.89], abs=6e-4)
    page.get_by_label("Patching task").select_option("Cars")
    check(page, "ImageNet", "Cars", 0.05)
    page.get_by_label("Supported task").select_option(" own")
    assert page.get_by_label("Patching task").input_value() == " own"


def test_results_file_is_shown_as_it_stands(explore):
    page = explore("#supported=CIFAR10&patching=GTSRB")
    text = (RESULTS / "pairs/STL10-DTD.json").read_text(encoding="utf-8")
    open_file(page, "pair.json", text)
    wait_for(page, "your file", "#explore th[scope=row]")
    record = json.loads(text)
    for name, found in record["solutions"].items():
        page.locator(f"#explore button[value={name}]").click()
        roles = zip(numbers(page), ("supported", "patching"), losses_at(found), strict=False)
        for row, role, part in roles:
            assert row[0] == pytest.approx(part, abs=6e-4)
            assert row[2] == pytest.approx(record["test"][name][role]["accuracy"], abs=6e-4)
    page.get_by_role("slider").press("Home")
    page.get_by_role("slider").press("ArrowRight")
    assert numbers(page)[0][2] is None
    cut, other = text.replace('"DTD"', '"DTD', 1), text.replace('"accuracy"', '"a"')
    for bad in ("{", "{}", "[]", "null", cut, other):
        open_file(page, "bad.json", bad)
        wait_for(page, "bad.json")
        assert "is no results file of a pair; give" in page.locator(".explore-note").text_content()
        page.locator("#explore button[value=grid]").click()  # what was shown is shown still
        assert page.locator(".explore-note").text_content() == ""


def test_fault_of_a_file_is_told_in_the_page_as_by_the_command(explore):
    page = explore("#supported=CIFAR10&patching=GTSRB&alpha=0.4")
    for name, (text, told) in BAD.items():
        open_file(page, f"{name}.csv", text)
        wait_for(page, f"{name}.csv cannot be shown: {told}")
    check(page, "CIFAR10", "GTSRB", 0.4)


ROWS = {  # alphas, supported and patching losses
    "uneven": ([0, 0.1, 0.15, 0.3, 0.35, 0.6, 0.8, 1], lambda a: 1 + a**2, lambda a: 2 - a**0.5),
    "six": ([0, 0.2, 0.4, 0.6, 0.8, 1], lambda a: np.exp(a), lambda a: 1 / (1 + 9 * a)),
    "start": ([i / 10 for i in range(11)], lambda a: 1 + 3 * a, lambda a: 1 - a / 4),
    "end": ([i / 10 for i in range(11)], lambda a: 1 + a / 4, lambda a: 1 - a / 2),
    "flat": ([i / 8 for i in range(9)], lambda a: 1 + abs(a - 0.5) ** 3, lambda a: 1.0),
}  # fmt: skip


def test_page_and_library_find_the_same_quintic_and_curves(explore, tmp_path):
    page, dense = explore(), np.linspace(0, 1, 31)
    paint = (PUBLISHED / "paint_demo_vitb32.csv").read_text(encoding="utf-8")
    texts = {"paint": paint.replace("cifar10_", "supported_").replace("mnist_", "patching_")}
    for name, (alphas, supported, patching) in ROWS.items():
        rows = [f"{a},{supported(a):.9f},{patching(a):.9f},0.5,0.5" for a in alphas]
        texts[name] = "\n".join([GOOD.splitlines()[0], *rows])
    for name, text in texts.items():
        (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
        pair = curves.read(tmp_path / "mine.csv")
        points, values = page.evaluate("""async ([text, alphas]) => {
            const pair = await readOwn(new File([text], "mine.csv"));
            return [pair.points, alphas.map(pair.at)];
        }""", [text, dense.tolist()])  # fmt: skip
        expected, found = (
            report.normalised(pair, at=dense),
            compare.answers(*replay.on_curves(pair, "zero_shot")),
        )
        np.testing.assert_allclose(np.transpose(values), expected, rtol=1e-9, err_msg=name)
        assert points["grid"]["alpha"] == found["grid"].alpha, name
        assert points["quintic"]["alpha"] == pytest.approx(found["quintic"].alpha, abs=1e-6), name
    record = read("pairs/STL10-DTD.json")
    for kind in NORMALISATIONS:
        values = page.evaluate("""([record, kind, alphas]) =>
            alphas.map(drawn(checked(rowsOfRecord(record)), kind).at)""",
            [record, kind, dense.tolist()])  # fmt: skip
        expected = report.normalised(record, kind, dense)
        np.testing.assert_allclose(np.transpose(values), expected, rtol=1e-9, atol=1e-12)


def test_strip_shows_each_picture_once(explore):
    page = explore("#supported=CIFAR10&patching=MNIST&alpha=0.5")
    strip = page.locator(".explore-pictures").first.evaluate(
        "box => box.style.getPropertyValue('--strip')"
    )
    assert strip.startswith("url(data:image/png;base64,")
    shown = page.locator(".explore-pictures[data-role=patching] [role=img]").all()
    places = {picture.evaluate("p => getComputedStyle(p).backgroundPosition") for picture in shown}
    assert len(places) == 12


def test_charts_take_the_width_that_a_late_style_leaves_them(explore):
    page = explore()
    page.evaluate("document.querySelector('.explore-charts').style.width = '250px'")
    for chart in ("losses", "accuracies"):
        page.wait_for_function(
            "name => document.querySelector(`#explore-${name} svg`).clientWidth <= 250",
            arg=chart,
        )


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
