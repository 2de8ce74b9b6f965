"""Evaluate one path, solve its pairs, and write everything their pages show."""

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiment import clip, compare, gallery, results, weights
from experiment.pixels import to_device
from experiment.profiles import ALPHAS
from experiment.progress import bar
from experiment.run import Run
from experiment.session import Session
from paintlib import metrics, sampling, solver
from paintlib.files import replacing
from paintlib.fits import fit_parts
from paintlib.interpolation import WeightPath
from paintlib.losses import TaskLoss
from paintlib.normalisation import NORMALISATIONS
from paintlib.objective import ImageScores, PairObjective, Score
from paintlib.solver import Evaluation
from paintlib.store import Store

NORMALISATION = "zero_shot"  # of the results; the paper does not name its own
DRAWS = 500  # of the bootstrap
RANKS = 3  # likeliest classes told of a shown picture
MIDDLE = 0.5  # of the path, where the noise is measured
FLOAT32 = 1e-6  # the noise that float32 stays below, as a share of the zero-shot loss

Scores = dict[tuple[float, str], Score]  # on test images, by alpha and task


def solve(run: Run, patching: str) -> None:
    """Write the pairs of one patching task, their evaluations, and the predictions on pictures.

    Each alpha is kept as soon as it is evaluated, so that a killed step goes on from there.
    """
    session = Session(run)
    tasks = (*run.profile.supported, patching)
    visual, path = session.tower(empty=True), session.path(patching)
    store = session.stored("evaluations", patching, session.key(patching))
    tests, gradients = _take_baselines(run, path, store)
    chosen = session.losses(visual, tasks, run.choosing)
    for alpha in bar(ALPHAS, f"curves to {patching}"):
        if missing := [task for task in tasks if store.get(alpha, task) is None]:
            path.set_(visual, alpha)
            store.put(alpha, {task: chosen[task].evaluate() for task in missing})
    noise = measure_noise(session, visual, path, patching, store)
    write_predictions(session, visual, path, patching)
    held_out = session.losses(visual, tasks, "test")

    def tested(alpha: float, pair: Sequence[str]) -> list[Score]:
        for task in pair:
            if (alpha, task) not in tests:
                path.set_(visual, alpha)
                tests[alpha, task] = held_out[task].score()
        return [tests[alpha, task] for task in pair]

    for objective in _objectives(session, path, chosen, store, [NORMALISATION]):
        pair = objective.names
        if not run.profile.limit:
            refuse_noise(objective, math.hypot(*(noise[task] for task in pair)))
        record = solve_pair(objective, path.length, gradients[pair[0]])
        if run.chosen_on == "halves":
            record |= cross_fit(objective, run.seed)
        else:
            answers = {name: found["alpha"] for name, found in record["solutions"].items()}
            same = run.chosen_on == "test"
            score = objective.score if same else functools.partial(tested, pair=pair)
            record["test"] = _points(answers, score)
        whose = _by_role(pair) | {"labels": _by_role([run.profile.label(task) for task in pair])}
        results.write_pair(run.pair(*pair), {"schema": 2, **whose, "run": run.choices, **record})
    publish(store, run.evaluations(patching))


def complete(run: Run, patching: str) -> None:
    """Evaluate what the solvers ask for under every normalisation, as the reference has them."""
    session = Session(run)
    visual, path = session.tower(empty=True), session.path(patching)
    store = session.stored("evaluations", patching, session.key(patching))
    tasks = session.losses(visual, (*run.profile.supported, patching), run.choosing)
    for objective in _objectives(session, path, tasks, store, NORMALISATIONS):
        search(objective)
    publish(store, run.folder / "complete" / f"{patching}.npz")


def _objectives(session: Session, path: WeightPath, losses: Mapping[str, TaskLoss], store: Store,
                kinds: Iterable[str]) -> Iterator[PairObjective]:  # fmt: skip
    """Go through the pairs of a path to the last of the tasks."""
    *supported, patching = losses
    for pair in bar([(task, patching) for task in supported], f"pairs of {patching}"):
        classes, own = [len(session.head(task)) for task in pair], [losses[task] for task in pair]
        for kind in kinds:
            yield PairObjective(path, own, classes, kind, names=pair, store=store)


def publish(store: Store, target: Path) -> None:
    """Copy the file of some evaluations to where pages find it."""
    with replacing(target) as part:
        shutil.copyfile(store.file, part)


def write_predictions(session: Session, visual: nn.Module, path: WeightPath, patching: str) -> None:
    """Write the likeliest classes of the shown images along a path, whose weights `visual` gets."""
    run, asked, content = session.run, {}, {}
    rows: list[list[Any]] = []  # of alphas, then tasks
    for task in (*run.profile.supported, patching):
        split = session.split(task, "test")
        images = to_device(split.images[gallery.positions(len(split.labels))], session.device)
        asked[task] = images, clip.classifier(visual, session.head(task), run.profile.pixels)
    with torch.inference_mode():
        for alpha in ALPHAS:
            path.set_(visual, alpha)
            rows.append([logits(x).double().softmax(1).topk(RANKS) for x, logits in asked.values()])
    for task, tops in zip(asked, zip(*rows, strict=True), strict=True):
        # (images, ranks, alphas): one line of the file follows one rank of one image along the path
        likely, classes = (torch.stack(column, -1).cpu() for column in zip(*tops, strict=True))
        rounded = likely.numpy().round(4).tolist()
        content[task] = {"classes": classes.tolist(), "probabilities": rounded}
    record = {"patching": patching, "alphas": ALPHAS, "tasks": content}
    results.write_json(run.predictions(patching), record, flat=True)


def search(objective: PairObjective) -> dict[str, solver.Solution]:
    """Return the answer of each solver of the results."""
    return compare.answers(objective, xtol=sampling.tolerance(objective))


def cross_fit(objective: PairObjective, seed: int) -> dict[str, Any]:
    """Choose alpha on one half of the images and score it on the other, both ways averaged."""
    halves = [half(objective, seed, first) for first in (True, False)]
    ways = []
    for own, other in zip(halves, halves[::-1], strict=True):
        found = {name: answer.alpha for name, answer in search(own).items()}
        ways.append(_points(found, other.score))
    return {"halves": {name: [way[name]["alpha"] for way in ways] for name in ways[0]},
            "test": _mean(ways)}  # fmt: skip


def half(objective: PairObjective, seed: int, first: bool) -> PairObjective:
    """Return the objective of a seeded half of each task's images; `objective` evaluates them."""

    def evaluate(alpha: float, _: Sequence[str]) -> list[ImageScores]:
        rows = []
        for images in objective.images(alpha):
            order = np.random.default_rng(seed).permutation(len(images.losses))
            kept = np.sort(order[int(first) :: 2])
            rows.append(ImageScores(images.losses[kept], images.correct[kept]))
        return rows

    if few := [n for n, row in zip(objective.names, objective.images(0.0), strict=True)
               if len(row.losses) < 2]:  # fmt: skip
        raise ValueError(f"{few[0]} has one image, which has no halves; take more images")
    return PairObjective.replay(None, objective.names, objective.classes, objective.normalisation,
                                evaluate=evaluate)  # fmt: skip


def measure_noise(session: Session, visual: nn.Module, path: WeightPath, patching: str,
                  store: Store) -> dict[str, float]:  # fmt: skip
    """Write what rounding changes in each task's loss, as a share of the zero-shot loss.

    The middle of the path is scored again in other batches. The noise is that of the mean of the
    images' changes, never below the change of the mean itself.
    """
    path.set_(visual, MIDDLE)
    noise = {}
    for task in (*session.run.profile.supported, patching):
        stored, start = store.get(MIDDLE, task), store.get(0.0, task)
        assert stored and start  # solve has evaluated both
        size = max(1, min(session.batch_size, len(stored.losses)) // 3)
        loss = session.losses(visual, [task], session.run.choosing, size)[task]
        change = loss.evaluate().losses - stored.losses
        mean = max(abs(change.mean()), change.std() / math.sqrt(len(change)))
        noise[task] = float(mean / start.losses.mean())
    results.write_json(session.run.noise(patching), noise)
    return noise


def refuse_noise(objective: PairObjective, noise: float) -> None:
    """Refuse a search whose tolerance lies below the noise of the objective, before it begins.

    Around the minimum, alphas closer than sqrt(2 noise / curvature) have sums that differ by less
    than the noise. What float32 leaves is not refused, however flat the valley: no remedy helps.
    """
    if noise <= FLOAT32:
        return
    samples = [Evaluation(a, math.fsum(objective(a)), objective(a)) for a in ALPHAS]
    best = min(samples, key=lambda sample: sample.value)
    curvature = float(fit_parts(samples).curvature(best.alpha))
    asked = sampling.tolerance(objective)(samples)
    told_apart = math.sqrt(2 * noise / curvature) if curvature > 0 else 0.0
    if told_apart > asked:
        raise ValueError(
            f"{' + '.join(objective.names)}: the losses have a noise of {noise:.1e}, so alphas "
            f"closer than {told_apart:.1e} cannot be told apart, but the search asks for "
            f"{asked:.1e}; compute the losses in float32 without TF32"
        )


def solve_pair(objective: PairObjective, length: float, gradient: Mapping[str, float]
) -> dict[str, Any]:  # fmt: skip
    """Return what a pair's results file says of the images that alpha is chosen on."""
    answers, classes = search(objective), objective.classes
    grid = answers["grid"]
    paid = {name: found.evaluations for name, found in answers.items()}
    paid["grid"] = len(grid.trace) - 2  # the ends, which all methods share
    paid["quintic"] += paid["grid"]
    errors = {name: sampling.standard_error(objective, found) for name, found in answers.items()}
    differences = {name: sampling.difference(objective, answers[name].alpha, grid.alpha)
                   for name in ("quintic", "log_quintic")}  # fmt: skip
    curves = [[objective.images(alpha)[i] for alpha in ALPHAS] for i in (0, 1)]
    images = [np.stack([row.losses for row in curve]) for curve in curves]
    spread = sampling.bootstrap(ALPHAS, images, classes, objective.normalisation, draws=DRAWS)
    means = [[row.score for row in curve] for curve in curves]
    parts = [objective(alpha) for alpha in ALPHAS]
    columns = {"sum": [math.fsum(p) for p in parts], **_by_role(list(zip(*parts, strict=True)))}
    first = [score.loss for score in means[0]]
    transfer = metrics.backward_transfer(ALPHAS, first, length, gradient["slope"])
    return {
        "normalisation": objective.normalisation,
        "curves": {"alphas": list(ALPHAS)} | _by_role([
            {"classes": count, "images": scores[0].images,
             "loss": [score.loss for score in scores],
             "accuracy": [score.accuracy for score in scores]}
            for count, scores in zip(classes, means, strict=True)
        ]),
        "solutions": {
            name: {"alpha": found.alpha, "value": found.value, "bracket": list(found.bracket),
                   "status": found.status.name, "evaluations": paid[name],
                   "trace": [[s.alpha, s.value, list(s.parts)] for s in found.trace]}
            for name, found in answers.items()
        },
        "sampling": {
            **{name: dict(zip(("difference", "stderr"), found or (), strict=True))
               for name, found in differences.items()},
            "stderr": {name: error and [x if math.isfinite(x) else None for x in error]
                       for name, error in errors.items()},
            "bootstrap": {**spread._asdict(), "draws": DRAWS},
        },
        "metrics": {
            "length": length, "gradient_norm": gradient["norm"],
            "gradient_similarity": gradient["similarity"],
            "backward_transfer": transfer._asdict(),
            "forgetting": metrics.forgetting(means[0][0], means[0][-1])._asdict(),
            "quasiconvexity_violation": {
                name: metrics.quasiconvexity_violation(values) for name, values in columns.items()
            },
        },
    }  # fmt: skip


def _by_role(both: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("supported", "patching"), both, strict=True))


def _points(answers: Mapping[str, float], score: Callable[[float], Sequence[Score]]
) -> dict[str, Any]:  # fmt: skip
    at = {"zero_shot": 0.0, **answers, "fine_tuned": 1.0}
    return {
        name: {"alpha": alpha, **_by_role([{"loss": s.loss, "accuracy": s.accuracy}
                                           for s in score(alpha)])}
        for name, alpha in at.items()
    }  # fmt: skip


def _mean(found: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of the numbers in dicts of equal keys."""
    if isinstance(found[0], Mapping):
        return {key: _mean([one[key] for one in found]) for key in found[0]}
    return math.fsum(found) / len(found)


def _take_baselines(
    run: Run, path: WeightPath, store: Store
) -> tuple[Scores, dict[str, dict[str, float]]]:
    """Put the supported tasks' losses at the common start into `store`; return the rest."""
    tests: Scores = {}
    gradients = {}
    displacement = path.start.double().sub_(path.end)
    parent = weights.metadata(run.zero_shot)["digest"]
    for task in run.profile.supported:
        tensors, known = weights.load(run.baseline(task))
        if known["parent"] != parent:
            raise ValueError(
                f"{run.baseline(task)} is of other weights than {run.zero_shot}; "
                "delete it and run again"
            )
        scores = ImageScores(tensors.pop("losses").numpy(), tensors.pop("correct").numpy())
        store.put(0.0, {task: scores})
        tests[0.0, task] = Score(*json.loads(known["test"]))
        parts = {name.removeprefix("gradient."): part for name, part in tensors.items()}
        gradient = path.flatten({k: v.to(displacement.device) for k, v in parts.items()})
        del parts, tensors  # as large as the tower
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        similarity = metrics.gradient_similarity(displacement, gradient)
        slope = -similarity * norm * path.length  # <gradient, w_ft - w_zs>
        gradients[task] = {"norm": norm, "similarity": similarity, "slope": slope}
    return tests, gradients
