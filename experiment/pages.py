"""Notebooks become pages: run by papermill, checked, made byte-stable, moved into place."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
import papermill
import yaml
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from experiment import myst
from experiment.progress import bar
from experiment.run import Run
from paintlib.files import replacing


def page(run: Run, source: Path | str, target: Path | str, *,
         parameters: Sequence[tuple[str, str]] = (), title: str | None = None) -> None:  # fmt: skip
    """Run the notebook `source` and move it to `target` if nothing went wrong.

    It runs in the folder of `target`, as it will when somebody opens it. The same run gives the
    same bytes: cell ids are numbered, times are dropped. Where a cell raises, or writes a warning
    into the page, the traceback and the half-run notebook are left in the run's folder `failed`.
    """
    target, failures = Path(target), run.folder / "failed"
    given = {name: int(v) if v.isdecimal() else v for name, v in parameters}
    notebook = nbformat.reads(myst.read(str(source)), as_version=4)
    if title:
        first = notebook.cells[0]
        first.source = re.sub(r"^# .*$", f"# {title}", first.source, count=1, flags=re.M)
    if run.unusual:
        from experiment.report import how

        notebook.cells[0].source += "\n\n" + "".join(
            f"> **{said}.**\n" for said in how(run.unusual)
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    report = failures / f"{target.stem}.txt"
    for old in (report, report.with_suffix(".ipynb")):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draft, done = Path(folder, "draft.ipynb"), Path(folder, "done.ipynb")
        nbformat.write(notebook, draft)
        known = papermill.inspect_notebook(draft)
        if unknown := sorted(given.keys() - known.keys()):
            raise ValueError(
                f"{source} has no parameter {unknown[0]!r}; it takes {', '.join(known)}"
            )
        problem = None
        try:
            # kernels that start at once race for free TCP ports, so each has its own sockets
            own = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/k"}})
            papermill.execute_notebook(draft, done, given, cwd=target.parent, progress_bar=False,
                                       config=own, shutdown_kernel="immediate")  # fmt: skip
        except PapermillExecutionError as error:
            problem = str(error)
        executed = nbformat.read(done, as_version=4)
        if problem := problem or _blemish(executed):
            failures.mkdir(parents=True, exist_ok=True)
            report.write_text(f"{source} {given}\n{problem}\n", encoding="utf-8")
            shutil.copy(done, report.with_suffix(".ipynb"))
            last = problem.strip().splitlines()[-1]
            raise RuntimeError(f"{source} failed: {last}\nThe traceback is in {report}")
    page = _stable(executed)
    nbformat.validate(page)
    with replacing(target) as part:
        part.write_text(nbformat.writes(page), encoding="utf-8")


def pair(run: Run, patching: str) -> None:
    """Run the page of each pair of a patching task."""
    for supported in bar(run.profile.supported, f"pages of {patching}"):
        pair = (("supported", supported), ("patching", patching))
        title = " + ".join(run.profile.label(task) for _, task in pair)
        target = run.book / "pairs" / f"{supported}-{patching}.ipynb"
        given = (("results", f"../../results/{run.name}"), *pair)
        page(run, "notebooks/pair.md", target, parameters=given, title=title)


def assemble(run: Run, prose: Path = Path("book")) -> None:
    """Copy the prose of the book beside the executed pages of a run, and say whose book it is.

    The figure of the claims becomes `headline.svg` of the run's results, and the figure of a cell
    with the tag `picture-NAME` the file of that name, which the prose shows.
    """
    target = run.book
    drawn = _drawn(target / "results/claims.ipynb")
    drawn["headline"] = next(iter(drawn.values()))
    drawn |= _drawn(target / "results/pictures.ipynb")
    for picture, svg in drawn.items():
        if picture.isdecimal():  # a figure that no prose shows
            continue
        with replacing(run.results / f"{picture}.svg") as part:
            part.write_text(svg, encoding="utf-8")
    executed = shutil.ignore_patterns("_build", "pairs", "results", "__pycache__", ".ipynb_*")
    shutil.copytree(prose, target, dirs_exist_ok=True, ignore=executed)  # links become files
    for name in ("twins.ipynb", "joint.ipynb"):
        if not (target / "results" / name).exists():  # a run that has none shows the reference's
            shutil.copy(prose / "results" / name, target / "results")
    config = yaml.safe_load((prose / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["config"]["html_theme_options"]["announcement"] = _announcement(run)
    config["sphinx"]["config"]["paintlib_results"] = f"../results/{run.name}"
    (target / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True))
    for page in (*target.glob("*.md"), *target.glob("chapters/*.md")):
        text = page.read_text(encoding="utf-8")
        text = text.replace("../results/micro/", f"../results/{run.name}/")
        page.write_text(text, encoding="utf-8")


def _drawn(page: Path) -> dict[str, str]:
    """Return the SVG of each figure of a page, by the tag of its cell or else by its number."""
    figures: dict[str, str] = {}
    for cell in nbformat.read(page, as_version=4).cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("picture-")]
        for output in cell.get("outputs", []):
            if svg := output.get("data", {}).get("image/svg+xml"):
                figures[tags[0] if tags else str(len(figures))] = svg
    return figures


def _announcement(run: Run) -> str:
    limit, weights = run.profile.limit, run.choices["weights"]
    if limit or weights == "random":
        return (
            f"DRY RUN {run.name}: {limit or 'all'} images of each split, weights {weights}. "
            "It shows that every step works; no number in this book means anything."
        )
    from experiment.report import how  # imports matplotlib

    said = "; ".join([run.profile.purpose, *how(run.unusual)])
    return f"This is the book of the run {run.name}: {said}."


def reference(run: Run) -> None:
    """Make the committed results and pages anew from a finished run of profile micro at seed 0."""
    if run.name != "micro":
        raise ValueError(f"the reference is the run micro, not {run.name}; leave out its settings")
    kept, book = Path("results", run.name), Path("book")
    copies = {
        run.results / kind: kept / kind for kind in ("pairs", "pictures", "predictions", "joint")
    }
    copies[run.folder / "complete"] = kept / "evaluations"
    copies |= {run.book / kind: book / kind for kind in ("pairs", "results")}
    for source, target in copies.items():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    for file in (f for f in run.results.iterdir() if f.is_file()):
        shutil.copy(file, kept)
    where = [("results", f"../../results/{run.name}")]
    for source in sorted(Path("notebooks").glob("*.md")):  # these say whose evidence they show
        if re.search("^from experiment.evidence", source.read_text(encoding="utf-8"), re.M):
            page(run, source, book / "results" / f"{source.stem}.ipynb", parameters=where)


def _blemish(notebook: NotebookNode) -> str | None:
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return "\n".join(output.traceback)
            if output.get("name") == "stderr":
                return f"cell {number} wrote a warning into the page:\n{output.text}"
    return None


def _stable(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata = NotebookNode(kernelspec=myst.KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = list(cell.metadata.get("tags", []))
        if "injected-parameters" in tags:
            tags.append("remove-input")
        keep = {k: v for k, v in cell.metadata.items() if k == "mystnb"}
        cell.metadata = NotebookNode({**keep, **({"tags": tags} if tags else {})})
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = NotebookNode(sorted(output.data.items()))
    return notebook
