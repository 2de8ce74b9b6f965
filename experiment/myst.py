"""How papermill reads `notebooks/`, which are text: see `entry-points` in `pyproject.toml` here."""

import jupytext
import nbformat

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def read(path: str) -> str:
    """Return the notebook at `path` as JSON."""
    notebook = jupytext.read(path)
    notebook.metadata = nbformat.NotebookNode(kernelspec=KERNEL)
    return str(nbformat.writes(notebook))


def pretty_path(path: str) -> str:
    """Return how papermill names the file."""
    return path
