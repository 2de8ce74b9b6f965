"""Command line: `python -m paintlib book` runs a profile; the other commands are its steps."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from paintlib import warm

if TYPE_CHECKING:
    from experiment.run import Run

# torch takes seconds to import, so each command imports what it needs


def main(arguments: list[str] | None = None) -> int:
    """Run one command, in a fork of the warm process where there is one; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["kernel"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # its page ends it
    try:
        status = warm.forward(arguments)
    except KeyboardInterrupt:
        status = _stopped()
    return _execute(arguments) if status is None else status


def _execute(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except KeyboardInterrupt:
        return _stopped()
    except (ValueError, RuntimeError) as error:
        print(f"paintlib: {error}", file=sys.stderr)
        return 1


def _stopped() -> int:
    print("paintlib: stopped; the same command goes on from here", file=sys.stderr)
    return 130


def _parser() -> argparse.ArgumentParser:
    # a variable, so that the data sets may move without any step being run again; read here and
    # not at import: a fork of the warm process has the environment of its asker only by now
    folder = os.environ.get("PAINTLIB_DATA", "data")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default="micro", help="smoke, micro (default) or paper")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--limit", type=_number, default=0, help="paper: images a split, dry run")
    common.add_argument("--tasks", default="", help="some of the profile's tasks: A,B,C")
    common.add_argument("--finetuned", default="own", help="paper: own, hub or a folder")
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
    book.add_argument("--weights", default="", help="paper: openai, random or a file")
    book.add_argument("--data", default=folder, help="paper: the folder of the data sets")
    data = add("data", _data, "list the 13 real data sets, or fetch one")
    data.add_argument("--data", default=folder, help="the folder of the data sets")
    data.add_argument("--fetch", metavar="NAME", help="download this one")
    decode = add("decode", _decode, "decode a real data set into the cache", "task")
    decode.add_argument("--workers", type=int, default=0)
    decode.add_argument("--data", default=folder)
    zero_shot = add("zero_shot", _zero_shot, "write the weights of a public CLIP")
    zero_shot.add_argument("--weights", default="openai")
    add("head", lambda o: _steps().head(_run(o), o.task), "write a zero-shot head", "task")
    add("render", lambda o: _steps().render(_run(o)), "draw the tasks")
    add("caption", lambda o: _steps().caption(_run(o)), "draw the captioned images")
    add("pretrain", lambda o: _steps().pretrain(_run(o)), "pre-train CLIP")
    add(
        "finetune",
        lambda o: _steps().finetune(_run(o), o.task),
        "fine-tune on a patching task",
        "task",
    )
    add(
        "baseline",
        lambda o: _steps().score_baseline(_run(o), o.task),
        "score the zero-shot weights on a supported task",
        "task",
    )
    add(
        "curves",
        lambda o: _steps().sample_curves(_run(o), o.task),
        "sample losses on a path",
        "task",
    )
    add("describe", lambda o: _steps().describe(_run(o)), "write run.json")
    page = add("page", _page, "run one notebook into a page", "source", "target")
    page.add_argument("--title")
    page.add_argument("--failures", default="failed", help="folder for tracebacks")
    page.add_argument("-p", dest="parameters", nargs=2, action="append", default=[],
                      metavar=("NAME", "VALUE"))  # fmt: skip
    page.add_argument("--inputs", nargs="+", default=[], metavar="FILE",
                      help="what the page is made from; it keeps their digests")  # fmt: skip
    add(
        "serve",
        lambda o: warm.serve(o.address, int(o.parent), _execute),
        "fork for each command of a run",
        "address",
        "parent",
    )
    add("kernel", _kernel, "run the kernel of a page", "connection")
    add("check", _check, "list the pages of the book whose inputs have changed since")
    add("status", _status, "collect times and versions for the status page")
    add("assemble", _assemble, "copy the prose beside the pages of a run", "target")
    return parser


def _run(options: argparse.Namespace) -> Run:
    from experiment.run import Run

    return Run.of(
        options.profile,
        options.seed,
        limit=options.limit,
        tasks=options.tasks,
        finetuned=options.finetuned,
    )


def _steps() -> ModuleType:
    from paintlib import steps

    return steps


def _number(text: str) -> int:
    return int(text or 0)  # make passes an empty LIMIT on


def _book(options: argparse.Namespace) -> int:
    from paintlib import workflow

    return workflow.book(_run(options), options.cores, Path(options.data), options.weights)


def _data(options: argparse.Namespace) -> None:
    from paintlib import data

    data.run(Path(options.data), options.fetch)


def _decode(options: argparse.Namespace) -> None:
    _steps().decode(_run(options), options.task, Path(options.data), options.workers)


def _zero_shot(options: argparse.Namespace) -> None:
    _steps().zero_shot(_run(options), options.weights)


def _page(options: argparse.Namespace) -> None:
    from paintlib import pages

    pages.execute(
        Path(options.source),
        Path(options.target),
        {name: _literal(value) for name, value in options.parameters},
        failures=Path(options.failures),
        title=options.title,
        inputs=options.inputs,
    )


def _kernel(options: argparse.Namespace) -> None:
    from ipykernel import kernelapp

    kernelapp.launch_new_instance(argv=["-f", options.connection])


def _check(options: argparse.Namespace) -> int:
    from paintlib import freshness

    book = _run(options).book
    pages = {file: freshness.read(file) for file in freshness.pages(book)}
    if not pages:
        raise ValueError(f"{book} has no page; `make book` makes them")
    stale = {file: page for file, page in pages.items() if page.stale}
    for file, page in stale.items():
        print(f"{file}: {page}")
    print(f"{len(stale)} of {len(pages)} pages are stale" + ("; `make book`" if stale else ""))
    return int(bool(stale))


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
    pages.assemble(
        Path("book"),
        Path(options.target),
        run.results,
        pairs,
        _announcement(run),
        twins=not run.profile.real,
    )


def _announcement(run: Run) -> str:
    limit, weights = run.profile.limit, run.choices["weights"]
    if not limit and weights != "random":
        return f"This is the book of the run {run.name}: {run.profile.purpose}."
    return (
        f"DRY RUN {run.name}: {limit or 'all'} images of each split, weights {weights}. "
        "It shows that every step works; no number in this book means anything."
    )


def cli() -> None:
    """Run the command `paintlib`."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
