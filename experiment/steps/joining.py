"""Search the coefficients of two patches at once, and evaluate the map of the loss over both."""

import itertools
from typing import Any

from experiment import results
from experiment.profiles import MAP, refuse_unknown
from experiment.progress import bar
from experiment.run import Run
from experiment.session import Session
from experiment.steps.solving import publish
from paintlib.joint import WeightPatches, coordinatewise, joint, shared
from paintlib.objective import PairObjective

NORMALISATION = "zero_shot"


def join(run: Run, number: str) -> None:
    """Write the searches over two coefficients of one trio of tasks, and all evaluations."""
    refuse_unknown([number], [*map(str, range(len(run.profile.trios)))], "there is no trio")
    session, tasks = Session(run), run.profile.trios[int(number)]
    visual, paths = session.tower(empty=True), [session.path(task) for task in tasks[1:]]
    ends = [path.unflatten(path.end) for path in paths]
    patches = WeightPatches(paths[0].unflatten(paths[0].start), ends)
    key = {f"{name} {task}": value for task in tasks[1:]
           for name, value in session.key(task).items()}  # fmt: skip
    validation, held_out = (
        list(session.losses(visual, tasks, split).values()) for split in ("validation", "test")
    )
    classes = [len(session.head(task)) for task in tasks]
    store = session.stored("joint", number, key)
    objective = PairObjective(patches, validation, classes, NORMALISATION, names=tasks, store=store)
    for point in bar([*itertools.product(MAP, MAP)], f"map of {' and '.join(tasks[1:])}"):
        objective.images(point)
    found = {search.__name__: search(objective, 2) for search in (joint, coordinatewise, shared)}
    searches: dict[str, dict[str, Any]] = {
        name: {"alpha": answer.alpha, "value": answer.value, "evaluations": answer.evaluations,
               "status": answer.status.name}
        for name, answer in found.items()
    }  # fmt: skip
    for name, point in {"average": (0.5, 0.5), "zero_shot": (0.0, 0.0)}.items():
        searches[name] = {"alpha": point, "value": sum(objective(point)), "evaluations": 0,
                          "status": "CONVERGED"}  # fmt: skip
    for search in searches.values():
        patches.set_(visual, search["alpha"])
        search["test"] = [task.score()._asdict() for task in held_out]
    content = {
        "tasks": tasks, "labels": [run.profile.label(task) for task in tasks],
        "classes": classes, "run": run.choices, "normalisation": NORMALISATION,
        "searches": searches, "trace": [sample.alpha for sample in found["joint"].trace],
    }  # fmt: skip
    publish(store, run.joint(int(number), "npz"))
    results.write_json(run.joint(int(number), "json"), content, flat=True)
