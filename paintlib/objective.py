"""The sum of two tasks' normalised losses along a path: evaluated once, kept, or replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paintlib.normalisation import Normaliser, normaliser

if TYPE_CHECKING:
    from paintlib.interpolation import WeightPath
    from paintlib.joint import WeightPatches
    from paintlib.losses import TaskLoss
    from paintlib.store import Store

__all__ = ["ImageScores", "PairObjective", "Score"]

HALF = 1e-4  # the precision of float16 and bfloat16 is coarser, that of float32 finer
CLOSE = (0.49, 0.5, 0.51, 0.52)
SAME_IMAGES = (
    "image i must be image i at each alpha: turn off shuffling (DataLoader(..., shuffle=False)), "
    "random augmentation (use a fixed transform) and dropout (model.eval()), in `after` too"
)


class Score(NamedTuple):
    """Mean cross-entropy (nats per image), top-1 accuracy (fraction) and number of images."""

    loss: float
    accuracy: float
    images: int


class ImageScores(NamedTuple):
    """What each image of a task costs (nats, float64), and whether its label is on top.

    `correct` may be fractions, or nan where nobody knows. `digest` says which images they are, and
    in which order ("": unknown); `eps` is the precision they were computed in (0: unknown).
    """

    losses: NDArray[np.float64]
    correct: NDArray[Any]
    digest: str = ""
    eps: float = 0.0

    @property
    def score(self) -> Score:
        """The means over the images."""
        return Score(float(self.losses.mean()), float(self.correct.mean()), len(self.losses))


Alpha = float | tuple[float, ...]  # one coefficient, or one for each of several patches
Evaluate = Callable[[Any, Sequence[str]], Sequence[ImageScores]]


def position(alpha: Any) -> Alpha:
    """Return `alpha` as it is kept: a float, or a tuple of floats for several patches."""
    return float(alpha) if np.ndim(alpha) == 0 else tuple(map(float, alpha))


class PairObjective:
    """The objective of the paper, (1.3) eq-objective: normalised losses of two tasks at alpha.

    The first visit of an alpha writes w(alpha) into the model, and adds it to `evaluated`; none is
    evaluated twice. The scales of the tasks, `normalisers`, take the losses at `anchors`: 0, which
    is evaluated at once, or the 21 `samples` of `minmax`, evaluated when first needed.

    Args:
        path: the weights; for `WeightPatches`, alpha is a tuple of one coefficient per patch.
        tasks: one or more, on one model.
        classes: number of classes per task.
        normalisation: one of `NORMALISATIONS`.
        names: what the tasks are called in the store; "0", "1", ... by default.
        store: where evaluations are looked up and kept, those of each task by themselves. Of a file
            the tasks are scored once more at alpha = 0, and compared.
        weights: a factor of each task's normalised loss, 1 by default, 0 for a mere ceiling.
        evaluate, origin: as in `replay`; a path has its own.

    Raises:
        ValueError: the normalisation, classes, names or weights do not fit, the models differ, or
            the store is of other weights or images.
    """

    samples = tuple(i / 20 for i in range(21))  # the exhaustive search's set the scale of minmax

    def __init__(self, path: WeightPath | WeightPatches | None, tasks: Sequence[TaskLoss],
                 classes: Sequence[int], normalisation: str = "zero_shot", *,
                 names: Sequence[str] | None = None, store: Store | None = None,
                 weights: Sequence[float] | None = None, evaluate: Evaluate | None = None,
                 origin: Alpha = 0.0) -> None:  # fmt: skip
        from paintlib.store import Store  # stands on this module

        self.names = tuple(names or map(str, range(len(tasks))))
        if len({*self.names}) < len(self.names) or (tasks and len(self.names) != len(tasks)):
            said = f"{len(tasks) or len(self.names)} tasks but the names {names}"
            raise ValueError(f"{said}; give each task its own")
        if path is not None:
            if len({id(task.model) for task in tasks}) != 1:
                raise ValueError("the tasks must share one model: the one the path writes into")
            by_name = dict(zip(self.names, tasks, strict=True))
            fresh, origin = set(by_name), getattr(path, "origin", 0.0)
            if store is not None and store.on_disk:
                _confirm(store, path, by_name, origin)

            def evaluate(alpha: Any, missing: Sequence[str]) -> list[ImageScores]:
                path.set_(tasks[0].model, alpha)
                rows = [by_name[name].evaluate() for name in missing]
                if new := [row for row in zip(missing, rows, strict=True) if row[0] in fresh]:
                    path.set_(tasks[0].model, alpha)  # a step after each write may shuffle too
                for name, row in new:
                    by_name[name].repeat(row)
                fresh.difference_update(missing)
                return rows

        count = len(self.names)
        if count != len(classes):
            raise ValueError(f"{count} tasks but {len(classes)} class counts")
        self.weights = tuple(map(float, (1.0,) * count if weights is None else weights))
        good = all(0 <= weight < math.inf for weight in self.weights) and any(self.weights)
        if len(self.weights) != count or not good:
            raise ValueError(f"{count} tasks but the weights {self.weights}; give each task a "
                             "positive factor, or 0 to some")  # fmt: skip
        self.normalisation, self.classes = normalisation, tuple(classes)
        self._evaluate, self._store = evaluate, store or Store(None)
        self.evaluated: list[Any] = []
        self.origin = position(origin)
        self.anchors: tuple[Alpha, ...] = (self.origin,)
        if normalisation != "minmax":
            _ = self.normalisers
        elif self.origin == 0.0:
            self.anchors = self.samples
        else:
            raise ValueError("minmax scales by samples of one path, not of several patches")

    @classmethod
    def replay(cls, store: Store | None, names: Sequence[str], classes: Sequence[int],
               normalisation: str = "zero_shot", *, evaluate: Evaluate | None = None,
               weights: Sequence[float] | None = None,
               origin: Alpha = 0.0) -> PairObjective:  # fmt: skip
        """Return the objective of evaluations that are stored: no weights, no model, no torch.

        An alpha that is not stored goes to `evaluate`, with the names of the tasks missing there,
        for their `ImageScores`; without it, to a ValueError. `origin` is (0, 0) for two patches.
        """
        return cls(None, (), classes, normalisation, names=names, store=store, weights=weights,
                   evaluate=evaluate, origin=origin)  # fmt: skip

    @cached_property
    def normalisers(self) -> tuple[Normaliser, ...]:
        """The scale of each task; the first look evaluates the `anchors` that are not known."""
        scores = zip(*map(self.score, self.anchors), strict=True)  # by task
        return tuple(normaliser(self.normalisation, [score.loss for score in own], count)
                     for own, count in zip(scores, self.classes, strict=True))  # fmt: skip

    def __call__(self, alpha: Alpha) -> tuple[float, ...]:
        """Return the normalised, weighted loss of each task at `alpha`, if it is finite."""
        losses = [score.loss for score in self.score(alpha)]
        if not all(map(math.isfinite, losses)):
            raise ValueError(f"the loss at alpha = {alpha} is not finite: {losses}")
        parts = zip(self.weights, self.normalisers, losses, strict=True)
        return tuple(weight * scale(loss) for weight, scale, loss in parts)

    def score(self, alpha: Alpha) -> tuple[Score, ...]:
        """Return the raw score of each task at `alpha`."""
        return tuple(images.score for images in self.images(alpha))

    def images(self, alpha: Alpha) -> tuple[ImageScores, ...]:
        """Return what each image costs at `alpha`, per task."""
        alpha = position(alpha)
        found = {name: self._store.get(alpha, name) for name in self.names}
        if missing := [name for name, row in found.items() if row is None]:
            if self._evaluate is None:
                raise ValueError(f"task {missing[0]!r} is not stored at alpha = {alpha} in "
                                 f"{self._store.file}; evaluate it with the weights")  # fmt: skip
            fresh = dict(zip(missing, self._evaluate(alpha, missing), strict=True))
            self.evaluated.append(alpha)
            self._store.put(alpha, fresh)
            found |= fresh
        return tuple(row for row in found.values() if row is not None)

    @property
    def noise(self) -> float:
        """The standard deviation of what rounding adds to the sum, 0 in float32 and float64.

        In half precision the first look evaluates four alphas, 0.01 apart: their third difference
        has 20 times the variance of the noise, and hardly any of the curve. NaN without them.
        """
        if self.origin != 0.0 or max(images.eps for images in self.images(0.0)) <= HALF:
            return 0.0
        if self._evaluate is None and not all(map(self.known, CLOSE)):
            return math.nan
        values = np.array([self(alpha) for alpha in CLOSE])
        return float(np.sqrt((np.diff(values, 3, axis=0) ** 2).sum() / 20))

    def known(self, alpha: Alpha) -> bool:
        """Return whether `alpha` costs nothing."""
        rows = (self._store.get(position(alpha), name) for name in self.names)
        return all(row is not None for row in rows)


def _confirm(store: Store, path: Any, tasks: Mapping[str, TaskLoss], origin: Any) -> None:
    """Refuse a store of other weights, or of tasks that cost otherwise at the origin."""
    if not store.key or "start" in store.key:  # else the user's own key tells
        start, *ends = path.digests
        store.claim({"start": start, "end": " ".join(ends)})
    for name in store.unconfirmed & tasks.keys():
        if (kept := store.get(position(origin), name)) is not None:
            path.set_(tasks[name].model, origin)
            tasks[name].confirm(kept, store.file)
        store.unconfirmed.discard(name)
