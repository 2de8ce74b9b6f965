"""Evaluations on disk: what a search has paid for survives a kill, and can be replayed anywhere."""

import glob
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paintlib.files import replacing
from paintlib.objective import SAME_IMAGES, Alpha, ImageScores, position

try:
    import fcntl
except ImportError:  # Windows: a file is whole there too, but only one process may write it
    fcntl = None  # type: ignore[assignment]

__all__ = ["Store"]

SAME = 1e-9  # alphas closer than this are one: another processor repeats a root to rounding only
FIELDS = ("alphas", "losses", "correct")


class Store:
    """Evaluations of several tasks along one path, in one file that is whole at any time.

    Each `put` reads the file again, adds to it, and replaces it, under a lock: a kill loses only
    the evaluation under way, two processes may write at once, and equal content gives equal bytes.
    For `numpy.load` it holds `key`, a JSON string, and per task `NAME.alphas (k,)` or, of several
    patches, `(k, patches)`, `NAME.losses (k, images)` and `NAME.correct (k, images)`; where known,
    `NAME.digest`, of the images in their order, and `NAME.eps`, if coarser than float32.

    The first `put` makes `file`, an `.npz`, with its folder, if it is `writable`; otherwise it must
    exist, and what is put stays in memory, as it does without a file. `key` says what was
    evaluated: digests of both ends (`WeightPath.digests`) and of the data, the precision and so on;
    without, the file's is taken, or the digests of the ends of the objective that uses it.

    Raises:
        ValueError: the file is damaged, no store, or of another key.
        FileNotFoundError: the file is missing, and not to be made.
    """

    def __init__(self, file: Path | str | None, key: Mapping[str, str] | None = None, *,
                 writable: bool = True) -> None:  # fmt: skip
        self.file, self.key = Path(file or "memory"), dict(key or {})
        self.on_disk = file is not None
        self._writable = writable and self.on_disk
        self._rows: dict[str, dict[Any, ImageScores]] = {}
        if file is not None:
            self._read()
        self.unconfirmed = {*self._rows}  # tasks whose images nobody has compared with the file's

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, sorted."""
        return tuple(sorted(self._rows))

    def alphas(self, task: str) -> tuple[Any, ...]:
        """Return where `task` is evaluated, ascending; nothing if it is unknown."""
        return tuple(sorted(self._rows.get(task, ())))

    def get(self, alpha: Alpha, task: str) -> ImageScores | None:
        """Return what is stored of `task` at `alpha`, or within 1e-9 of it; else None."""
        rows = self._rows.get(task, {})
        if alpha in rows:
            return rows[alpha]
        nearest = min(rows, key=lambda stored: _distance(stored, alpha), default=math.inf)
        return rows[nearest] if _distance(nearest, alpha) <= SAME else None

    def put(self, alpha: Alpha, scores: Mapping[str, ImageScores]) -> None:
        """Keep what the images of some tasks cost at `alpha`; what is there already stays."""
        if not np.isfinite(alpha).all():
            raise ValueError(f"alpha = {alpha} is not a finite number")
        if not self._writable:
            return self._add(alpha, scores)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_name(f"{self.file.name}.lock").open("w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # dropped when the file is closed, or we are gone
                for left in self.file.parent.glob(f".????????-{glob.escape(self.file.name)}"):
                    left.unlink()  # by a writer that was killed
            self._read()
            self._add(alpha, scores)
            self._write()

    def _add(self, alpha: Alpha, scores: Mapping[str, ImageScores]) -> None:
        alpha = position(alpha)
        for task, row in scores.items():
            rows, correct = self._rows.get(task, {}), np.array(row.correct)
            correct = correct.astype("<f8" if correct.dtype.kind == "f" else bool)
            row = ImageScores(np.array(row.losses, "<f8"), correct, row.digest, row.eps)
            place, other = next(iter(rows.items()), (alpha, row))
            images, remedy = len(other.losses), f"in {self.file}; use another file"
            if np.shape(place) != np.shape(alpha):
                raise ValueError(f"alpha = {alpha}, but {place} is {remedy}")
            if not row.losses.shape == correct.shape == (images,):
                said = f"losses {row.losses.shape} and hits {correct.shape} at alpha = {alpha}"
                raise ValueError(f"task {task!r} has {said}, but {images} images are {remedy}")
            known = max((old.digest for old in rows.values()), default="")
            if known and row.digest and known != row.digest:
                said = f"task {task!r} has other images at alpha = {alpha} than before"
                raise ValueError(f"{said}, or the same in another order; {SAME_IMAGES}")
            self._rows[task] = {alpha: row, **rows}

    def _read(self) -> None:
        if self._writable and not self.file.exists():
            return
        found = []
        with self.file.open("rb") as file:  # np.load leaves a damaged one open
            try:
                content = np.load(file, allow_pickle=False)
                key = dict(json.loads(content["key"].item()))
                for task in {name.rpartition(".")[0] for name in content if name != "key"}:
                    rows = zip(*(content[f"{task}.{name}"] for name in FIELDS), strict=True)
                    names = [n for n in ("digest", "eps") if f"{task}.{n}" in content]
                    more = {name: content[f"{task}.{name}"].item() for name in names}
                    found += [(a, {task: ImageScores(*row, **more)}) for a, *row in rows]
            except Exception as error:  # whatever reading a damaged zip may raise
                raise ValueError(f"{self.file} is damaged, or no store; delete it") from error
        self._compare(key, self.key or key)
        self.key = key
        for alpha, scores in found:
            self._add(alpha, scores)

    def claim(self, key: Mapping[str, str]) -> None:
        """Take `key` as what is evaluated, where there is none; ValueError if the file has another.

        A key without its fields is the user's own, and stays.
        """
        if self.key or self._rows:
            common = key.keys() & self.key.keys() if self.key else key.keys()
            return self._compare({f: self.key.get(f) for f in common}, {f: key[f] for f in common})
        self.key = dict(key)

    def _compare(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for field in sorted(f for f in {*ours, *theirs} if theirs.get(f) != ours.get(f)):
            said = f"with {field} = {theirs.get(field)!r}, not {ours.get(field)!r}"
            remedy = "delete it, or give these another file"
            raise ValueError(f"{self.file} holds evaluations {said}; {remedy}")

    def _write(self) -> None:
        arrays = {"key": np.array(json.dumps(self.key, sort_keys=True))}
        for task in self.tasks:
            own = self._rows[task]
            rows = [(alpha, *own[alpha][:2]) for alpha in self.alphas(task)]
            # unknown and float32 are left out: a file of before stays as it was
            if digest := max(row.digest for row in own.values()):
                arrays[f"{task}.digest"] = np.array(digest)
            if (eps := max(row.eps for row in own.values())) > np.finfo("f4").eps:
                arrays[f"{task}.eps"] = np.array(eps)
            for name, column in zip(FIELDS, zip(*rows, strict=True), strict=True):
                values = np.array(column)
                lossless = name == "losses" and (values == values.astype("<f4")).all()
                arrays[f"{task}.{name}"] = values.astype("<f4") if lossless else values
        with replacing(self.file) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _distance(first: Alpha, second: Alpha) -> float:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second)  # at a twentieth of the time
    same = np.shape(first) == np.shape(second)
    return float(np.abs(np.subtract(first, second)).max()) if same else math.inf
