"""The steps of a run, as the Snakefile calls them; `make book` runs all of them in order."""

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from experiment import locks
from experiment.run import Run

# torch takes seconds to import, so each command imports its own module: where it is, what it does
COMMANDS = {
    "render": ("twins.drawing", "draw the twins"),
    "caption": ("twins.drawing", "draw the captioned images"),
    "pretrain": ("twins.small_clip", "pre-train CLIP"),
    "check": ("steps.real", "look for all data sets and weights before anything starts"),
    "estimate": ("cost", "print what a run on real data sets takes, by a batch timed now"),
    "decode": ("steps.real", "TASK: decode a real data set into the cache"),
    "zero_shot": ("steps.real", "write the weights of a public CLIP"),
    "head": ("steps.real", "TASK: write a zero-shot head"),
    "finetune": ("steps.finetuning", "TASK: fine-tune on a patching task"),
    "verify": ("steps.real", "heads|fine_tuned TASK: compare with published accuracies"),
    "baseline": ("steps.baseline", "TASK ...: score the zero-shot weights on supported tasks"),
    "solve": ("steps.solving", "TASK: evaluate the path to a patching task, solve its pairs"),
    "join": ("steps.joining", "NUMBER: search two patches of one trio of tasks at once"),
    "measure": ("evidence.measuring", "TASK: measure a path as the evidence needs it"),
    "resample": ("evidence.resampling", "TASK: search samples of the images whose truth is known"),
    "complete": ("steps.solving", "TASK: the same under every normalisation"),
    "keep": ("evidence.archive", "add what this run says to the committed evidence"),
    "describe": ("steps.describing", "write run.json and the shown pictures"),
    "provenance": ("steps.provenance", "write commit, versions and seconds"),
    "page": ("pages", "NOTEBOOK TARGET: run one notebook into a page"),
    "curves": ("curves", "FILE: make a page of curves of your own, a CSV or a results file"),
    "pair": ("pages", "TASK: run the pages of the pairs of a patching task"),
    "assemble": ("pages", "copy the prose beside the pages of a run"),
    "reference": ("pages", "make the committed results and pages from this run"),
    "data": ("real.fetch", "list the 13 real data sets, or fetch one"),
}
BEFORE_PAIRS = ("render", "caption", "pretrain", "decode", "zero_shot", "head", "verify",
                "finetune", "baseline", "solve")  # fmt: skip

CHOICES = ("limit", "sample", "tasks", "finetuned", "choose_on", "accept", "variants")  # of a run


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = vars(_parser().parse_intermixed_args(arguments))
    command, positional = options.pop("command"), options.pop("arguments")
    chosen = {name: options.pop(name) for name in ("profile", "seed", *CHOICES)}
    status, needed, what = 1, False, " ".join([command, *positional])
    try:
        locks.end_with_run()
        run = Run.of(**chosen)
        # the others go on without a patching task, but not without what all pairs need, nor where
        # `verify`, which is told a kind too, doubts labels, prompts or recipe: they share these
        needed = command in BEFORE_PAIRS and not set() < set(positional) < set(run.profile.patching)
        given = {name: value for name, value in options.items() if value is not None}
        call = find(command)
        try:
            inspect.signature(call).bind(run, *positional, **given)
        except TypeError as error:
            raise ValueError(f"{command}: {error}; {COMMANDS[command][1]}") from error
        call(run, *positional, **given)
        status = 0
    except KeyboardInterrupt:
        print("paintlib: stopped; the same command goes on from here", file=sys.stderr)
        status = 130
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        print(f"paintlib: {what}: {error}; give a file that exists", file=sys.stderr)
    except OSError as error:
        remedy = "mend that (room, rights), and the same command goes on from here"
        print(f"paintlib: {what}: {error}; {remedy}", file=sys.stderr)
    except (ValueError, RuntimeError) as error:
        print(f"paintlib: {error}", file=sys.stderr)
    finally:
        if status == 1 and needed:
            locks.end_run(f"no pair can be made without {what}")
    return status


def find(command: str) -> Any:
    """Return the function of a command: it takes a run, then the command's own arguments."""
    return getattr(importlib.import_module(f"experiment.{COMMANDS[command][0]}"), command)


def _data(said: str) -> Path:
    """Return a folder, or `hub.ROOT` where the word itself was said."""
    path = Path(said).expanduser()
    return path if said == "hub" else path.absolute() if path == Path("hub") else path


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m experiment",
        description=f"{__doc__}\n\ncommands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    parser.add_argument("--profile", default="micro", help="smoke, micro (default) or paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="paper: images a split, dry run")
    parser.add_argument("--sample", type=int, default=0, help="paper: images a split, a sample")
    parser.add_argument("--tasks", default="", help="some of the profile's tasks: A,B,C")
    parser.add_argument("--finetuned", default="own", help="paper: own, hub or a folder")
    parser.add_argument("--choose-on", default="", help="what alpha is chosen on: "
                        "validation, halves or test")  # fmt: skip
    parser.add_argument("--accept", default="", help="tasks whose deviations are known: A,B")
    parser.add_argument("--variants", default="", help="paper: gtsrb-tracks, cifar100-spaces")
    parser.add_argument("--data", type=_data, help="the folder of the real data sets, or hub")
    parser.add_argument("--fetch", dest="name", metavar="NAME", help="of `data`: download this one")
    parser.add_argument("--workers", type=int, help="of `decode`: processes")
    parser.add_argument("--weights", help="of `zero_shot`: openai, random or a file")
    parser.add_argument("--images", type=int, help="of `measure`: test images of each task")
    parser.add_argument("--out", type=Path, help="of `curves`: the folder of the page")
    parser.add_argument("--title", help="of `page`: its heading")
    parser.add_argument("-p", dest="parameters", nargs=2, action="append",
                        metavar=("NAME", "VALUE"), help="of `page` and `curves`")  # fmt: skip
    return parser


if __name__ == "__main__":
    for name in ("timm", "transformers"):  # seconds to import, for towers that no step builds
        sys.modules[name] = None  # type: ignore[assignment]
    sys.exit(main())
