"""The built site, in a browser and file by file: no network, nothing broken, all readable."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROVENANCE = json.loads((ROOT / "results/micro/provenance.json").read_text(encoding="utf-8"))
CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
PAIRS = ("ImageNet-Cars", "CIFAR10-GTSRB", "CIFAR100-FashionMNIST", "STL10-SVHN")  # all are alike
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
A4 = {"width": 718, "height": 1047}  # the printable part, at 96 dots an inch

WIDE = """[...document.querySelectorAll('article :is('
  + 'div.math mjx-container, table, .pst-scrollable-table-container, pre)')].filter(
  element => element.scrollWidth > element.clientWidth + 1
    || element.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"""
CUT_OFF = """[...document.querySelectorAll('article, article *')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width > 1 && box.right > innerWidth + 1;
}).map(element => element.outerHTML.slice(0, 80))"""


def pages_of(site: Path) -> list[Path]:
    """Return all pages but most of the pairs and of the library's source."""
    pages = (page for page in sorted(site.rglob("*.html")) if "_static" not in page.parts)
    some = {"pairs": PAIRS, "paintlib": ("solver",), "_modules": ()}
    return [page for page in pages if page.stem in some.get(page.parent.name, (page.stem,))]


def faults(browser, files: Iterable[Path]) -> dict[Path, list[str]]:
    """Return what a browser finds wrong with pages, for those with a fault."""
    found = {}
    seen = []
    page = browser.new_page(color_scheme="light")  # one for all: it keeps the scripts it has read
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:"))
            else seen.append(f"asks the network for {r.url}"))  # fmt: skip
    page.on("requestfailed", lambda r: seen.append(f"cannot load {r.url}"))
    page.on("console", lambda m: m.type in ("error", "warning") and seen.append(f"says {m.text}"))
    page.on("pageerror", lambda error: seen.append(f"raises {error}"))
    for file in files:
        page.set_viewport_size(DESK)
        page.goto(file.as_uri())
        page.evaluate("window.MathJax?.startup?.promise")
        seen += [f"is too wide for a desk: {wide}" for wide in page.evaluate(WIDE)]
        page.add_style_tag(content="* {transition: none !important; animation: none !important}")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        for theme in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            seen += [f"is faint in the {theme} theme: {text}" for text in page.evaluate(CONTRAST)]
        page.set_viewport_size(PHONE)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            seen.append(f"scrolls sideways on a phone, {width} px")
        if seen:
            found[file] = seen.copy()
            seen.clear()
    page.close()
    return found


def parsed(site: Path) -> dict[Path, BeautifulSoup]:
    """Return all pages of a site."""
    pages = (page for page in site.rglob("*.html") if "_static" not in page.parts)
    return {page: BeautifulSoup(page.read_bytes(), "html.parser") for page in pages}


def broken(soups: dict[Path, BeautifulSoup]) -> Iterator[str]:
    """Yield the links, files and anchors that a page names and that are not there."""
    anchors = {page: {tag["id"] for tag in soup.find_all(id=True)} for page, soup in soups.items()}
    for page, soup in soups.items():
        for tag in soup.find_all(["a", "img", "link", "script"]):
            address = urlsplit(tag.get("href") or tag.get("src") or "")
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            if not target.is_file():
                yield f"{page.name}: no file {address.path}"
            elif "=" in address.fragment:
                continue  # settings, which the script of the page reads
            elif address.fragment and unquote(address.fragment) not in anchors.get(target, ()):
                yield f"{page.name}: no anchor {address.geturl()}"


def nameless_images(soups: dict[Path, BeautifulSoup]) -> Iterator[str]:
    """Yield the images without a text for those who cannot see them."""
    for page, soup in soups.items():
        for image in soup.find_all("img"):
            if not image.get("alt", "").strip():
                yield f"{page.name}: {image.get('src')}"


@pytest.fixture(scope="session")
def soups(book_html):
    return parsed(book_html)


@pytest.mark.parametrize("part", range(3))  # each for a worker of its own
def test_pages_are_whole_in_a_browser_without_a_network(browser, book_html, part):
    pages = pages_of(book_html)
    assert len(pages) > len(PAIRS) + 20
    assert not faults(browser, pages[part::3])


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script src='https://example.org/x.js'></script>", "asks the network for"),
        ("<img src='none.png' alt='none'>", "cannot load"),
        ("<script>console.warn('careful')</script>", "says careful"),
        ("<script>undefined.x</script>", "raises"),
        ("<p style='width: 400px'>wide</p>", "scrolls sideways on a phone"),
        (f"<article><pre style='overflow: auto'>{'x' * 999}</pre></article>", "is too wide"),
        ("<p style='color: #777'>grey</p>", "is faint in the light theme"),
        ("<details><p style='color: #777'>grey</p></details>", "is faint in the light theme"),
        ("<style>[data-theme=dark] body {background: #222}</style>x", "is faint in the dark theme"),
        ("<span style='color: #ddd' aria-hidden='true'>mark</span>", None),
        ("<p style='color: #666'>dark enough</p><h1 style='color: #888'>large</h1>", None),
    ],
)
def test_fault_of_a_page_is_found(browser, tmp_path, body, fault):
    page = tmp_path / "page.html"
    start = "<!doctype html><meta name=viewport content='width=device-width'><body>"
    page.write_text(start + body, encoding="utf-8")
    found = faults(browser, [page]).get(page, [])
    assert any(text.startswith(fault) for text in found) if fault else not found, found


def test_links_and_images_of_all_pages(soups):
    assert not list(broken(soups))
    assert not list(nameless_images(soups))


def test_broken_link_and_nameless_image_are_found(tmp_path):
    (tmp_path / "b.html").write_text("<h1 id='here'>b</h1>", encoding="utf-8")
    (tmp_path / "a.html").write_text(
        "<a href='c.html'>c</a><a href='b.html#here'>b</a><a href='b.html#there'>b</a>"
        "<a href='https://example.org'>out</a><img src='b.html' alt=' '>",
        encoding="utf-8",
    )
    pages = parsed(tmp_path)
    assert list(broken(pages)) == ["a.html: no file c.html", "a.html: no anchor b.html#there"]
    assert list(nameless_images(pages)) == ["a.html: b.html"]


def test_formulas_and_search_work_from_the_file_system(browser, book_html):
    page = browser.new_page()
    page.goto((book_html / "chapters/solver.html").as_uri())
    page.wait_for_selector("mjx-container svg")
    assert page.locator("mjx-merror").count() == 0
    for word, found in (("quintic", "solver"), ("準凸", "summary_ja")):
        page.goto((book_html / "search.html").as_uri() + f"?q={word}")
        page.wait_for_selector(f"#search-results li a[href*='{found}']")
    page.close()


def test_every_drawn_figure_can_be_downloaded(soups):
    figures = [(page, image) for page, soup in soups.items()
               for image in soup.select("article img[src$='.svg']")]  # fmt: skip
    assert len(figures) > 80
    for page, image in figures:
        link = image.find_next("a", download=True)
        assert link["href"] == image["src"] and link["download"].endswith(".svg"), page


def test_pages_carry_notebook_licence_and_citation(soups):
    for page, soup in soups.items():
        footer = soup.select_one(".extra_footer")
        assert "MIT" in footer.text and footer.a["href"].endswith("#how-to-cite"), page
        assert f"commit {PROVENANCE['commit'][:12]} on {PROVENANCE['device']}" in footer.text, page
        if page.parent.name in ("pairs", "results"):
            notebook = soup.select_one("a.btn-download-source-button[href$='.ipynb']")["href"]
            text = (page.parent / notebook).read_text(encoding="utf-8")
            assert json.loads(text)["nbformat"] == 4 and '"image/' not in text, page
            own = page.stem == "your_checkpoints"  # which is of no run
            assert own or "The run behind" in soup.article.text, page
            pair = page.parent.name == "pairs"
            step = f"pair/{page.stem.rpartition('-')[2]}" if pair else f"page/{page.stem}"
            if seconds := PROVENANCE["seconds"].get(step):  # of pages that are newer, unknown
                assert f"took {seconds} s to run" in footer.text, page


def test_all_folded_code_of_a_page_stands_in_one_place_at_its_foot(soups):
    for page, soup in soups.items():
        found = soup.select("details.hide")
        if page.parent.name in ("pairs", "results") and page.stem != "your_checkpoints":
            [code] = found
            assert len(code.select(".cell_input")) > 1, page
            assert not code.find_next("figure") and not code.find_next("table"), page
        else:
            assert not found, page


def test_status_holds_what_the_run_recorded(soups):
    text = next(soup for page, soup in soups.items() if page.stem == "status").article.text
    assert f"{sum(PROVENANCE['seconds'].values()):.1f}" in text
    for name, version in PROVENANCE["versions"].items():
        assert name in text and version in text


def test_names_of_the_library_lead_to_its_docstrings_and_these_to_its_source(soups):
    """That no link is broken, another test sees."""
    named = 0
    for file, soup in soups.items():
        for code in soup.select("article :is(p, li, td) code.literal"):
            name = code.text.removesuffix("()")
            if (
                "_modules" in file.parts
                or not re.fullmatch(r"paintlib\.\w[\w.]*", name)
                or name.endswith(".npz")
            ):
                continue
            link = code.find_parent("a")
            assert link and "api.html#" in link["href"], f"{file}: {name}"
            target = link["href"].rpartition("#paintlib.")[2].split(".")
            assert set(target) & set(name.split(".")), f"{file}: {name} leads to {link['href']}"
            named += 1
    assert named > 40
    (api,) = (soup for file, soup in soups.items() if file.name == "api.html")
    links = {link["href"] for link in api.find(id="paintlib.solver.quintic")("a")}
    assert "_modules/paintlib/solver.html#quintic" in links


def test_reference_of_the_library_has_no_leftovers_of_its_making(soups):
    text = next(soup for page, soup in soups.items() if page.stem == "api").article.get_text()
    left = ("Alias for field number", "$$", "_Buffer", "<factory>", "–tasks", "(value, names=")
    assert not [words for words in left if words in text]
    assert "except_ –" in text and "NOT_QUASICONVEX = " in text and "ArrayLike" in text


def test_jupyter_book_2_is_sent_away():
    """It would succeed with no HTML; it reads this file, and the plugin ends it."""
    config = yaml.safe_load((ROOT / "myst.yml").read_text(encoding="utf-8"))
    (plugin,) = config["project"]["plugins"]
    if shutil.which("node") is None:
        pytest.skip("Jupyter Book 2 needs Node.js, which is not here")
    done = subprocess.run(["node", ROOT / plugin], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'jupyter-book<2'" in done.stderr


def test_what_paper_cuts_off_is_found(browser):
    page = browser.new_page(viewport=A4)
    page.set_content("<article><p>text</p><pre style='width: 800px'>wide</pre></article>")
    assert page.evaluate(CUT_OFF) == ['<pre style="width: 800px">wide</pre>']
    page.close()


@pytest.mark.parametrize("name", ["index", "chapters/solver", "results/all_pairs"])
def test_page_prints_with_its_figures_and_nothing_cut_off(browser, book_html, name):
    page = browser.new_page(viewport=A4)
    page.goto((book_html / f"{name}.html").as_uri())
    page.evaluate("window.MathJax?.startup?.promise")
    page.emulate_media(media="print")
    for part in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", "summary"):
        assert not any(piece.is_visible() for piece in page.locator(part).all()), part
    assert not page.evaluate(CUT_OFF)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
    pdf = page.pdf(format="A4", margin=dict.fromkeys(("left", "right", "top", "bottom"), "1cm"))
    assert len(re.findall(rb"/Type /Page\b", pdf)) >= 2
    page.close()


def test_formulas_of_the_chapters_fit_on_a_phone(browser, book_html):
    """That nothing is too wide for a desk, `faults` sees."""
    page = browser.new_page(viewport=PHONE)
    pages = [*sorted(book_html.glob("chapters/*.html")), book_html / "results/steps.html"]
    for file in [f for f in pages if f.stem != "notation"]:
        page.goto(file.as_uri())
        page.evaluate("window.MathJax?.startup?.promise")
        assert not [wide for wide in page.evaluate(WIDE) if "mjx-container" in wide], file
    page.close()


@pytest.mark.parametrize("name", ["results/rules", "results/all_pairs", "chapters/notation"])
def test_table_fades_out_on_a_phone_until_it_is_scrolled_to_its_end(browser, book_html, name):
    fades, page = "box => getComputedStyle(box).maskImage !== 'none'", browser.new_page()
    page.goto((book_html / f"{name}.html").as_uri())
    boxes = page.locator(":is(.dataframe, .matrix, .pst-scrollable-table-container):visible").all()
    assert boxes and not any(box.evaluate(fades) for box in boxes)  # on a desk all of them fit
    page.set_viewport_size(PHONE)
    wide = [box for box in boxes if box.evaluate("box => box.scrollWidth > box.clientWidth + 1")]
    assert wide and all(box.evaluate(fades) == (box in wide) for box in boxes)
    for box in wide:
        box.evaluate("box => box.scrollLeft = box.scrollWidth")
        page.wait_for_timeout(50)  # the next frame
        assert not box.evaluate(fades)
    page.close()


def test_page_of_the_pictures_is_reached_from_each_but_is_not_in_the_side_bar(soups):
    by_name = {f"{page.parent.name}/{page.stem}": soup for page, soup in soups.items()}
    assert not by_name["html/index"].select(".bd-sidebar-primary a[href*='results/pictures']")
    for chapter in ("paper", "paint", "solver", "metrics"):
        article = by_name[f"chapters/{chapter}"].article
        assert article.select("figure.picture img")
        assert article.select("a[href='../results/pictures.html']")


def test_site_is_small(book_html):
    assert sum(file.stat().st_size for file in book_html.rglob("*") if file.is_file()) < 18e6


@pytest.mark.parametrize(("name", "formulas"), [("index", 0), ("chapters/metrics", 1)])
def test_page_loads_mathjax_for_its_formulas_only_and_home_is_light(
    browser, book_html, name, formulas
):
    page, loaded = browser.new_page(), set()
    page.on("request", lambda request: loaded.add(Path(unquote(urlsplit(request.url).path))))
    page.goto((book_html / f"{name}.html").as_uri(), wait_until="load")
    page.wait_for_selector("svg.svg-inline--fa", state="attached")
    names = {file.name for file in loaded}
    assert "custom.css" in names and ("mathjax.js" in names) == formulas
    assert not names & {"searchindex.js", "fa-solid-900.woff2"}
    assert formulas or sum(file.stat().st_size for file in loaded) < 1e6
    assert bool(page.locator("mjx-container").count()) == bool(formulas)
    page.close()


def test_pages_describe_themselves_and_link_to_no_repository_that_is_not_known(soups):
    described = [soup.select_one('meta[name="description"]') for soup in soups.values()]
    texts = [tag["content"] for tag in described if tag]
    assert len(texts) > 50 and all(20 < len(text) <= 160 for text in texts)
    known = ".dropdown-source-buttons, .dropdown-launch-buttons"
    assert not any(soup.select(known) for soup in soups.values())


def test_pages_link_to_their_source_and_to_binder_where_the_repository_is_known(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/fork")
    monkeypatch.setenv("GITHUB_REF_NAME", "topic")
    book = tmp_path / "book"
    (book / "_static").mkdir(parents=True)
    (book / "index.md").write_text("# Title\n\nText.\n")
    (book / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    shutil.copy(ROOT / "_config.yml", book)
    shutil.copytree(ROOT / "book/_ext", book / "_ext")
    (tmp_path / "results/micro").mkdir(parents=True)
    shutil.copy(ROOT / "results/micro/run.json", tmp_path / "results/micro")
    done = subprocess.run(
        [Path(sys.executable).with_name("jupyter-book"), "build", book],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (book / "_build/html/index.html").read_text("utf-8")
    assert "https://github.com/someone/fork/blob/topic/book/index.md" in text
    assert "dropdown-source-buttons" in text


def test_side_bar_is_short_and_pairs_are_in_neither_it_nor_the_search(soups, book_html):
    shown = {page: soup.select("nav.bd-links a") for page, soup in soups.items()}
    assert all(15 < len(links) <= 22 for links in shown.values())
    assert not [a for links in shown.values() for a in links if "pairs/" in a["href"]]
    assert "pairs/" not in (book_html / "searchindex.js").read_text(encoding="utf-8")
    assert not (book_html / "genindex.html").exists()
    pairs = [page for page in soups if page.parent.name == "pairs"]
    assert len(pairs) == 36
    ends = {link["href"] for page in pairs for link in soups[page].select(".prev-next-area a")}
    assert len(ends) == 37 and "../results/all_pairs.html" in ends


def test_every_icon_that_a_page_names_is_drawn(browser, book_html):
    page = browser.new_page()
    page.goto((book_html / "results/claims.html").as_uri())
    page.wait_for_selector("svg.svg-inline--fa", state="attached")
    drawn = page.locator("svg.svg-inline--fa")
    assert drawn.count() > 10 and page.locator("i.fa-solid").count() == 0
    assert all(drawn.locator("path").evaluate_all("paths => paths.map(p => p.getAttribute('d'))"))
    page.close()


def test_drawings_are_shortened_and_look_as_before(browser, book_html):
    (kept,) = (ROOT / "results/micro").glob("headline.svg")
    shown = book_html / "_images/headline.svg"
    assert shown.stat().st_size < 0.8 * kept.stat().st_size
    images = []
    for file in (kept, shown):
        page = browser.new_page(viewport={"width": 520, "height": 780})
        page.goto(file.as_uri())
        images.append(np.array(Image.open(io.BytesIO(page.screenshot())).convert("L"), float))
        page.close()
    assert images[0].std() > 10 and np.abs(images[0] - images[1]).mean() < 0.5


def test_figure_of_the_japanese_summary_has_japanese_labels_that_the_browser_draws(
    browser, book_html
):
    page = browser.new_page(viewport=PHONE)
    page.goto((book_html / "summary_ja.html").as_uri())
    address = page.locator("figure img").get_attribute("src")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth)")
    page.goto((book_html / address).as_uri())  # the drawing by itself, with text
    assert page.evaluate("document.documentElement.getAttribute('lang')") == "ja"
    texts = page.locator("text").all_text_contents()
    labels = [text.strip() for text in texts if re.search("[ぁ-ヿ一-鿿]", text)]
    assert len(labels) == 12 and "最適ではないタスクの精度（%）" in labels
    inside = """[...document.querySelectorAll('text')].every(text => {
      const [own, all] = [text, document.documentElement].map(e => e.getBoundingClientRect());
      return own.width > 1 && all.left <= own.left && own.right <= all.right + 1;
    })"""
    assert page.evaluate(inside)
    page.close()
