"""The command line: `paintlib patch` and `paintlib init`."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

__all__ = ["main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 with an answer, 1 without, 2 on misuse."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except KeyboardInterrupt:
        said = "stopped; the same command goes on from the store"
    except Exception as error:  # the user's own code may raise anything
        if options.traceback:
            raise
        said = " ".join(str(error).split()) or repr(error)
        if not isinstance(error, ValueError | OSError):  # no message of the library
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "site-packages" not in frame.filename]
            last = (own or frames)[-1]
            place = f"{Path(last.filename).name}, line {last.lineno}; --traceback shows all"
            said = f"{type(error).__name__}: {said} ({place})"
    print(f"paintlib: {said}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="paintlib", description="Patch a model by its losses.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="write an example of the file that --tasks names")
    init.add_argument("file", nargs="?", type=Path, default=Path("tasks.py"))
    init.set_defaults(run=_init, traceback=False)
    about = "choose alpha of (1 - alpha) ZERO_SHOT + alpha FINE_TUNED by the losses of your tasks"
    patch = commands.add_parser("patch", help=about, description=about)
    patch.set_defaults(run=_patch)
    add = patch.add_argument
    add("zero_shot", metavar="ZERO_SHOT", help="a checkpoint, alpha = 0")
    add("fine_tuned", metavar="FINE_TUNED", help="a checkpoint of the same model, alpha = 1")
    add("--tasks", required=True, metavar="FILE:FUNCTION", help="returns a paintlib.patch.Setup")
    add("--except", dest="except_", nargs="+", default=(), metavar="NAME",
        help="tensors that stay as the model has them; patterns as head.*")  # fmt: skip
    add("--only", nargs="+", default=(), metavar="NAME", help="tensors that move, likewise")
    add("--entry", nargs="+", default=[None], metavar="NAME", help="the state dict (of each file)")
    add("--base", help="the checkpoint that two LoRA adapters add to")
    add("--weights", nargs="+", type=float, metavar="W", help="how much each task counts")
    add("--ceiling", action="append", default=[], metavar="TASK=RISE", type=_ceiling,
        help="highest rise of a task's loss (at 95 %%), as keep=0.01")  # fmt: skip
    add("--normalisation", default="zero_shot", help="zero_shot, log_classes, minmax or none")
    add("--solver", default="log_quintic", choices=("log_quintic", "quintic", "grid", "brent"))
    add("--bracket", nargs=2, type=float, default=(0.0, 1.0), metavar=("LOW", "HIGH"))
    add("--step", type=float, default=0.05, help="of grid and quintic")
    add("--max-evals", type=int, default=12, help="of log_quintic and brent")
    add("--store", default="paintlib.npz", help="evaluations, to go on after a kill")
    add("--out", help="the patched weights, a .safetensors file")
    add("--report", help="a folder for the model card")
    add("--json", action="store_true", help="print the answer as JSON")
    add("--dry-run", action="store_true", help="check all that needs no evaluation, and the time")
    add("--traceback", action="store_true", help="where an error came from")
    return top


def _ceiling(said: str) -> tuple[str, float]:
    task, _, rise = said.rpartition("=")
    try:
        return task, float(rise)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{said!r} is no TASK=RISE, as keep=0.01") from None


def _init(options: argparse.Namespace) -> None:
    if options.file.exists():
        raise ValueError(f"{options.file} exists; move it away, or name another file")
    text = Path(__file__).with_name("_template.py").read_text(encoding="utf-8")
    options.file.write_text(text.replace("FILE", options.file.stem), encoding="utf-8")
    module = options.file.with_suffix("")
    command = f"paintlib patch ZERO_SHOT FINE_TUNED --tasks {module}:tasks --dry-run"
    print(f"{options.file} is written; fill it in, then: {command}")


def _patch(options: argparse.Namespace) -> None:
    from paintlib import card, patch  # torch takes seconds to import
    from paintlib.interpolation import WeightPath
    from paintlib.store import Store

    parents = options.zero_shot, options.fine_tuned
    card_file = Path(options.report or "", "README.md")
    written = {"out": options.out, "store": options.store, "report": options.report and card_file}
    for name, file in written.items():
        folders = Path(file).absolute().parents if file else [Path()]
        place = next(folder for folder in folders if folder.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise ValueError(f"--{name}: nothing can be written to {place}; name another folder")
    if options.out:
        _refuse_to_overwrite(Path(options.out), [*parents, options.base or "", options.store])
    if options.report and card_file.exists() and card.TAGS not in card_file.read_text("utf-8"):
        raise ValueError(f"{card_file} is no model card of paintlib; give --report another folder")
    if len(options.entry) > 2:
        raise ValueError(f"--entry has {len(options.entry)} names; give one, or one for each file")
    if options.ceiling and options.solver != "log_quintic":
        raise ValueError(f"--ceiling needs the log_quintic; leave out --solver {options.solver}")
    setup = patch.find_setup(options.tasks)
    path = WeightPath.load(*parents, base=options.base, entry=tuple(options.entry * 2)[:2],
                           only=options.only, except_=options.except_,
                           after=setup.after)  # fmt: skip
    if (first := next(chain(setup.model.parameters(), setup.model.buffers()), None)) is None:
        raise ValueError("the model of the tasks has no weights; give the one that is patched")
    path.to(first.device)
    key = dict(zip(("start", "end"), path.digests, strict=True))
    store = Store(options.store, key | ({"after": "yes"} if setup.after else {}))
    probes = patch.check(setup, path, store, labels=options.dry_run)
    patch.rehearse(setup, probes, options)
    if options.dry_run:
        return print(patch.forecast(setup, path, probes, store))
    answer = patch.choose(setup, path, probes, store, options)
    remedies = {"BUDGET": "see --max-evals", "ABOVE_CEILING": "see --ceiling",
                "FLAT": "do the tasks score another model, or are the files equal?"}  # fmt: skip
    if remedy := remedies.get(answer["status"]):
        raise ValueError(f"no answer: {answer['advice']}; {remedy}")
    print(json.dumps(answer, indent=1, allow_nan=False) if options.json else card.summary(answer))
    if options.out:
        path.save(options.out, answer["alpha"], metadata=card.metadata(answer), model=setup.model)
    if options.report:
        card.write_card(answer, options.report, parents)


def _refuse_to_overwrite(out: Path, sources: Sequence[str]) -> None:
    """Refuse an --out that is one of the checkpoints, or no file that the command may replace."""
    from safetensors import SafetensorError, safe_open

    from paintlib.checkpoints import locate

    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} is no .safetensors file; name one")
    files = [locate(name).resolve() for name in sources if name and Path(name).exists()]
    if out.resolve() in (*files, Path(sources[-1]).resolve()):
        raise ValueError(f"--out {out} is one of the checkpoints or the store; name another file")
    try:
        with safe_open(out, "pt") if out.exists() else nullcontext() as file:
            mine = file is None or "paintlib.alpha" in (file.metadata() or {})
    except SafetensorError:
        mine = False
    if not mine:
        raise ValueError(f"--out {out} exists, and is no patch of paintlib; name another file")


if __name__ == "__main__":
    sys.exit(main())
