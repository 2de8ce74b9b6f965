"""Sphinx extension of the book: what each page of the site gets beyond its text.

Scripts that other packages hold are copied in, so that no page needs a network. Figures get a link
to their SVG, all folded code of a page stands in one place at its foot, and below it is said from
which run the page is, and how to cite. Two directives show what `provenance.json` of the run
holds. A name of the library in the text links to its docstring. What no page loads is left out, and
a page without a formula loads no MathJax, one without a search no index.
Where the address of the repository is known, pages link to their source there.
Pages of pairs, which `run.json` lists, are in no side bar and no search: one page links to all.
"""

from __future__ import annotations

import enum
import html
import importlib.metadata
import inspect
import itertools
import json
import os
import posixpath
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import sphinx_thebe
import vl_convert
from docutils import nodes
from docutils.parsers.rst.directives.tables import CSVTable
from myst_nb.sphinx_ import HideCodeCellNode
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import stringify_annotation

PICTURES = "results/pictures"  # of the chapters, which link to it
DRAWN = 100_000  # letters: an output as long is a page with its data
ICON = re.compile(  # of Font Awesome's script, by its name
    r"""(?:"([\w-]+)"|\b(\w+)):\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?"""
)
FORMULA = (nodes.math, nodes.math_block)
SEARCH = re.compile(
    r' *<script src="[./]*(_static/searchtools|_static/language_data|searchindex)\.js"></script>\n'
)
UNUSED = (  # source maps, translations of the theme, fonts for browsers older than the theme
    "_static/**/*.map",
    "_static/locales",
    "_static/vendor/fontawesome/webfonts/*.ttf",
    "_static/vendor/fontawesome/webfonts/fa-brands*",
    "_static/sphinx-thebe.js",
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("paintlib_results", "../results/micro", "html")
    # sphinx-thebe runs code on a server; nobody uses it here, and its script comes from a network
    for listener in list(itertools.chain(*app.events.listeners.values())):
        if listener.handler in (sphinx_thebe.init_thebe_core, sphinx_thebe.update_thebe_context):
            app.disconnect(listener.id)
    app.connect("config-inited", _admit_unlisted, priority=950)  # once the contents leave them out
    app.connect("builder-inited", _search_no_pair)
    app.connect("doctree-read", _expect_unlisted_nowhere)
    app.add_directive("run-seconds", ProvenanceTable)
    app.add_directive("run-versions", ProvenanceTable)
    app.add_directive("run-noise", ProvenanceTable)
    app.connect("config-inited", _link_repository)
    app.connect("autodoc-process-docstring", _as_rst)
    app.connect("autodoc-process-signature", _name_types)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("doctree-resolved", _link_figures)
    app.connect("doctree-resolved", _link_names)
    app.connect("doctree-resolved", _break_names)  # after the names have their links
    app.connect("doctree-resolved", _gather_code)
    app.connect("html-page-context", _sign)
    app.connect("build-finished", _complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _link_repository(_app: Sphinx, config: Config) -> None:
    if name := os.environ.get("GITHUB_REPOSITORY"):  # which GitHub sets in a workflow
        config.html_theme_options |= {
            "repository_url": f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}",
            "repository_branch": os.environ.get("GITHUB_REF_NAME", "main"),
            "path_to_docs": "book",
            "use_repository_button": True,
            "use_source_button": True,
            "launch_buttons": {"binderhub_url": "https://mybinder.org"},
        }


def _as_rst(_app: Sphinx, *about: Any) -> None:
    """Turn `code`, $$formulas$$ and marks as (3.3) eq-root, in a docstring, into markup."""
    lines: list[str] = about[-1]
    for number, line in enumerate(lines):
        line = re.sub(r"(?<![`:\w])`([^`]+)`(?![`_])", r"``\1``", line)
        line = re.sub(r"\$\$(.+)\$\$", r".. math:: \1", line)
        lines[number] = re.sub(r"\(\d+\.\d+\) (eq-[\w-]+)", r":eq:`\1`", line)


def _name_types(
    _app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, signature: str, returns: str
) -> tuple[str | None, str | None] | None:
    """Name a type as the source does, where its parts would fill lines; an Enum has no call."""
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return "", None
    array = stringify_annotation(ArrayLike, "smart")
    parts = (part and part.replace(array, "ArrayLike") for part in (signature, returns))
    first, last = (part and part.replace("<factory>", "...") for part in parts)
    return first, last


def _skip_fields(_app: Sphinx, _what: str, _name: str, thing: Any, *_: Any) -> bool | None:
    """Leave out the fields of a NamedTuple, which its signature has and no docstring tells of."""
    return True if (inspect.getdoc(thing) or "").startswith("Alias for field number") else None


def _pairs(app: Sphinx) -> list[str]:
    """Return the pages of the run's pairs."""
    file = Path(app.srcdir, app.config.paintlib_results, "run.json")
    run = json.loads(file.read_text(encoding="utf-8"))
    return [f"pairs/{s}-{p}" for s, p in itertools.product(run["supported"], run["patching"])]


def _admit_unlisted(app: Sphinx, config: Config) -> None:
    pages = {f"{page}.ipynb" for page in (PICTURES, *_pairs(app))}
    config["exclude_patterns"] = [p for p in config["exclude_patterns"] if p not in pages]


def _search_no_pair(app: Sphinx) -> None:
    index = getattr(app.builder, "index_page", None)
    if index is None:
        return

    def index_page(page: str, doctree: nodes.document, title: str) -> None:
        if not page.startswith("pairs/"):
            index(page, doctree, title)

    app.builder.index_page = index_page  # type: ignore[attr-defined]


def _expect_unlisted_nowhere(app: Sphinx, _doctree: nodes.document) -> None:
    if app.env.docname == PICTURES or app.env.docname.startswith("pairs/"):
        app.env.metadata[app.env.docname]["orphan"] = True


def _link_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.format != "html":
        return
    folder = posixpath.dirname(docname) or "."
    drawn = [image for image in doctree.findall(nodes.image) if image["uri"].endswith(".svg")]
    for number, image in enumerate(drawn, 1):
        file = app.env.images[image["uri"]][1]
        href = posixpath.relpath(f"{app.builder.imagedir}/{file}", folder)
        name = f"{posixpath.basename(docname)}-{number}.svg"
        link = f'<p class="svg-link"><a href="{href}" download="{name}">SVG</a></p>'
        image.parent.insert(image.parent.index(image) + 1, nodes.raw("", link, format="html"))


def _link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link `paintlib.solver.quintic` and the like, where the text names them, to the API."""
    known = app.env.domaindata["py"]["objects"]
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        own = name.removeprefix("paintlib.")
        if own == name or isinstance(literal.parent, nodes.reference):
            continue
        found = [n for n in known if n == name]
        while own and not found:
            found = [n for n in known if n.endswith(f".{own}")]
            own = own.rpartition(".")[0]  # an argument is told where its function is
        if len(found) != 1:
            continue
        place = known[found[0]]
        folder = posixpath.dirname(docname) or "."
        href = f"{posixpath.relpath(place.docname, folder)}.html#{place.node_id}"
        link = nodes.reference("", "", internal=True, refuri=href, classes=["api"])
        literal.replace_self(link)
        link += literal


def _break_names(_app: Sphinx, doctree: nodes.document, _docname: str) -> None:
    """Let a long name in a table go on in the next line, after a dot or an underscore."""
    for entry in doctree.findall(nodes.entry):
        for literal in entry.findall(nodes.literal):
            first, *others = re.split(r"(?<=[._])(?=[A-Za-z])", literal.astext())
            literal[:] = [nodes.Text(first)]
            for part in others:
                literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]


def _gather_code(_app: Sphinx, doctree: nodes.document, _docname: str) -> None:
    """Put all folded code of a page in one place at its foot."""
    folded = list(doctree.findall(HideCodeCellNode))
    for node in folded:
        cell = node.parent
        cell.remove(node)
        if not cell.children:
            cell.parent.remove(cell)
    if folded:
        first, *others = folded
        first.extend(part for node in others for part in node.children)
        doctree[0] += nodes.container("", first, classes=["cell", "code-row"])


def _sign(
    app: Sphinx,
    pagename: str,
    _template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    if not doctree or not any(doctree.findall(lambda n: isinstance(n, FORMULA))):
        context["script_files"] = [
            script
            for script in context["script_files"]
            if "mathjax" not in f"{script.filename} {script.attributes}".lower()
        ]
    if doctree and (first := next(doctree.findall(nodes.paragraph), None)):
        text = textwrap.shorten(first.astext(), 160, placeholder=" ...")  # for search engines
        context["metatags"] += f'<meta name="description" content="{html.escape(text)}" />'
    if (pairs := _pairs(app)).count(pagename):  # its neighbours in the table of all pairs
        at = pairs.index(pagename)
        for key, number in (("prev", at - 1), ("next", at + 1)):
            page = pairs[number] if 0 <= number < len(pairs) else "results/all_pairs"
            title = app.env.titles[page].astext()
            context[key] = {"link": context["pathto"](page), "title": title}
    cite = context["pathto"]("references").partition("#")[0] + "#how-to-cite"
    sentences = [f'MIT licence. <a href="{cite}">How to cite this book</a>.']
    if (file := _provenance(app)).is_file():
        run = json.loads(file.read_text(encoding="utf-8"))
        sentences.insert(0, f"Results of commit {run['commit'][:12]} on {run['device']}.")
        folder, _, name = pagename.partition("/")
        which, step = "notebook of this page", f"page/{name}"
        if folder == "pairs":  # one step for the pairs of a patching task
            which, step = "notebooks of this path's pairs", f"pair/{name.rpartition('-')[2]}"
        if seconds := run["seconds"].get(step):
            sentences.insert(0, f"The {which} took {seconds} s to run.")
    context["theme_extra_footer"] += "<br>" + " ".join(sentences)


def _provenance(app: Sphinx) -> Path:
    return Path(app.srcdir, app.config.paintlib_results, "provenance.json")


class ProvenanceTable(CSVTable):  # type: ignore[misc]  # docutils is not typed
    """The seconds of a run, summed by step, or the versions that it was made with."""

    def get_csv_data(self) -> tuple[list[str], str]:
        """Return lines of CSV, the header first, and where they are from."""
        env = self.state.document.settings.env
        file = _provenance(env.app)
        env.note_dependency(str(file))
        if not file.is_file():
            raise self.error(f"there is no {file}; a run of `make book` writes its own")
        run = json.loads(file.read_text(encoding="utf-8"))
        if self.name == "run-versions":
            made_with = {"commit": run["commit"], "device": run["device"], **run["versions"]}
            return [f'{name},"{version}"' for name, version in made_with.items()], str(file)
        if self.name == "run-noise":
            noise = run.get("noise") or {"not measured in this run": ""}
            return [f"{path},{share and f'{share:.1e}'}" for path, share in noise.items()], str(
                file
            )
        steps: dict[str, list[float]] = {"all": list(run["seconds"].values())}
        for step, seconds in sorted(run["seconds"].items()):
            steps.setdefault(step.partition("/")[0], []).append(seconds)
        rows = [f"{step},{len(s)},{sum(s):.1f},{max(s):.1f}" for step, s in steps.items()]
        return ["step,times,seconds in all,longest", *rows], str(file)


def _complete(app: Sphinx, failure: Exception | None) -> None:
    if failure or app.builder.format != "html":
        return
    site = Path(app.outdir)
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    scoped = f"(() => {{{vega}}})();"  # its short names would clash with those of Sphinx
    (site / "_static/vega.js").write_text(scoped, encoding="utf-8")
    mathjax = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(mathjax.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")))
    (site / "_static/mathjax.js").write_bytes(source.read_bytes())
    for path in itertools.chain.from_iterable(site.glob(pattern) for pattern in UNUSED):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _drop_icons(site)
    for page in site.rglob("*.html"):
        if page.name != "search.html":  # where the search begins: no other page needs its index
            text = page.read_text(encoding="utf-8")
            page.write_text(SEARCH.sub("", text), encoding="utf-8")
    for figure in site.glob("_images/*.svg"):
        figure.write_text(_shorter(figure.read_text(encoding="utf-8")), encoding="utf-8")
    for notebook in site.glob("_sources/**/*.ipynb"):
        _lighten(notebook)


def _drop_icons(site: Path) -> None:
    """Drop the icons that no page shows: two thousand, which every page would read."""
    pages = (page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    shown = {icon for page in pages for icon in re.findall(r"\bfa-([a-z0-9-]+)", page)}
    script = site / "_static/scripts/fontawesome.js"
    text = script.read_text(encoding="utf-8")
    text = ICON.sub(lambda icon: icon[0] if (icon[1] or icon[2]) in shown else "", text)
    script.write_text(text, encoding="utf-8")


def _shorter(svg: str) -> str:
    """Return a drawing of matplotlib's with no more than can be seen of it."""

    def rounded(numbers: re.Match[str]) -> str:
        text = re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", numbers[0])
        return re.sub(r"\s*([MLQCz])\s*", r"\1", text)

    svg = re.sub(
        r"<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg, flags=re.S
    )
    svg = re.sub(r"""\b(?:d|x|y)="[^"]*"|translate\([^)]*\)""", rounded, svg)
    named = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda own: own[0] if own[1] in named else "", svg)
    if re.search("[ぁ-ヿ]", svg):  # its text is text, and Chinese shapes its characters otherwise
        svg = svg.replace("<svg ", '<svg lang="ja" ', 1)
    svg = re.sub(r'DejaVuSans-(\w+")', r"D\1", svg)
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", svg)).strip()


def _lighten(notebook: Path) -> None:
    """Drop what is drawn in a notebook for download, which its page has, and its layout."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in [
                k for k in data if k.startswith("image/") or len("".join(data[k])) > DRAWN
            ]:
                del data[kind]
            for kind, lines in data.items():  # running the notebook makes its downloads again
                if kind.startswith("text/"):
                    data[kind] = re.sub(r"<a download=.*?>(.*?)</a>", r"\1", "".join(lines))
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    notebook.write_text(text, encoding="utf-8")
