"""Sphinx extension of the book: other packages' scripts, so that no page needs a network."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import vl_convert
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("build-finished", _copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _copy_scripts(app: Sphinx, failure: Exception | None) -> None:
    if failure or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    scoped = f"(() => {{{vega}}})();"  # its short names would clash with those of Sphinx
    (static / "vega.js").write_text(scoped, encoding="utf-8")
    mathjax = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(mathjax.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")))
    (static / "mathjax.js").write_bytes(source.read_bytes())
