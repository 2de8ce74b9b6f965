"""The files that a step or a page is made by, found by their imports; the Snakefile asks here."""

import functools
import re
from pathlib import Path

import grimp

from experiment.__main__ import COMMANDS
from experiment.run import OF_NO_RUN


@functools.cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        "experiment", "paintlib", exclude_type_checking_imports=True, cache_dir=None
    )


def code(*modules: str) -> list[str]:
    """Return the files of some modules and of all that they import, and the tables beside them."""
    graph = _graph()
    needed = set(modules).union(*(graph.find_upstream_modules(name) for name in modules))
    files = [Path(*name.split(".")) for name in sorted(needed)]
    files = [file / "__init__" if file.is_dir() else file for file in files]
    return [str(found) for f in files for found in sorted(f.parent.glob(f"{f.name}.*"))]


def step(name: str) -> list[str]:
    """Return the files of a step of `python -m experiment`."""
    return code(f"experiment.{COMMANDS[name][0]}")


def page(notebook: str) -> list[str]:
    """Return a notebook and the files of what it imports."""
    found, text = {"experiment.pages"}, Path(notebook).read_text(encoding="utf-8")
    for package, names in re.findall(
        r"^from ((?:experiment|paintlib)[\w.]*) import (.+)$", text, re.M
    ):
        found |= {package, *(f"{package}.{name.split()[0]}" for name in names.split(", "))}
    return [notebook, *code(*(found & _graph().modules))]


def prose() -> list[str]:
    """Return the files of the book that no step of a run writes."""
    apart = {"_build", "pairs", "results", "__pycache__"}
    files = [f for f in Path("book").rglob("*") if f.is_file() and not apart & set(f.parts)]
    return [*map(str, files), *(f"book/results/{name}.ipynb" for name in OF_NO_RUN)]


def kept() -> list[str]:
    """Return the committed evidence, which every run's pages show."""
    kinds = ("evidence", "samples", "seeds", "ablations")
    return [str(file) for kind in kinds for file in Path("results/micro", kind).glob("*")]
