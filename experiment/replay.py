"""A pair's objective on the evaluations that a run has stored, for its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiment import results
from experiment.run import Run
from paintlib.objective import ImageScores, PairObjective
from paintlib.store import Store


def objective(
    folder: Path | str, supported: str, patching: str, normalisation: str = "zero_shot"
) -> PairObjective:
    """Return a pair's objective: no weights and no torch are needed where alpha is stored.

    Another alpha is evaluated if the run's weights are still there, else it is refused with the
    command that makes them; nothing is written.
    """
    folder = results.find(folder)
    said = results.read_json(folder / "run.json")
    for role, task in (("supported", supported), ("patching", patching)):
        if task not in said[role]:
            raise ValueError(f"unknown {role} task {task!r}; choose from {', '.join(said[role])}")
    store = Store(folder / "evaluations" / f"{patching}.npz", writable=False)

    def evaluate(alpha: float, names: Sequence[str]) -> Sequence[ImageScores]:
        return _evaluate(folder, store, patching, alpha, names)

    classes = [said["tasks"][task]["classes"] for task in (supported, patching)]
    pair = (supported, patching)
    return PairObjective.replay(store, pair, classes, normalisation, evaluate=evaluate)


def _evaluate(
    folder: Path, store: Store, patching: str, alpha: float, names: Sequence[str]
) -> list[ImageScores]:
    from experiment.session import Session  # imports torch

    said = results.read_json(folder / "run.json")
    above = folder.resolve().parents  # artifacts/RUN/results/RUN, or results/RUN for the reference
    root = above[3] if above[2].name == "artifacts" else results.ROOT
    tasks = ",".join([*said["supported"], *said["patching"]])
    kept = ("limit", "finetuned", "sample", "choose_on", "variants")
    options = {name: said[name] for name in kept if name in said}
    run = Run.of(said["profile"], said["seed"], root, tasks=tasks, **options)
    session = Session(run)
    there = run.fine_tuned(patching).exists()
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
