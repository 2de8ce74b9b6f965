"""The command `paintlib patch`: the tasks of a user on a path, and what is known of the answer."""

import argparse
import copy
import dataclasses
import hashlib
import importlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from paintlib import __version__, limits, sampling, solver
from paintlib.card import PLACES, SURE
from paintlib.fits import fit_parts
from paintlib.interpolation import WeightPath
from paintlib.losses import TWICE, TaskLoss, leaves, outside
from paintlib.objective import ImageScores, PairObjective
from paintlib.store import Store

__all__ = ["Probe", "Setup", "check", "choose", "find_setup", "forecast", "rehearse"]

HELD_OUT, BARE = " (held out)", " (without after)"  # behind a task's name in the store
KEPT, DROWNS = 0.9, 20.0  # of a patch that rounding leaves; times the range of another task's loss


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the function that `--tasks` names returns.

    Args:
        tasks: a `TaskLoss` per name, all on one model; alpha is chosen on their images.
        held_out: of some or all of the names, images that take no part in the choice.
        after: called with the model after each write of its weights (`reestimate_batchnorm`); what
            the patch is compared with are the checkpoints without it.
    """

    tasks: Mapping[str, TaskLoss]
    held_out: Mapping[str, TaskLoss] = dataclasses.field(default_factory=dict)
    after: Callable[[nn.Module], object] | None = None
    _state: dict[str, Any] = dataclasses.field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("there is no task; give a name and its TaskLoss")
        for name in self.tasks:
            if not isinstance(name, str) or name.endswith((HELD_OUT, BARE)):
                what = f"a string that does not end in {HELD_OUT!r} or {BARE!r}"
                raise ValueError(f"{name!r} is no name for a task; give {what}")
        if odd := sorted(self.held_out.keys() - self.tasks.keys()):
            raise ValueError(f"{odd[0]!r} is no task; the tasks are {', '.join(self.tasks)}")
        if len({id(task.model) for task in self.rows.values()}) > 1:
            raise ValueError("the tasks have several models; give all the one that is patched")
        if self.after:
            self._state.update(copy.deepcopy(self.model.state_dict()))

    @property
    def model(self) -> nn.Module:
        """The module that the path writes into."""
        return next(iter(self.tasks.values())).model

    @property
    def rows(self) -> dict[str, TaskLoss]:
        """All tasks, by their names in the store."""
        return {**self.tasks, **{name + HELD_OUT: task for name, task in self.held_out.items()}}


class Probe(NamedTuple):
    """The first images of a task at alpha = 0, and the size of the task."""

    first: ImageScores
    images: int | None  # where the batches tell it without being read
    classes: int  # 1, which `log_classes` refuses, of a loss of one's own
    seconds: float  # of the first images


Probes = Mapping[str, Probe]


def find_setup(name: str) -> Setup:
    """Call `module:function`, the current folder first on the path of imports."""
    module, _, function = name.partition(":")
    module = module.removesuffix(".py").removeprefix("./").replace("/", ".")
    remedy = "give --tasks FILE:FUNCTION; `paintlib init` writes an example"
    sys.path.insert(0, "")
    try:
        make = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        what = f"there is no module {error.name!r} here or installed"
        raise ValueError(f"{what}; {remedy}") from error
    if not callable(make):
        raise ValueError(f"{module} has no function {function!r}; {remedy}")
    if not isinstance(setup := make(), Setup):
        raise ValueError(f"{name} returns a {type(setup).__name__}, not a Setup; {remedy}")
    return setup


def check(setup: Setup, path: WeightPath, store: Store, *, labels: bool = False) -> Probes:
    """Score the first images of each task at alpha = 0, and refuse what does not fit.

    That is the model and the path, a task, held-out images that alpha is chosen on, or a store that
    has other losses there, for which all of a stored task is scored once more. With `labels`, all
    batches are read, and each label is compared with the number of classes.
    """
    path.set_(setup.model, 0.0)
    probes: dict[str, Probe] = {}
    for name, task in setup.rows.items():
        if isinstance(task.batches, Iterator):
            raise ValueError(f"the batches of task {name!r} are a generator, which is read once; "
                             "give a list or a DataLoader")  # fmt: skip
        if (batch := next(iter(task.batches), None)) is None:
            raise ValueError(f"task {name!r} has no batch; give a list or a DataLoader with images")
        begin = time.perf_counter()
        first = task.evaluate(TWICE)
        seconds = time.perf_counter() - begin
        if {*first.losses.tolist()} == {0.0, 1.0}:
            what = f"the loss of task {name!r} is right or wrong, which has no slope"
            raise ValueError(f"{what}; give a smooth one, and this as correct")
        if setup.after and not probes:  # once is enough to see whether it shuffles
            path.set_(setup.model, 0.0)
        task.repeat(first)
        classes = 1
        if task.loss is None:
            with torch.inference_mode():
                classes = (task.logits or task.model)(batch[0]).shape[1]
            for number, (_, there) in enumerate(task.batches if labels else ()):
                if len(odd := there[outside(there, classes)]):
                    what = f"batch {number} of task {name!r} has the label {int(odd[0])}"
                    raise ValueError(f"{what}; its logits are of the classes 0 to {classes - 1}")
        if (kept := store.get(0.0, name)) is not None:
            task.confirm(kept, f"task {name!r}: {store.file}")
        probes[name] = Probe(first, _count(task.batches), classes, seconds)
    for name in setup.held_out:
        first, held = (probes[name + more].first for more in ("", HELD_OUT))
        if first.digest == held.digest != "" and np.array_equal(first.losses, held.losses):
            raise ValueError(f"alpha is chosen on the held-out images of {name!r}; give others")
    return probes


def forecast(setup: Setup, path: WeightPath, probes: Probes, store: Store) -> str:
    """Say what `check` has seen, what the weights take, and how long an evaluation may."""
    about, total = [], 0.0
    for name, (first, images, classes, seconds) in probes.items():
        seconds *= (images or len(first.losses)) / len(first.losses)
        total += 0 if name.endswith(HELD_OUT) else seconds
        size = f"{images or 'an unknown number of'} images, {classes} classes"
        about.append(
            f"{name}: {size}, loss {first.score.loss:.3g} in the first {len(first.losses)}"
        )
    tensors = setup.model.state_dict().values()
    taken = (4 if setup.after else 3) * sum(tensor.nbytes for tensor in tensors) / 2**30
    more = ", the ends without after= 2" if setup.after else ""
    return "\n".join([
        *about, f"weights: {sum(t.numel() for t in tensors):,} numbers, {path.length:.4g} apart",
        f"memory: {taken:.2f} GiB for both ends and the model",
        f"time: about {total:.2g} s per evaluation; a search takes 5 to 8 of them, a grid 21{more}",
        f"{store.file}: {max(len(store.alphas(name)) for name in setup.tasks)} evaluations",
    ])  # fmt: skip


def choose(setup: Setup, path: WeightPath, probes: Probes, store: Store,
           options: argparse.Namespace) -> dict[str, Any]:  # fmt: skip
    """Choose alpha, measure there and at both ends, and return all that can be said, as for JSON.

    `options` are those of the command. Progress goes to stderr. What does not exist is None, a
    difference is `[difference, standard error]`, on the same images.
    """
    number, bare = itertools.count(1), copy.copy(path)
    bare.after = None

    def evaluate(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
        if missing[0].endswith(BARE):  # what is not on the path too is as before the first `after`
            setup.model.load_state_dict(setup._state, strict=False)
            bare.set_(setup.model, alpha)
        else:
            path.set_(setup.model, alpha)
        names = [name.removesuffix(BARE) for name in missing]
        tasks = [setup.rows[name] for name in names]
        counts: list[Any] = [probes[name].images for name in names]
        total = None if None in counts else sum(counts)
        beside = "".join(mark for mark in (HELD_OUT, BARE) if mark in missing[0])
        said = f"evaluation {next(number)}{beside}, alpha = {alpha:.4f}"

        def watched(batches: Iterable[Any]) -> Iterator[Any]:
            for batch in batches:
                yield batch
                bar.update(_size(batch))

        with tqdm(total=total, desc=said, unit=" images", mininterval=1) as bar:
            seen = (dataclasses.replace(task, batches=watched(task.batches)) for task in tasks)
            return [task.evaluate() for task in seen]

    def replay(names: list[str], kind: str, weights: Sequence[float] | None) -> PairObjective:
        counts = [probes[name.removesuffix(BARE)].classes for name in names]
        return PairObjective.replay(store, names, counts, kind, evaluate=evaluate, weights=weights)

    def checkpoints(names: Iterable[str]) -> list[tuple[ImageScores, ...]]:
        ends = replay([name + BARE for name in names], "none", None)
        return [ends.images(alpha) for alpha in (0.0, 1.0) if ends(alpha)]  # or it is not finite

    def compare(objective: PairObjective) -> dict[str, Any]:
        if not setup.after:
            return _measured(objective, found.alpha)
        start, end = checkpoints(objective.names)
        places = Store(None)
        for place, rows in {0.0: start, 0.5: objective.images(found.alpha), 1.0: end}.items():
            places.put(place, dict(zip(objective.names, rows, strict=True)))
        scales = zip(objective.weights, objective.normalisers, strict=True)
        weights = [weight / scale.unit for weight, scale in scales]
        both = PairObjective.replay(places, objective.names, objective.classes, "none",
                                    weights=weights)  # fmt: skip
        return _measured(both, 0.5)

    objective = replay(list(setup.tasks), options.normalisation, options.weights)
    for end in (0.0, 1.0):  # before the search, so that one whose loss is not finite costs none
        objective(end)
    starts: dict[str, ImageScores] = {}
    if setup.after:  # behind alpha = 0, by which `check` knows another run's images
        starts = dict(zip(setup.tasks, checkpoints(setup.tasks)[0], strict=True))
    found, ceilings = _search(objective, options, starts)
    if found.status is solver.Status.AT_CEILING:
        (stderr, numerical), bound = limits.errors(objective, ceilings, found), None
    else:
        error, bound = sampling.standard_error(objective, found), sampling.bound(objective, found)
        stderr, numerical = error.alpha if error else math.nan, _numerical_error(found)
    measured, beside = compare(objective), {}
    same = _measured(objective, found.alpha)["gain"] if setup.after else {}
    by_name = dict(zip(setup.tasks, objective.weights, strict=True))
    for task, scale in zip(measured["tasks"].values(), objective.normalisers, strict=True):
        task["scale"] = scale.unit
    if held_out := setup.held_out:
        units = [by_name[name] / measured["tasks"][name]["scale"] for name in held_out]
        whole = len(held_out) == len(by_name)  # else there is no sum
        other = replay([name + HELD_OUT for name in held_out], "none", units if whole else None)
        beside = compare(other) | ({} if whole else {"gain": {}})
    norms = any("running_mean" in name for name, _ in setup.model.named_buffers())
    told = {
        "alpha": found.alpha, "stderr": stderr, "status": found.status.name,
        "numerical_error": numerical, "advice": found.status.value,
        "solver": options.solver, "normalisation": objective.normalisation, "weights": by_name,
        "bound": bound and [bound.alpha, "at most" if bound.below else "at least"],
        "ceilings": {c.task: [c.rise, limits.highest_rise(objective, c.task, found.alpha, *c[2:]),
                              c.probability] for c in ceilings},
        "bracket": options.bracket, "trace": sorted(found.trace),
        "evaluations": len(objective.evaluated), **measured, "held_out": beside,
        "gain_with_after": same,  # over the ends as it leaves them
        "batchnorm": ("set by after=" if setup.after else "interpolated") if norms else None,
        "parents": dict(zip(("zero_shot", "fine_tuned"), path.digests, strict=True)),
        "store": hashlib.sha256(store.file.read_bytes()).hexdigest(),
        "versions": {"paintlib": __version__, "torch": torch.__version__},
    }  # fmt: skip
    told["warnings"] = list(_warnings(path, objective, found, told))
    return dict(json.loads(json.dumps(told), parse_constant=lambda _: None))


def _search(objective: PairObjective, options: argparse.Namespace,
            starts: Mapping[str, ImageScores],
            ) -> tuple[solver.Solution, list[limits.Ceiling]]:  # fmt: skip
    ceilings = [limits.Ceiling(task, rise, start=starts.get(task))
                for task, rise in options.ceiling]  # fmt: skip
    if twice := {c.task for c in ceilings if sum(c.task == other.task for other in ceilings) > 1}:
        raise ValueError(f"task {min(twice)!r} has two ceilings; give the lower one")
    budget: dict[str, Any] = {"max_evals": options.max_evals}
    kinds = {"log_quintic": budget | {"xtol": sampling.tolerance(objective)}, "brent": budget}
    own = kinds.get(options.solver, {"step": options.step})
    if ceilings:  # their search is a log-quintic
        return limits.under(objective, ceilings, options.bracket, **own), ceilings
    return getattr(solver, options.solver)(objective, options.bracket, **own), []


def rehearse(setup: Setup, probes: Probes, options: argparse.Namespace) -> None:
    """Search on made-up losses, so that options that cannot run are refused before any is paid."""
    low, high = options.bracket

    def made_up(alpha: float, names: Sequence[str]) -> list[ImageScores]:
        losses = 1 + ((alpha - low) / (high - low or 1) - np.array([0.4, 0.6])) ** 2
        rows = (losses[: probes[name].images] for name in names)  # of one image, one
        return [ImageScores(row, row > 0) for row in rows]

    names = list(setup.tasks)
    objective = PairObjective.replay(
        None, names, [probes[name].classes for name in names], options.normalisation,
        evaluate=made_up, weights=options.weights,
    )  # fmt: skip
    _search(objective, options, {})


def _size(batch: Any) -> int:
    return next((len(leaf) for _, leaf in leaves(batch) if leaf.ndim), 1)


def _count(batches: Any) -> int | None:
    if isinstance(batches, list | tuple):
        return sum(map(_size, batches))
    sampler = getattr(batches, "sampler", None)  # which may take some of the images
    return len(sampler) if isinstance(sampler, Sized) else None


def _numerical_error(found: solver.Solution) -> float:
    """Return how far from alpha the minima of two fits are: with it, and without."""
    rest = [sample for sample in found.trace if sample.alpha != found.alpha]
    if len(rest) < 3:
        return max(abs(found.alpha - end) for end in found.bracket)
    fits = fit_parts(found.trace), fit_parts(rest)
    return max(abs(fit.minimum(*found.bracket) - found.alpha) for fit in fits)


def _measured(objective: PairObjective, alpha: float) -> dict[str, Any]:
    """Return what the ends and the patch cost by task, and by how much the sum is lower."""
    places = {"zero_shot": 0.0, "patched": alpha, "fine_tuned": 1.0}
    for other in places.values():
        objective(other)  # refuses what is not finite
    tasks: dict[str, Any] = {name.removesuffix(HELD_OUT): {} for name in objective.names}
    for i, task in enumerate(tasks.values()):
        here = objective.images(alpha)[i]
        task["images"] = len(here.losses)
        for place, other in places.items():
            there = objective.images(other)[i]
            loss, accuracy, _ = there.score
            hits = here.correct * 1.0 - there.correct
            change = {"loss": _paired(here.losses - there.losses), "accuracy": _paired(hits)}
            task[place] = {"loss": loss, "accuracy": accuracy, "change": change}
    gain = {end: sampling.difference(objective, other, alpha)
            for end, other in places.items() if other != alpha}  # fmt: skip
    return {"tasks": tasks, "gain": gain}


def _paired(row: Any) -> tuple[float, float]:  # mean and standard error
    return row.mean(), sampling.variance(row) ** 0.5


def _warnings(path: WeightPath, objective: PairObjective, found: solver.Solution,
              told: Mapping[str, Any]) -> Iterator[str]:  # fmt: skip
    """Yield what a user should know before she trusts the answer."""
    if found.status not in (solver.Status.CONVERGED, solver.Status.AT_CEILING):
        yield f"{found.status.name}: {found.status.value}"
    if (share := path.kept_share(found.alpha)) < KEPT:
        what = f"{share:.0%} of the patch is left in the types of the checkpoints, and of --out"
        yield f"{what}: convert both to float32 first, or apply alpha to the adapter itself"
    counted = np.array(objective.weights) > 0
    parts = np.ptp([sample.parts for sample in found.trace], axis=0)[counted]
    names = np.array(objective.names)[counted]
    least, most = str(names[parts.argmin()]), str(names[parts.argmax()])
    if parts.max() > DROWNS * parts.min():
        what = f"changes by {parts.max():.3g} along the path, the other's by {parts.min():.3g}"
        yield f"the scale of task {most!r} drowns {least!r}: its normalised loss {what}"
    gains = {"": told["gain"], " on held-out images": told["held_out"].get("gain", {}),
             ", after= being called there too": told["gain_with_after"]}  # fmt: skip
    for on, by_end in gains.items():
        for end, (fall, error) in by_end.items():
            if fall <= SURE * error:
                yield f"the patch is no better than the {PLACES[end]} end beyond its error{on}"
    for (name, task), count in zip(told["tasks"].items(), objective.classes, strict=True):
        best, chance = max(task[place]["accuracy"] for place in PLACES), 1 / count
        if best <= chance + SURE * (chance * (1 - chance) / task["images"]) ** 0.5 and count > 1:
            what = f"no better than a guess anywhere on the path ({best:.1%} right at best)"
            yield f"task {name!r} is {what}: are its labels those of the head?"
    ridge = sampling.second_valley(objective, found)
    if ridge and ridge[0] > SURE * ridge[1]:
        what = f"a ridge of {ridge[0]:.2g} ± {ridge[1]:.2g} hides a second valley of the sum"
        yield f"{what}: --solver grid --step 0.01 sees both"
    if told["batchnorm"] == "interpolated":
        yield "the averages of BatchNorm are interpolated: re-estimate them by an after= of Setup"
