"""The sum of two tasks' normalised losses along a path, evaluated once, stored, or replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from numpy.typing import NDArray

from paintlib.normalisation import normaliser

if TYPE_CHECKING:
    import numpy as np

    from paintlib.interpolation import WeightPath
    from paintlib.losses import TaskLoss
    from paintlib.store import Store

__all__ = ["SAMPLES", "ImageScores", "PairObjective", "Score"]

SAMPLES = tuple(i / 20 for i in range(21))  # the exhaustive search's: they set the scale of minmax


class Score(NamedTuple):
    """Mean cross-entropy (nats per image), top-1 accuracy (fraction) and number of images."""

    loss: float
    accuracy: float
    images: int


class ImageScores(NamedTuple):
    """What each image of a task costs, in the order of its batches.

    Attributes:
        losses: cross-entropy of each image (nats), float64 `(images,)`.
        correct: whether the label has the largest logit, bool `(images,)`.
    """

    losses: NDArray[np.float64]
    correct: NDArray[np.bool_]

    @property
    def score(self) -> Score:
        """Return the means over the images."""
        return Score(float(self.losses.mean()), float(self.correct.mean()), len(self.losses))


Evaluate = Callable[[float, Sequence[str]], Sequence[ImageScores]]


class PairObjective:
    """The objective of the paper: normalised losses of a supported and a patching task at alpha.

    Calling it returns one normalised loss per task, whose sum is to be minimised. The first visit
    of an alpha writes w(alpha) into the model; what a visit has found is kept, so that no alpha is
    evaluated twice.

    Args:
        path: the weights.
        tasks: one `TaskLoss` per task (any number works; the paper has two), on one model.
        classes: number of classes per task.
        normalisation: one of `NORMALISATIONS`.
        names: what the tasks are called in the store; "0", "1", ... by default.
        store: where evaluations are looked up first, and kept. A task that is stored at an alpha
            is not evaluated there again, even if the other one is.
        samples: the alphas whose losses set the scale of `minmax`; the other kinds need only 0.

    Attributes:
        normalisation: the kind.
        normalisers: the scale of each task.
        samples: as given.
        names: as given.
        evaluated: the alphas at which this object had the model run, in order.

    Raises:
        ValueError: a normalisation is unknown or impossible; tasks, classes and names differ in
            number; the tasks do not share one model.
    """

    def __init__(
        self,
        path: WeightPath,
        tasks: Sequence[TaskLoss],
        classes: Sequence[int],
        normalisation: str = "zero_shot",
        *,
        names: Sequence[str] | None = None,
        store: Store | None = None,
        samples: Sequence[float] = SAMPLES,
    ) -> None:
        names = [str(i) for i in range(len(tasks))] if names is None else list(names)
        if len({id(task.model) for task in tasks}) != 1:
            raise ValueError("the tasks must share one model: the one the path writes into")
        if len(names) != len(tasks):
            raise ValueError(f"{len(tasks)} tasks but {len(names)} names")

        def evaluate(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
            path.set_(tasks[0].model, alpha)
            return [tasks[names.index(name)].evaluate() for name in missing]

        self._begin(evaluate, names, classes, normalisation, store, samples)

    @classmethod
    def replay(
        cls,
        store: Store,
        names: Sequence[str],
        classes: Sequence[int],
        normalisation: str = "zero_shot",
        *,
        evaluate: Evaluate | None = None,
        samples: Sequence[float] = SAMPLES,
    ) -> PairObjective:
        """Return the objective of evaluations that are stored: no weights, no model, no torch.

        Args:
            store: the evaluations.
            names: the tasks in the store.
            classes: number of classes per task.
            normalisation: one of `NORMALISATIONS`.
            evaluate: called with an alpha and the names of the tasks that are not stored there;
                returns their `ImageScores` in that order, which are put into the store.
            samples: as for the class.

        Raises:
            ValueError: as the class; and, from the objective and at once, where an alpha is needed
                that is not stored and there is no `evaluate`.
        """

        def refuse(alpha: float, missing: Sequence[str]) -> list[ImageScores]:
            raise ValueError(
                f"task {missing[0]!r} is not stored at alpha = {alpha} in {store.file}; this alpha "
                "has to be evaluated with the weights"
            )

        objective = cls.__new__(cls)
        objective._begin(evaluate or refuse, names, classes, normalisation, store, samples)
        return objective

    def _begin(
        self,
        evaluate: Evaluate,
        names: Sequence[str],
        classes: Sequence[int],
        normalisation: str,
        store: Store | None,
        samples: Sequence[float],
    ) -> None:
        if len(names) != len(classes):
            raise ValueError(f"{len(names)} tasks but {len(classes)} class counts")
        if len(set(names)) != len(names):
            raise ValueError(f"the tasks are called {', '.join(names)}; give each its own name")
        self.names, self.samples = tuple(names), tuple(float(alpha) for alpha in samples)
        self.normalisation, self.evaluated = normalisation, list[float]()
        self._evaluate, self._store = evaluate, store
        self._visited: dict[float, tuple[ImageScores, ...]] = {}
        alphas = self.samples if normalisation == "minmax" else (0.0,)
        curves = zip(*(self.score(alpha) for alpha in alphas), strict=True)
        self.normalisers = tuple(
            normaliser(normalisation, [score.loss for score in curve], count)
            for curve, count in zip(curves, classes, strict=True)
        )

    def __call__(self, alpha: float) -> tuple[float, ...]:
        """Return the normalised loss of each task at `alpha`.

        Raises:
            ValueError: a loss is not finite there.
        """
        losses = [score.loss for score in self.score(alpha)]
        if not all(map(math.isfinite, losses)):
            raise ValueError(f"the loss at alpha = {alpha} is not finite: {losses}")
        return tuple(n(loss) for n, loss in zip(self.normalisers, losses, strict=True))

    def score(self, alpha: float) -> tuple[Score, ...]:
        """Return the raw score of each task at `alpha`."""
        return tuple(images.score for images in self.images(alpha))

    def images(self, alpha: float) -> tuple[ImageScores, ...]:
        """Return what each image costs at `alpha`, per task; evaluate it on the first visit only.

        Raises:
            ValueError: `alpha` is not stored, and there is nothing to evaluate it with.
        """
        alpha = float(alpha)
        if alpha not in self._visited:
            found = self._stored(alpha)
            if missing := [name for name in self.names if name not in found]:
                fresh = dict(zip(missing, self._evaluate(alpha, missing), strict=True))
                self.evaluated.append(alpha)
                if self._store is not None:
                    self._store.put(alpha, fresh)
                found |= fresh
            self._visited[alpha] = tuple(found[name] for name in self.names)
        return self._visited[alpha]

    def known(self, alpha: float) -> bool:
        """Return whether `images(alpha)` costs nothing."""
        return float(alpha) in self._visited or len(self._stored(alpha)) == len(self.names)

    def _stored(self, alpha: float) -> dict[str, ImageScores]:
        if self._store is None:
            return {}
        rows = {name: self._store.get(alpha, name) for name in self.names}
        return {name: row for name, row in rows.items() if row is not None}
