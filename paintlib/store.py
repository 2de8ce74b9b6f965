"""Evaluations on disk: what a search has paid for survives a kill, and can be replayed anywhere."""

import contextlib
import glob
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from paintlib.files import replacing
from paintlib.objective import ImageScores

try:
    import fcntl
except ImportError:  # Windows: a file is whole there too, but only one process may write it
    fcntl = None  # type: ignore[assignment]

__all__ = ["Store", "replacing"]

SAME = 1e-9  # alphas closer than this are one: another processor repeats a root to rounding only
FIELDS = ("alphas", "losses", "correct")


class Store:
    """Evaluations of several tasks along one path, in one file that is whole at any time.

    Each `put` reads the file again, adds to it, and replaces it, under a lock: a kill loses
    nothing but the evaluation under way, and two processes may write at once. Equal content gives
    equal bytes, in whatever order it was evaluated. The file holds `key`, a JSON string, and for
    each task `NAME.alphas (k,)`, `NAME.losses (k, images)` and `NAME.correct (k, images)`.

    Args:
        file: the `.npz`; the first `put` makes it, with its folder.
        key: says what was evaluated: digests of both ends (`WeightPath.digests`) and of the data,
            the precision, whatever tells one set of evaluations from another. None takes the
            file's.
        writable: otherwise the file must exist, and what is put stays in memory.

    Raises:
        ValueError: the file is damaged, no store, or of another key.
        FileNotFoundError: the file is missing, and not to be made.
    """

    def __init__(
        self, file: Path | str, key: Mapping[str, str] | None = None, *, writable: bool = True
    ) -> None:
        self.file, self._writable = Path(file), writable
        self._key = None if key is None else dict(key)
        self._rows: dict[str, dict[float, ImageScores]] = {}
        if not writable and not self.file.exists():
            raise FileNotFoundError(f"{self.file} is missing; evaluations with the weights make it")
        self._read()

    @property
    def key(self) -> dict[str, str]:
        """What was evaluated, as given or as the file says."""
        return dict(self._key or {})

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, sorted."""
        return tuple(sorted(self._rows))

    def alphas(self, task: str) -> tuple[float, ...]:
        """Return where `task` is evaluated, ascending; nothing if it is unknown."""
        return tuple(sorted(self._rows.get(task, ())))

    def get(self, alpha: float, task: str) -> ImageScores | None:
        """Return what is stored of `task` at `alpha`, or within 1e-9 of it; else None."""
        rows = self._rows.get(task, {})
        nearest = min(rows, key=lambda stored: abs(stored - alpha), default=math.inf)
        return rows[nearest] if abs(nearest - alpha) <= SAME else None

    def put(self, alpha: float, scores: Mapping[str, ImageScores]) -> None:
        """Keep what the images of some tasks cost at `alpha`; what is there already stays.

        Raises:
            ValueError: `alpha` is not finite, a task has another number of images than before, or
                the file was damaged or replaced since.
        """
        if not math.isfinite(alpha):
            raise ValueError(f"alpha = {alpha} is not a finite number")
        with self._locked() if self._writable else contextlib.nullcontext():
            if self._writable:
                self._read()
            for task, row in scores.items():
                self._add(task, float(alpha), row)
            if self._writable:
                self._write()

    def _add(self, task: str, alpha: float, row: ImageScores) -> None:
        row = ImageScores(np.array(row.losses, "<f8"), np.array(row.correct, bool))
        rows = self._rows.get(task, {})
        images = len(next(iter(rows.values()), row).losses)
        if not row.losses.shape == row.correct.shape == (images,):
            raise ValueError(
                f"task {task!r} has losses {row.losses.shape} and hits {row.correct.shape} at "
                f"alpha = {alpha}, but {images} images elsewhere in {self.file}; use another file"
            )
        self._rows[task] = {alpha: row, **rows}

    def _read(self) -> None:
        if not self.file.exists():
            return
        found = []
        try:
            # np.load leaves a damaged file open unless it is opened here
            with self.file.open("rb") as file, np.load(file, allow_pickle=False) as content:
                key = dict(json.loads(content["key"].item()))
                for task in {name.rpartition(".")[0] for name in content if name != "key"}:
                    columns = (content[f"{task}.{name}"] for name in FIELDS)
                    for alpha, *row in zip(*columns, strict=True):
                        found.append((task, float(alpha), ImageScores(*row)))
        except Exception as error:  # whatever reading a damaged zip may raise
            raise ValueError(
                f"{self.file} is damaged, or no store of evaluations ({error}); delete it"
            ) from error
        ours = key if self._key is None else self._key
        for field in sorted(ours.keys() | key.keys()):
            if ours.get(field) != key.get(field):
                raise ValueError(
                    f"{self.file} holds evaluations with {field} = {key.get(field)!r}, not "
                    f"{ours.get(field)!r}; delete it, or give these another file"
                )
        self._key = key
        for entry in found:
            self._add(*entry)

    def _write(self) -> None:
        arrays = {"key": np.array(json.dumps(self.key, sort_keys=True))}
        for task in self.tasks:
            rows = [(alpha, *self._rows[task][alpha]) for alpha in self.alphas(task)]
            for name, column in zip(FIELDS, zip(*rows, strict=True), strict=True):
                arrays[f"{task}.{name}"] = np.array(column)
        with replacing(self.file) as part, zipfile.ZipFile(part, "w") as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array, allow_pickle=False)
                about = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed
                archive.writestr(about, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=6)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers of the file out, and sweep up what killed ones have left."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_name(f"{self.file.name}.lock").open("w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # dropped when the file is closed, or we are gone
                for left in self.file.parent.glob(f".????????-{glob.escape(self.file.name)}"):
                    left.unlink()
            yield
