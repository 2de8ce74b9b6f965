"""The sum of two tasks' normalised losses along a path: evaluated once, kept, or replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    "random augmentation (use a fixed transform) and dropout (model.eval())"
)


class Score(NamedTuple):
    """Mean cross-entropy (nats per image), top-1 accuracy (fraction) and number of images."""

    loss: float
    accuracy: float
    images: int


class _Images(NamedTuple):
    losses: NDArray[np.float64]
    correct: NDArray[np.bool_] | NDArray[np.float64]


class ImageScores(_Images):
    """Of each image of a task: its loss (nats, float64), and whether the label is on top.

    `correct` may be fractions, or nan where nobody knows. `digest` says which images they are, and
    in which order ("": unknown); `eps` is the precision they were computed in (0: unknown).
    """

    digest: str = ""
    eps: float = 0.0

    def __new__(cls, losses: NDArray[np.float64], correct: NDArray[Any],
                digest: str = "", eps: float = 0.0) -> ImageScores:  # fmt: skip
        """Return a pair of arrays that knows where it comes from."""
        images = super().__new__(cls, losses, correct)
        images.digest, images.eps = digest, eps
        return images

    @property
    def score(self) -> Score:
        """The means over the images."""
        return Score(float(self.losses.mean()), float(self.correct.mean()), len(self.losses))


Alpha = float | tuple[float, ...]  # one coefficient, or one for each of several patches
Evaluate = Callable[[Any, Sequence[str]], Sequence[ImageScores]]


def position(alpha: Any) -> Alpha:
    """Return `alpha` as it is kept: a float, or a tuple of floats for several patches."""
    return float(alpha) if np.ndim(alpha) == 0 else tuple(map(float, alpha))


def same_images(task: str, alpha: Alpha, known: str, digest: str) -> None:
    """Refuse images that are not those of the other alphas, or not in their order."""
    if known and digest and known != digest:
        raise ValueError(f"task {task!r} has other images at alpha = {alpha} than before, or the "
                         f"same in another order; {SAME_IMAGES}")  # fmt: skip


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
        store: where evaluations are looked up and kept, those of each task by themselves.
        weights: a factor of each task's normalised loss, 1 by default, 0 for a mere ceiling.

    Raises:
        ValueError: the normalisation, classes, names or weights do not fit, or the models differ.
    """

    samples = tuple(i / 20 for i in range(21))  # the exhaustive search's set the scale of minmax

    def __init__(self, path: WeightPath | WeightPatches, tasks: Sequence[TaskLoss],
                 classes: Sequence[int], normalisation: str = "zero_shot", *,
                 names: Sequence[str] | None = None, store: Store | None = None,
                 weights: Sequence[float] | None = None) -> None:  # fmt: skip
        by_name = dict(zip(names or map(str, range(len(tasks))), tasks, strict=False))
        if not len(by_name) == len(tasks) == len(names or tasks):
            raise ValueError(f"{len(tasks)} tasks but the names {names}; give each task its own")
        if len({id(task.model) for task in tasks}) != 1:
            raise ValueError("the tasks must share one model: the one the path writes into")
        fresh = set(by_name)  # not yet scored

        def evaluate(alpha: Any, missing: Sequence[str]) -> list[ImageScores]:
            path.set_(tasks[0].model, alpha)
            rows = []
            for name in missing:
                rows.append(by_name[name].evaluate())
                if name in fresh:
                    by_name[name].repeat(rows[-1])
            fresh.difference_update(missing)
            return rows

        origin = getattr(path, "origin", 0.0)
        self._begin(evaluate, store, list(by_name), classes, normalisation, weights, origin)

    @classmethod
    def replay(cls, store: Store | None, names: Sequence[str], classes: Sequence[int],
               normalisation: str = "zero_shot", *, evaluate: Evaluate | None = None,
               weights: Sequence[float] | None = None,
               origin: Alpha = 0.0) -> PairObjective:  # fmt: skip
        """Return the objective of evaluations that are stored: no weights, no model, no torch.

        An alpha that is not stored goes to `evaluate`, with the names of the tasks missing there,
        for their `ImageScores`; without it, to a ValueError. `origin` is (0, 0) for two patches.
        """
        objective = cls.__new__(cls)
        objective._begin(evaluate, store, names, classes, normalisation, weights, origin)
        return objective

    def _begin(self, evaluate: Evaluate | None, store: Store | None, names: Sequence[str],
               classes: Sequence[int], normalisation: str, weights: Sequence[float] | None,
               origin: Alpha) -> None:  # fmt: skip
        if len(names) != len(classes):
            raise ValueError(f"{len(names)} tasks but {len(classes)} class counts")
        self.weights = tuple(map(float, (1.0,) * len(names) if weights is None else weights))
        good = all(0 <= weight < math.inf for weight in self.weights) and any(self.weights)
        if len(self.weights) != len(names) or not good:
            raise ValueError(f"{len(names)} tasks but the weights {self.weights}; give each task a "
                             "positive factor, or 0 to some")  # fmt: skip
        self.names, self.normalisation, self._classes = tuple(names), normalisation, tuple(classes)
        self.evaluated: list[Any] = []
        self._evaluate, self._store = evaluate, store
        self._digests: dict[str, str] = {}
        self._visited: dict[Alpha, tuple[ImageScores, ...]] = {}
        self.origin = position(origin)
        self.anchors: tuple[Alpha, ...] = (self.origin,)
        if normalisation != "minmax":
            _ = self.normalisers
        elif self.origin == 0.0:
            self.anchors = self.samples
        else:
            raise ValueError("minmax scales by samples of one path, not of several patches")

    @cached_property
    def normalisers(self) -> tuple[Normaliser, ...]:
        """The scale of each task; the first look evaluates the `anchors` that are not known."""
        scores = zip(*map(self.score, self.anchors), strict=True)  # by task
        return tuple(normaliser(self.normalisation, [score.loss for score in own], count)
                     for own, count in zip(scores, self._classes, strict=True))  # fmt: skip

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
        if alpha in self._visited:
            return self._visited[alpha]
        found = self._stored(alpha)
        if missing := [name for name in self.names if name not in found]:
            if self._evaluate is None:
                file = self._store and self._store.file
                raise ValueError(f"task {missing[0]!r} is not stored at alpha = {alpha} in {file}; "
                                 "evaluate it with the weights")  # fmt: skip
            fresh = dict(zip(missing, self._evaluate(alpha, missing), strict=True))
            self.evaluated.append(alpha)
            found |= fresh
            for name, row in found.items():
                same_images(name, alpha, self._digests.setdefault(name, row.digest), row.digest)
            if self._store is not None:
                self._store.put(alpha, fresh)
        self._visited[alpha] = tuple(found[name] for name in self.names)
        return self._visited[alpha]

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
        alpha = position(alpha)
        return alpha in self._visited or len(self._stored(alpha)) == len(self.names)

    def _stored(self, alpha: Alpha) -> dict[str, ImageScores]:
        rows = {name: self._store.get(alpha, name) for name in self.names if self._store}
        return {name: row for name, row in rows.items() if row is not None}
