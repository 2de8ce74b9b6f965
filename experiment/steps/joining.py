"""Search the coefficients of two patches at once, and evaluate the map of the loss over both."""

import itertools
import shutil
from typing import Any

from experiment import results
from experiment.profiles import MAP
from experiment.progress import bar
from experiment.run import Run
from experiment.session import Session
from paintlib.files import replacing
from paintlib.joint import JointSolution, WeightPatches, coordinatewise, joint, shared
from paintlib.objective import PairObjective

NORMALISATION = "zero_shot"


def join(run: Run, number: str) -> None:
    """Write the searches over two coefficients of one trio of tasks, and all evaluations."""
    session, tasks = Session(run), run.profile.trios[int(number)]
    visual, paths = session.tower(empty=True), [session.path(task) for task in tasks[1:]]
    patches = WeightPatches(
        paths[0].unflatten(paths[0].start), [path.unflatten(path.end) for path in paths]
    )
    keys = (session.key(task).items() for task in tasks[1:])
    key = {f"{name} {task}": value for task, own in zip(tasks[1:], keys, strict=True)
           for name, value in own}  # fmt: skip
    validation, held_out = (
        list(session.losses(visual, tasks, split).values()) for split in ("validation", "test")
    )
    classes = [len(session.head(task)) for task in tasks]
    store = session.store("joint", number, key)
    objective = PairObjective(patches, validation, classes, NORMALISATION, names=tasks, store=store)
    for point in bar([*itertools.product(MAP, MAP)], f"map of {' and '.join(tasks[1:])}"):
        objective.images(point)
    found = {"joint": joint(objective, 2), "coordinatewise": coordinatewise(objective, 2),
             "shared": shared(objective, 2)}  # fmt: skip
    searches = {name: _plain(solution) for name, solution in found.items()}
    searches["average"] = {"alpha": (0.5, 0.5), "value": sum(objective((0.5, 0.5))),
                           "evaluations": 0, "status": "CONVERGED"}  # fmt: skip
    searches["zero_shot"] = {**searches["average"], "alpha": (0.0, 0.0),
                             "value": sum(objective((0.0, 0.0)))}  # fmt: skip
    for search in searches.values():
        patches.set_(visual, search["alpha"])
        search["test"] = [task.score()._asdict() for task in held_out]
    content = {
        "tasks": tasks, "labels": [run.profile.label(task) for task in tasks],
        "classes": classes, "run": run.choices, "normalisation": NORMALISATION,
        "searches": searches, "trace": [sample.alpha for sample in found["joint"].trace],
    }  # fmt: skip
    with replacing(run.joint(int(number), "npz")) as part:
        shutil.copyfile(store.file, part)
    results.write_json(run.joint(int(number), "json"), content, flat=True)


def _plain(solution: JointSolution) -> dict[str, Any]:
    return {"alpha": solution.alpha, "value": solution.value,
            "evaluations": solution.evaluations, "status": solution.status.name}  # fmt: skip
