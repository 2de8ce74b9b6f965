"""Command line: `python -m paintlib book` runs a profile; the other commands are its steps."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paintlib.experiment import Run

# torch takes seconds to import, so each command imports what it needs


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except KeyboardInterrupt:
        print("paintlib: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        print(f"paintlib: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default="micro", help="smoke or micro (default)")
    common.add_argument("--seed", type=int, default=0)
    parser = argparse.ArgumentParser(prog="python -m paintlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str, *positional: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(command=command)
        for argument in positional:
            sub.add_argument(argument)
        return sub

    book = add("book", _book, "the whole run, from training to the built book")
    book.add_argument("--cores", type=int, default=2)
    add("render", lambda o: _run(o).render(), "draw the tasks")
    add("pretrain", lambda o: _run(o).pretrain(), "pre-train CLIP")
    add("finetune", lambda o: _run(o).finetune(o.task), "fine-tune on a patching task", "task")
    add("curves", lambda o: _run(o).sample_curves(o.task), "sample losses on a path", "task")
    add("describe", lambda o: _run(o).describe(), "write run.json")
    page = add("page", _page, "run one notebook into a page", "source", "target")
    page.add_argument("--title")
    page.add_argument("--failures", default="failed", help="folder for tracebacks")
    page.add_argument("-p", dest="parameters", nargs=2, action="append", default=[],
                      metavar=("NAME", "VALUE"))  # fmt: skip
    add("status", _status, "collect times and versions for the status page")
    add("assemble", _assemble, "copy the prose beside the pages of a run", "target")
    return parser


def _run(options: argparse.Namespace) -> Run:
    from paintlib.experiment import Run

    return Run.of(options.profile, options.seed)


def _book(options: argparse.Namespace) -> int:
    from paintlib import workflow

    return workflow.book(_run(options), options.cores)


def _page(options: argparse.Namespace) -> None:
    from paintlib import pages

    pages.execute(
        Path(options.source),
        Path(options.target),
        {name: _literal(value) for name, value in options.parameters},
        failures=Path(options.failures),
        title=options.title,
    )


def _literal(text: str) -> object:
    return int(text) if text.isdecimal() else text


def _status(options: argparse.Namespace) -> None:
    run = _run(options)
    rows = []
    for file in sorted((run.artifacts / "benchmarks").rglob("*.tsv")):
        with file.open(encoding="utf-8") as stream:
            seconds = float(next(csv.DictReader(stream, delimiter="\t"))["s"])
        step, _, name = file.stem.partition(".")
        rows.append((step, name, f"{seconds:.1f}"))
    run.results.mkdir(parents=True, exist_ok=True)
    _write_csv(run.results / "timings.csv", ("step", "name", "seconds"), rows)
    packages = ("torch", "open_clip_torch", "numpy", "scipy", "matplotlib", "papermill",
                "jupytext", "jupyter-book", "nbval", "snakemake")  # fmt: skip
    versions = [("python", sys.version.split()[0])]
    versions += [(package, importlib.metadata.version(package)) for package in packages]
    _write_csv(run.results / "versions.csv", ("package", "version"), versions)


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _assemble(options: argparse.Namespace) -> None:
    from paintlib import pages

    run = _run(options)
    pairs = [f"{s}-{p}" for s in run.profile.supported for p in run.profile.patching]
    pages.assemble(Path("book"), Path(options.target), run.results, pairs)


if __name__ == "__main__":
    sys.exit(main())
