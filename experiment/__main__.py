"""The steps of a run, as the Snakefile calls them; `make book` runs all of them in order."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiment.run import Run

# torch takes seconds to import, so each step imports its own module: module, function, help
STEPS = {
    "render": ("drawing", "render", "draw the twins"),
    "caption": ("drawing", "caption", "draw the captioned images"),
    "pretrain": ("pretraining", "pretrain", "pre-train CLIP"),
    "check": ("real", "check_inputs", "look for all data sets and weights before anything starts"),
    "decode": ("real", "decode", "decode a real data set into the cache"),
    "zero_shot": ("real", "zero_shot", "write the weights of a public CLIP"),
    "head": ("real", "head", "write a zero-shot head"),
    "finetune": ("finetuning", "finetune", "fine-tune on a patching task"),
    "baseline": ("baseline", "score_baseline", "score the zero-shot weights on a supported task"),
    "solve": ("solving", "solve", "evaluate the path to a patching task and solve its pairs"),
    "complete": ("solving", "complete", "the same under every normalisation"),
    "describe": ("describing", "describe", "write run.json and the shown pictures"),
    "provenance": ("describing", "record_provenance", "write commit, versions and seconds"),
}
_TASK = {"decode", "head", "finetune", "baseline", "solve", "complete"}


def main(arguments: list[str] | None = None) -> int:
    """Run one step; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except KeyboardInterrupt:
        print("paintlib: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        print(f"paintlib: {error}", file=sys.stderr)
        return 1


def step(name: str) -> Callable[..., Any]:
    """Return the function of a step."""
    module, function, _ = STEPS[name]
    found: Callable[..., Any] = getattr(
        importlib.import_module(f"experiment.steps.{module}"), function
    )
    return found


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default="micro", help="smoke, micro (default) or paper")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--limit", type=int, default=0, help="paper: images a split, dry run")
    common.add_argument("--tasks", default="", help="some of the profile's tasks: A,B,C")
    common.add_argument("--finetuned", default="own", help="paper: own, hub or a folder")
    parser = argparse.ArgumentParser(prog="python -m experiment", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str, *positional: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(command=command, step=name)
        for argument in positional:
            sub.add_argument(argument)
        return sub

    for name, (_, _, text) in STEPS.items():
        sub = add(name, _step, text, *(["task"] if name in _TASK else []))
        if name in ("check", "decode"):
            sub.add_argument("--data", type=Path, default=Path("data"))
        if name == "decode":
            sub.add_argument("--workers", type=int, default=0)
        if name == "zero_shot":
            sub.add_argument("--weights", default="openai", help="openai, random or a file")
    data = add("data", _data, "list the 13 real data sets, or fetch one")
    data.add_argument("--data", type=Path, default=Path("data"), help="their folder")
    data.add_argument("--fetch", metavar="NAME", help="download this one")
    page = add("page", _page, "run one notebook into a page", "source", "target")
    page.add_argument("--title")
    page.add_argument("--failures", type=Path, default=Path("failed"), help="for tracebacks")
    page.add_argument("-p", dest="parameters", nargs=2, action="append", default=[],
                      metavar=("NAME", "VALUE"))  # fmt: skip
    add("assemble", _assemble, "copy the prose beside the pages of a run")
    add("reference", _reference, "make the committed results and pages from this run")
    return parser


def _run(options: argparse.Namespace) -> Run:
    return Run.of(options.profile, options.seed, limit=options.limit, tasks=options.tasks,
                  finetuned=options.finetuned)  # fmt: skip


def _step(options: argparse.Namespace) -> None:
    given = [getattr(options, name) for name in ("task", "data", "workers", "weights")
             if hasattr(options, name)]  # fmt: skip
    step(options.step)(_run(options), *given)


def _data(options: argparse.Namespace) -> None:
    from experiment.real import fetch

    fetch.run(options.data, options.fetch)


def _page(options: argparse.Namespace) -> None:
    from experiment import pages

    parameters = {k: int(v) if v.isdecimal() else v for k, v in options.parameters}
    pages.execute(Path(options.source), Path(options.target), parameters,
                  failures=options.failures, title=options.title)  # fmt: skip


def _assemble(options: argparse.Namespace) -> None:
    from experiment import pages

    pages.assemble(_run(options), Path("book"))


def _reference(options: argparse.Namespace) -> None:
    from experiment import pages

    pages.make_reference(_run(options), Path("book"), Path("notebooks"))


def cli() -> None:
    """Run the command `python -m experiment`."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
