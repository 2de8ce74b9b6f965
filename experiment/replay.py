"""A pair's objective on the evaluations that a run has stored, for its page."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiment import report, results
from experiment.profiles import ALPHAS, refuse_unknown
from experiment.run import Run
from paintlib.fits import log_spline
from paintlib.objective import ImageScores, PairObjective
from paintlib.solver import Evaluation, Objective
from paintlib.store import Store

Spline = Callable[..., Callable[[float], Any]]  # through alphas and curves, as scipy's
TINY = 1e-9  # nats: below, a logarithm of a float32 loss says nothing


def objective(folder: Path | str, supported: str, patching: str,
              normalisation: str = "zero_shot") -> PairObjective:  # fmt: skip
    """Return a pair's objective: no weights and no torch are needed where alpha is stored.

    Another alpha is evaluated if the run's weights are there, else refused; nothing is written.
    """
    folder = results.find(folder)
    said, pair = results.read_json(folder / "run.json"), (supported, patching)
    for role, task in zip(("supported", "patching"), pair, strict=True):
        refuse_unknown([task], said[role], f"unknown {role} task")
    store = Store(folder / "evaluations" / f"{patching}.npz", writable=False)
    evaluate = functools.partial(_evaluate, folder, store, patching)
    classes = [said["tasks"][task]["classes"] for task in pair]
    return PairObjective.replay(store, pair, classes, normalisation, evaluate=evaluate)


@functools.cache  # a page asks for a pair again and again
def _curve(file: Path, name: str, spline: Spline) -> Callable[[float], Any]:
    store = Store(file, writable=False)
    rows = [row.losses for a in ALPHAS if (row := store.get(a, name))]
    return spline(ALPHAS, np.maximum(rows, TINY))


def between(folder: Path | str, pair: Mapping[str, Any],
            weights: Sequence[float] | None = None, spline: Spline = log_spline
) -> PairObjective:  # fmt: skip
    """Return the objective of a pair's record at any alpha, without its weights.

    Between the samples each image's loss follows a `spline`, by default that of its logarithm.
    """
    file = results.find(folder) / "evaluations" / f"{pair['patching']}.npz"
    names = pair["supported"], pair["patching"]
    curves = {name: _curve(file, name, spline) for name in names}

    def evaluate(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
        losses = [curves[name](alpha) for name in missing]
        return [ImageScores(row, np.zeros(len(row), bool)) for row in losses]

    classes = [pair["curves"][role]["classes"] for role in ("supported", "patching")]
    kind = pair["normalisation"]
    return PairObjective.replay(None, names, classes, kind, evaluate=evaluate, weights=weights)


def on_curves(pair: report.Pair, kind: str) -> tuple[Objective, list[Evaluation]]:
    """Return the objective of a pair's curves, by `log_spline` between samples, and the samples."""
    rows = zip(pair["curves"]["alphas"], report.normalised(pair, kind).T.tolist(), strict=True)
    samples = [Evaluation(alpha, math.fsum(row), tuple(row)) for alpha, row in rows]
    curve = report.curve(pair, kind)
    return lambda alpha: tuple(curve(alpha)), samples


def joint(folder: Path | str, number: int) -> tuple[dict[str, Any], PairObjective]:
    """Return what is recorded of a trio's joint searches, and its objective where it is stored."""
    folder = results.find(folder) / "joint"
    said = results.read_json(folder / f"{number}.json")
    store = Store(folder / f"{number}.npz", writable=False)
    return said, PairObjective.replay(
        store, said["tasks"], said["classes"], said["normalisation"], origin=(0.0, 0.0)
    )


def _evaluate(folder: Path, store: Store, patching: str, alpha: float, names: Sequence[str]
) -> list[ImageScores]:  # fmt: skip
    from experiment.session import Session  # imports torch

    said = results.read_json(folder / "run.json")
    above = folder.resolve().parents  # artifacts/RUN/results/RUN, or results/RUN for the reference
    root = above[3] if above[2].name == "artifacts" else results.ROOT
    tasks = ",".join([*said["supported"], *said["patching"]])
    kept = ("limit", "finetuned", "sample", "choose_on", "variants")
    options = {name: said[name] for name in kept if name in said}
    run = Run.of(said["profile"], said["seed"], root, tasks=tasks, **options)
    session, there = Session(run), run.fine_tuned(patching).exists()
    if not there or session.key(patching) != store.key:
        raise ValueError(
            f"alpha = {alpha} of {', '.join(names)} is not among the evaluations in {store.file}, "
            f"and the weights in {run.folder} are {'of another run' if there else 'missing'}; run "
            f"`make book PROFILE={run.profile.name} SEED={run.seed}` and use its own results, "
            f"{run.results}"
        )
    visual, path = session.tower(empty=True), session.path(patching)
    losses = session.losses(visual, names, run.choosing)
    path.set_(visual, alpha)
    return [losses[name].evaluate() for name in names]
