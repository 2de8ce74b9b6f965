"""Curves that somebody else measured: a file of them becomes a page as a pair of the book has."""

import contextlib
import csv
import html
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt

from experiment import report, results
from experiment.profiles import refuse_unknown
from experiment.run import Run
from paintlib.fits import POINTS

COLUMNS = ("alpha", *(f"{role}_{kind}" for kind in ("loss", "accuracy") for role in report.ROLES))
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
KEPT = ("book", "notebooks", "results")  # folders of the project that no command fills in passing
SETTINGS = ("supported", "patching", "normalisation")  # of the notebook
REMEDY = "give results/RUN/pairs/SUPPORTED-PATCHING.json, or a CSV"
STYLE = """svg {height: auto; max-width: 100%} summary {color: #555} pre {overflow-x: auto}
body {font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 50rem; padding: 0 1rem}
blockquote {border-left: 3px solid; margin: 0; padding-left: 1rem} figure {margin: 0}
td, th {font-variant-numeric: tabular-nums; padding: .2em .6em; text-align: left}"""

Row = tuple[str, Mapping[str, float]]  # where it is in its file, and its numbers


def curves(run: Run, file: Path | str, *, out: Path = Path("artifacts/curves"),
           parameters: Sequence[tuple[str, str]] = ()) -> None:  # fmt: skip
    """Write the page of the curves in `file` to `out`: a notebook, an HTML file, its figure as SVG.

    `parameters` are `supported` and `patching`, the tasks' names, and `normalisation`.
    """
    from experiment.pages import figures, page

    file = Path(file)
    if any(out.resolve().is_relative_to(results.ROOT / name) for name in KEPT):
        raise ValueError(f"{out} belongs to the reference; give --out another folder")
    refuse_unknown(dict(parameters), SETTINGS, "no setting")
    title = report.name(read(file, **dict(parameters)))  # a fault is told before a notebook starts
    target = out / f"{file.stem}.ipynb"
    given = [*parameters, ("file", os.path.relpath(file.resolve(), out.resolve()))]
    page(run, results.ROOT / "notebooks/own_curves.md", target, parameters=given, title=title)
    notebook = nbformat.read(target, as_version=4)
    target.with_suffix(".svg").write_text(next(iter(figures(target).values())), encoding="utf-8")
    target.with_suffix(".html").write_text(stand_alone(notebook), encoding="utf-8")
    print(f"the page is {target.with_suffix('.html')}")


def read(file: Path | str, supported: str = "", patching: str = "",
         normalisation: str = "") -> dict[str, Any]:  # fmt: skip
    """Read a CSV of curves, or the results file of a pair, as what `report` draws of a pair.

    Without class counts `classes` is NaN. A fault is a ValueError: where it is, and the remedy.
    """
    file = Path(file)
    labels, kind = {role: f"{role} task" for role in report.ROLES}, "zero_shot"
    try:
        if file.suffix.lower() == ".json":
            record = results.read_pair(file)
            labels, kind = record["labels"], record["normalisation"]
            curves = record["curves"]  # the schema has checked the rest
            if min(min(curves[role]["loss"]) for role in report.ROLES) <= 0:
                raise ValueError(f"a loss is 0, and the curve is one of logarithms; {REMEDY}")
        else:
            curves = check(_rows_of_text(file.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError:
        raise ValueError(f"{file}: the file is not UTF-8; save it as CSV in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read, {error.strerror}; give a file's path") from error
    except ValueError as error:
        told = str(error).replace(f"{file} ", "", 1).replace(results.REBUILD, REMEDY)
        raise ValueError(f"{file}: {told}") from error
    labels = {"supported": supported or labels["supported"],
              "patching": patching or labels["patching"]}  # fmt: skip
    pair = {"normalisation": normalisation or kind, "labels": labels, "curves": curves}
    if pair["normalisation"] == "log_classes" and "log_classes" not in kinds(pair):
        raise ValueError(f"{file}: log_classes needs the columns supported_classes and "
                         "patching_classes; add them, or choose another normalisation")  # fmt: skip
    report.normalised(pair)  # refuses a normalisation that does not exist or does not fit
    return pair


def kinds(pair: report.Pair) -> list[str]:
    """Return the normalisations that a pair's curves allow."""
    allowed = []
    for kind in report.AXES:
        with contextlib.suppress(ValueError):  # no class counts, or a loss that is constant
            report.normalised(pair, kind)
            allowed.append(kind)
    return allowed


def check(rows: Iterable[Row]) -> dict[str, Any]:
    """Return rows of numbers as a pair's curves, or refuse the first that cannot be one."""
    alphas: list[float] = []
    last = -math.inf
    curves: dict[str, Any] = {role: {"loss": [], "accuracy": []} for role in report.ROLES}
    for where, row in rows:
        if not 0 <= (alpha := row["alpha"]) <= 1:
            raise ValueError(f"{where}: alpha is {alpha:g}; it goes from 0 (zero-shot) to 1 "
                             "(fine-tuned), so divide it by its range")  # fmt: skip
        if not alpha > last:
            raise ValueError(f"{where}: alpha is {alpha:g} after {last:g}; sort the rows by alpha, "
                             "and keep one of each")  # fmt: skip
        if not alphas and alpha:
            raise ValueError(f"{where}: the first alpha is {alpha:g}; add the zero-shot end, 0")
        alphas.append(last := alpha)
        for role, curve in curves.items():
            loss, accuracy = row[f"{role}_loss"], row[f"{role}_accuracy"]
            if not 0 < loss < math.inf:
                raise ValueError(f"{where}: {role}_loss is {loss:g}; the curve between samples is "
                                 "one of logarithms, so give a mean above 0, in nats")  # fmt: skip
            if not 0 <= accuracy <= 1:
                raise ValueError(f"{where}: {role}_accuracy is {accuracy:g}; give a fraction from "
                                 "0 to 1, so divide per cent by 100")  # fmt: skip
            classes = row.get(f"{role}_classes", math.nan)
            other = abs(curve.setdefault("classes", classes) - classes)  # NaN where unknown
            if classes < 2 or classes % 1 > 0 or other > 0:
                raise ValueError(f"{where}: {role}_classes is {classes:g}; give one whole number "
                                 "above 1, the same in each row")  # fmt: skip
            curve["loss"].append(loss)
            curve["accuracy"].append(accuracy)
    if len(alphas) < POINTS:
        raise ValueError(f"there are {len(alphas)} alphas; a quintic needs {POINTS}, so add some")
    if last < 1:
        raise ValueError(f"the last alpha is {last:g}; add the fine-tuned end, 1")
    return {"alphas": alphas, **curves}


def _rows_of_text(text: str) -> Iterator[Row]:
    rows = [(f"line {number}", [*map(str.strip, *csv.reader([line], skipinitialspace=True))])
            for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1)
            if not line.startswith("#")]  # fmt: skip
    lines = [(where, cells) for where, cells in rows if any(cells)]
    where, header = lines[0] if lines else ("line 1", [])
    if len(header) == 1:
        raise ValueError(f"{where} has one column, '{header[0]}'; separate columns by commas, not "
                         "semicolons or tabs, and write decimals with points")  # fmt: skip
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(f"{where} lacks {', '.join(missing)}; the header names "
                         f"{', '.join(COLUMNS)}, in any order")  # fmt: skip
    used = [*COLUMNS, *(f"{role}_classes" for role in report.ROLES)]
    for where, cells in lines[1:]:
        if len(cells) != len(header):
            raise ValueError(f"{where} has {len(cells)} fields, the header {len(header)}; write "
                             "decimals with points, not commas, and every field")  # fmt: skip
        row = {name: cell for name, cell in zip(header, cells, strict=True) if name in used}
        for name, cell in row.items():
            if not NUMBER.fullmatch(cell):
                raise ValueError(f"{where}: {name} is '{cell}'; give a plain number with a decimal "
                                 "point, such as 0.05")  # fmt: skip
        yield where, {name: float(cell) for name, cell in row.items()}


def stand_alone(notebook: nbformat.NotebookNode) -> str:
    """Return an executed notebook as one HTML file that needs no other."""
    marked = MarkdownIt("commonmark", {"html": True})
    parts, code = [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(marked.render(cell.source))
            continue
        if "remove-input" not in cell.metadata.get("tags", []):
            code.append(html.escape(cell.source))
        for data in (output.data for output in cell.outputs if "data" in output):
            if figure := data.get("image/svg+xml"):
                alt = html.escape(cell.metadata.mystnb.image.alt)
                drawing = figure[figure.index("<svg") :]
                parts.append(f'<figure role="img" aria-label="{alt}">{drawing}</figure>')
            elif text := data.get("text/markdown"):
                parts.append(marked.render(text))
            else:
                parts.append(data.get("text/html", ""))
    parts.append(f"<details><summary>Code</summary><pre>{'<hr>'.join(code)}</pre></details>")
    title = html.escape(notebook.cells[0].source.partition("\n")[0].removeprefix("# "))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (f'<!doctype html><html lang="en">{head}<title>{title}</title><style>{STYLE}</style>'
            f"<main>{''.join(parts)}</main></html>\n")  # fmt: skip
