"""What a page was made from, so that a page whose inputs have changed since can say so.

A page carries the digests of its inputs in its notebook metadata; nothing of them is shown.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from paintlib import results

ROOT = Path(__file__).resolve().parent.parent
KEY = "paintlib"  # of the notebook's metadata
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Page(NamedTuple):
    """A page as it stands: the inputs that have changed, and the commit that it was made at.

    Without a record of its inputs, `commit` is None and nothing is known of `changed`.
    """

    changed: tuple[str, ...]
    commit: str | None

    @property
    def stale(self) -> bool:
        """Whether the page has to be made again."""
        return bool(self.changed) or self.commit is None

    def __str__(self) -> str:
        """Say what is wrong with the page."""
        if self.commit is None:
            return "it has no record of what it was made from"
        return f"{', '.join(self.changed)} changed since it was made at commit {self.commit}"


def digest(file: Path) -> str:
    """Return 12 hex digits that change with the meaning of a file.

    Of Python code that is its syntax tree: comments, docstrings and layout do not count, because
    no page shows them. Of any other file it is the bytes.
    """
    content = file.read_bytes()
    if file.suffix == ".py":
        with contextlib.suppress(SyntaxError):  # half-written code counts by its bytes
            content = _meaning(ast.parse(content)).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def record(inputs: Iterable[str], root: Path = ROOT) -> dict[str, object]:
    """Return what the metadata of a page hold: the commit, and each input with its digest.

    Args:
        inputs: paths relative to `root`.
        root: the project's folder.
    """
    return {
        "commit": results.commit(),
        "inputs": {name: digest(root / name) for name in sorted(set(inputs))},
    }


def read(page: Path, root: Path = ROOT) -> Page:
    """Compare the inputs that the notebook `page` records with the files under `root`."""
    known = json.loads(page.read_text(encoding="utf-8"))["metadata"].get(KEY)
    if known is None:
        return Page((), None)
    changed = (name for name, was in known["inputs"].items() if _now(root / name) != was)
    return Page(tuple(changed), known["commit"])


def pages(book: Path) -> list[Path]:
    """Return the executed notebooks of a book."""
    return sorted([*book.glob("results/*.ipynb"), *book.glob("pairs/*.ipynb")])


def _now(file: Path) -> str | None:
    return digest(file) if file.is_file() else None


def _meaning(node: object) -> str:
    """Write a syntax tree without what is empty, so that every version of Python agrees on it."""
    if isinstance(node, list):
        return f"[{','.join(map(_meaning, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    filled = (f"{name}={_meaning(x)}" for name, x in fields.items() if x is not None and x != [])
    return f"{type(node).__name__}({','.join(filled)})"
