"""Notebooks become pages: run by papermill, checked, made byte-stable, moved into place."""

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
from experiment.profiles import refuse_unknown
from experiment.progress import bar
from experiment.run import OF_NO_RUN, Run, how
from paintlib.files import replacing


def page(run: Run, source: Path | str, target: Path | str, *,
         parameters: Sequence[tuple[str, str]] = (), title: str | None = None) -> None:  # fmt: skip
    """Run the notebook `source` in the folder of `target`; move it there if nothing went wrong.

    The same run gives the same bytes: cell ids are numbered, times are dropped. Where a cell
    raises, or writes a warning into the page, the traceback and the half-run notebook are left in
    the run's folder `failed`.
    """
    target = Path(target)
    given = {name: int(v) if v.isdecimal() else v for name, v in parameters}
    notebook = nbformat.reads(myst.read(str(source)), as_version=4)
    first = notebook.cells[0]
    if title:
        first.source = re.sub(r"^# .*$", f"# {title}", first.source, count=1, flags=re.M)
    if run.unusual:
        first.source += "\n\n" + "".join(f"> **This run: {said}.**\n" for said in how(run.unusual))
    target.parent.mkdir(parents=True, exist_ok=True)
    report = run.folder / "failed" / f"{target.stem}.txt"
    for old in (report, report.with_suffix(".ipynb")):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        done, problem = Path(folder, "done.ipynb"), None
        refuse_unknown(given, papermill.inspect_notebook(notebook), f"{source} has no parameter")
        try:
            # kernels that start at once race for free TCP ports, so each has its own sockets
            own = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/k"}})
            papermill.execute_notebook(notebook, done, given, cwd=target.parent, progress_bar=False,
                                       config=own, shutdown_kernel="immediate")  # fmt: skip
        except PapermillExecutionError as error:
            problem = str(error)
        executed = nbformat.read(done, as_version=4)
        if problem := problem or _blemish(executed):
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(f"{source} {given}\n{problem}\n", encoding="utf-8")
            shutil.copy(done, report.with_suffix(".ipynb"))
            last = problem.strip().splitlines()[-1]
            raise RuntimeError(f"{source} failed: {last}\nThe traceback is in {report}")
    _make_stable(executed)
    nbformat.validate(executed)
    with replacing(target) as part:
        part.write_text(nbformat.writes(executed), encoding="utf-8")


def pair(run: Run, patching: str) -> None:
    """Run the page of each pair of a patching task."""
    for supported in bar(run.profile.supported, f"pages of {patching}"):
        pair = (("supported", supported), ("patching", patching))
        title = " + ".join(run.profile.label(task) for _, task in pair)
        target = run.book / "pairs" / f"{supported}-{patching}.ipynb"
        given = (("results", f"../../results/{run.name}"), *pair)
        page(run, "notebooks/pair.md", target, parameters=given, title=title)


def assemble(run: Run) -> None:
    """Copy the prose of the book beside the executed pages of a run, and say whose book it is.

    The figure of the claims becomes `headline.svg` of the run's results, and the figure of a cell
    with the tag `picture-NAME` the file of that name, which the prose shows.
    """
    prose, target = Path("book"), run.book
    drawn = figures(target / "results/claims.ipynb")
    drawn["headline"] = next(iter(drawn.values()))
    drawn |= figures(target / "results/pictures.ipynb")
    for picture, svg in drawn.items():
        if picture.isdecimal():  # a figure that no prose shows
            continue
        with replacing(run.results / f"{picture}.svg") as part:
            part.write_text(svg, encoding="utf-8")
    executed = shutil.ignore_patterns("_build", "pairs", "results", "__pycache__", ".ipynb_*")
    shutil.copytree(prose, target, dirs_exist_ok=True, ignore=executed)  # links become files
    for name in (*OF_NO_RUN, "twins", "joint"):  # the reference's; the last two of a run without
        kept = Path("results", f"{name}.ipynb")
        if name in OF_NO_RUN or not (target / kept).exists():
            shutil.copy(prose / kept, target / kept)
    config = yaml.safe_load((prose / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["config"]["html_theme_options"]["announcement"] = _announcement(run)
    config["sphinx"]["config"]["paintlib_results"] = f"../results/{run.name}"
    (target / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True))
    for page in (*target.glob("*.md"), *target.glob("chapters/*.md")):
        text = page.read_text("utf-8").replace("../results/micro/", f"../results/{run.name}/")
        page.write_text(text, "utf-8")


def figures(page: Path) -> dict[str, str]:
    """Return the SVG of each figure of a page, by the tag of its cell or else by its number."""
    found: dict[str, str] = {}
    for cell in nbformat.read(page, as_version=4).cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("picture-")]
        for output in cell.get("outputs", []):
            if svg := output.get("data", {}).get("image/svg+xml"):
                found[tags[0] if tags else str(len(found))] = svg
    return found


def _announcement(run: Run) -> str:
    limit, weights = run.profile.limit, run.choices["weights"]
    if limit or weights == "random":
        return (
            f"DRY RUN {run.name}: {limit or 'all'} images of each split, weights {weights}. "
            "It shows that every step works; no number in this book means anything."
        )
    pairs = len(run.profile.supported) * len(run.profile.patching)
    said = "; ".join([run.profile.purpose, f"pairs: {pairs}", *how(run.unusual)])
    return f"This is the book of the run {run.name}: {said}."


def reference(run: Run) -> None:
    """Make the committed results and pages anew from a finished run of profile micro at seed 0."""
    if run.name != "micro":
        raise ValueError(f"the reference is the run micro, not {run.name}; leave out its settings")
    kept, book = Path("results", run.name), Path("book")
    kinds = ("pairs", "pictures", "predictions", "joint")
    copies = {run.results / kind: kept / kind for kind in kinds}
    copies[run.folder / "complete"] = kept / "evaluations"
    copies |= {run.book / kind: book / kind for kind in ("pairs", "results")}
    for source, target in copies.items():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    for file in (f for f in run.results.iterdir() if f.is_file()):
        shutil.copy(file, kept)
    where = [("results", f"../../results/{run.name}")]
    for source in sorted(Path("notebooks").glob("*.md")):  # these say whose evidence they show
        text = source.read_text(encoding="utf-8")
        if source.stem in OF_NO_RUN or re.search("^from experiment.evidence", text, re.M):
            page(run, source, book / "results" / f"{source.stem}.ipynb", parameters=where)


def _blemish(notebook: NotebookNode) -> str | None:
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return "\n".join(output.traceback)
            if output.get("name") == "stderr":
                return f"cell {number} wrote a warning into the page:\n{output.text}"
    return None


def _make_stable(notebook: NotebookNode) -> None:
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
