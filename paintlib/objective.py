"""The sum of two tasks' normalised losses along a path: evaluated once, kept, or replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paintlib.normalisation import normaliser

if TYPE_CHECKING:
    from paintlib.interpolation import WeightPath
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


Evaluate = Callable[[float, Sequence[str]], Sequence[ImageScores]]


def same_images(task: str, alpha: float, known: str, digest: str) -> None:
    """Refuse images that are not those of the other alphas, or not in their order."""
    if known and digest and known != digest:
        raise ValueError(f"task {task!r} has other images at alpha = {alpha} than before, or the "
                         f"same in another order; {SAME_IMAGES}")  # fmt: skip


class PairObjective:
    """The objective of the paper, (1.3) eq-objective: normalised losses of two tasks at alpha.

    The first visit of an alpha writes w(alpha) into the model, and adds it to `evaluated`; none is
    evaluated twice. `normalisers` are the scales of the tasks.

    Args:
        path: the weights.
        tasks: one `TaskLoss` per task (any number works; the paper has two), on one model.
        classes: number of classes per task.
        normalisation: one of `NORMALISATIONS`; its scale takes an evaluation at alpha = 0, or at
            all of `samples` for `minmax`.
        names: what the tasks are called in the store; "0", "1", ... by default.
        store: where evaluations are looked up and kept, those of each task by themselves.

    Raises:
        ValueError: the normalisation, classes or names do not fit, or the models differ.
    """

    samples = tuple(i / 20 for i in range(21))  # the exhaustive search's set the scale of minmax

    def __init__(self, path: WeightPath, tasks: Sequence[TaskLoss], classes: Sequence[int],
                 normalisation: str = "zero_shot", *, names: Sequence[str] | None = None,
                 store: Store | None = None) -> None:  # fmt: skip
        by_name = dict(zip(names or map(str, range(len(tasks))), tasks, strict=False))
        if not len(by_name) == len(tasks) == len(names or tasks):
            raise ValueError(f"{len(tasks)} tasks but the names {names}; give each task its own")
        if len({id(task.model) for task in tasks}) != 1:
            raise ValueError("the tasks must share one model: the one the path writes into")

        repeated: set[str] = set()

        def evaluate(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
            path.set_(tasks[0].model, alpha)
            rows = []
            for name in missing:
                rows.append(by_name[name].evaluate())
                if name not in repeated:
                    by_name[name].repeat(rows[-1])
                    repeated.add(name)
            return rows

        self._begin(evaluate, store, list(by_name), classes, normalisation)

    @classmethod
    def replay(cls, store: Store | None, names: Sequence[str], classes: Sequence[int],
               normalisation: str = "zero_shot", *,
               evaluate: Evaluate | None = None) -> PairObjective:  # fmt: skip
        """Return the objective of evaluations that are stored: no weights, no model, no torch.

        An alpha that is not stored goes to `evaluate`, with the names of the tasks missing there,
        for their `ImageScores` in that order. Without it, such an alpha raises ValueError.
        """
        objective = cls.__new__(cls)
        objective._begin(evaluate, store, names, classes, normalisation)
        return objective

    def _begin(self, evaluate: Evaluate | None, store: Store | None, names: Sequence[str],
               classes: Sequence[int], normalisation: str) -> None:  # fmt: skip
        if len(names) != len(classes):
            raise ValueError(f"{len(names)} tasks but {len(classes)} class counts")
        self.names, self.normalisation = tuple(names), normalisation
        self.evaluated: list[float] = []
        self._evaluate, self._store = evaluate, store
        self._digests: dict[str, str] = {}
        self._visited: dict[float, tuple[ImageScores, ...]] = {}
        alphas = self.samples if normalisation == "minmax" else (0.0,)
        curves = zip(*([s.loss for s in self.score(alpha)] for alpha in alphas), strict=True)
        pairs = zip(curves, classes, strict=True)
        self.normalisers = tuple(normaliser(normalisation, *pair) for pair in pairs)

    def __call__(self, alpha: float) -> tuple[float, ...]:
        """Return the normalised loss of each task at `alpha`, if it is finite."""
        losses = [score.loss for score in self.score(alpha)]
        if not all(map(math.isfinite, losses)):
            raise ValueError(f"the loss at alpha = {alpha} is not finite: {losses}")
        return tuple(n(loss) for n, loss in zip(self.normalisers, losses, strict=True))

    def score(self, alpha: float) -> tuple[Score, ...]:
        """Return the raw score of each task at `alpha`."""
        return tuple(images.score for images in self.images(alpha))

    def images(self, alpha: float) -> tuple[ImageScores, ...]:
        """Return what each image costs at `alpha`, per task."""
        alpha = float(alpha)
        if alpha not in self._visited:
            found = self._stored(alpha)
            if missing := [name for name in self.names if name not in found]:
                if self._evaluate is None:
                    what = f"task {missing[0]!r} is not stored at alpha = {alpha}"
                    file = self._store and self._store.file
                    raise ValueError(f"{what} in {file}; evaluate it with the weights")
                fresh = dict(zip(missing, self._evaluate(alpha, missing), strict=True))
                self.evaluated.append(alpha)
                for name, row in (found | fresh).items():
                    same_images(name, alpha, self._digests.setdefault(name, row.digest), row.digest)
                if self._store is not None:
                    self._store.put(alpha, fresh)
                found |= fresh
            self._visited[alpha] = tuple(found[name] for name in self.names)
        return self._visited[alpha]

    @property
    def noise(self) -> float:
        """The standard deviation of what rounding adds to the sum, 0 in float32 and float64.

        In half precision the rounded weights of close alphas differ at random. So the first look
        evaluates four alphas, 0.01 apart around the middle: their third difference has 20 times
        the variance of the noise, and all but nothing of the curve. NaN if they are not stored.
        """
        if max(images.eps for images in self.images(0.0)) <= HALF:
            return 0.0
        if self._evaluate is None and not all(map(self.known, CLOSE)):
            return math.nan
        values = np.array([self(alpha) for alpha in CLOSE])
        return float(np.sqrt((np.diff(values, 3, axis=0) ** 2).sum() / 20))

    def known(self, alpha: float) -> bool:
        """Return whether `alpha` costs nothing."""
        return float(alpha) in self._visited or len(self._stored(alpha)) == len(self.names)

    def _stored(self, alpha: float) -> dict[str, ImageScores]:
        rows = {name: self._store.get(alpha, name) for name in self.names if self._store}
        return {name: row for name, row in rows.items() if row is not None}
