"""Pixels on their way to the model: decoded once into a memory-mapped cache, read in batches.

A picture is decoded and resized once per data set. What is stored are the uint8 pixels of the
square that the model sees, so that every alpha, pair and later run reads them as they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as V

from experiment.profiles import Standard
from experiment.tasks import Split

Fit = Literal["crop", "squash"]  # to evaluate: shorter side, centre; to train: the whole picture

Pixels: TypeAlias = np.memmap[Any, np.dtype[Any]]

_PIXELS = ("images", "sizes")
_FLUSH = 4096  # pictures between two notes of how far decoding has come


class Pictures(Protocol):
    """Pictures of one split as they lie on disk, see `experiment.real.datasets.open_split`."""

    @property
    def labels(self) -> Tensor: ...  # noqa: D102

    @property
    def identity(self) -> str: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...


@lru_cache
def _constants(standard: Standard, device: torch.device) -> tuple[Tensor, Tensor]:
    # made once: moving them to a GPU for each batch would wait for the one before
    with torch.inference_mode(False):
        mean, std = (torch.tensor(row, device=device).view(3, 1, 1) for row in standard)
        return mean, std


def standardise(images: Tensor, standard: Standard) -> Tensor:
    """Return images `(n, 3, height, width)` of range 0..255 as the floats the model reads."""
    mean, std = _constants(standard, images.device)
    return (images.float() / 255 - mean) / std


def choose(pictures: Pictures, limit: int | None) -> list[int]:
    """Return which pictures of a split are used: all, or `limit` of them drawn with seed 0."""
    if limit is None or limit >= len(pictures):
        return list(range(len(pictures)))
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(len(pictures), generator=generator)[:limit].tolist()


@dataclass(frozen=True)
class Cache:
    """Decoded pictures of one split in a folder of their own.

    Args:
        folder: the folder of all caches.
        pictures: what to decode.
        rows: which of them.
        size: height and width to store.
        fit: `crop` resizes the shorter side and cuts out the centre, as CLIP is evaluated; `squash`
            keeps the whole picture, from which a training crop is drawn in its own proportions.
    """

    folder: Path
    pictures: Pictures
    rows: Sequence[int]
    size: int
    fit: Fit

    @property
    def key(self) -> str:
        """Return the name of the cache: a digest of the pictures and of what is done to them."""
        what = f"{self.pictures.identity} {self.fit} bicubic {self.size} {list(self.rows)}"
        return hashlib.sha256(what.encode()).hexdigest()[:24]

    @property
    def bytes(self) -> int:
        """Return the size of the stored pixels."""
        return len(self.rows) * 3 * self.size**2

    @property
    def ready(self) -> bool:
        """Say whether the pictures are decoded already."""
        return (self.folder / self.key).is_dir()

    def write(self, workers: int = 0) -> Iterator[int]:
        """Decode the pictures; a killed run goes on, a second process waits for the first.

        Args:
            workers: processes that decode; 0 decodes in this one.

        Yields:
            The number of pictures stored so far, to show the progress by.

        Raises:
            ValueError: a picture cannot be read, or the disk has not the room for all of them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / f"{self.key}.lock"):
            if not self.ready:
                yield from self._decode(workers)

    def _decode(self, workers: int) -> Iterator[int]:
        part, count = self.folder / f"{self.key}.part", len(self.rows)
        try:
            done = int((part / "done").read_text())
            images, sizes = (np.load(part / f"{n}.npy", mmap_mode="r+") for n in _PIXELS)
        except (OSError, ValueError, EOFError):
            done, (images, sizes) = 0, self._begin(part)
        source = _Resized(self.pictures, self.rows[done:], self.size, self.fit)
        batches = iter(torch.utils.data.DataLoader(source, 64, num_workers=workers))
        while done < count:
            try:
                batch, proportions = next(batches)
            except ValueError as error:  # a worker wraps the message in its traceback
                shutil.rmtree(part)  # the picture's successor will make it another cache
                raise ValueError(str(error).rpartition("ValueError: ")[2].strip()) from None
            images[done : done + len(batch)] = batch.numpy()
            sizes[done : done + len(batch)] = proportions.numpy()
            before, done = done, done + len(batch)
            if before // _FLUSH != done // _FLUSH:
                images.flush()
                sizes.flush()
                (part / "now").write_text(str(done))
                os.replace(part / "now", part / "done")
            yield done
        images.flush()
        sizes.flush()
        np.save(part / "labels.npy", self.pictures.labels[list(self.rows)].numpy())
        (part / "done").unlink(missing_ok=True)
        os.replace(part, self.folder / self.key)

    def _begin(self, part: Path) -> tuple[Pixels, Pixels]:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        count, side = len(self.rows), self.size
        try:
            if self.bytes > shutil.disk_usage(part).free:
                raise OSError(f"{shutil.disk_usage(part).free / 1e9:.1f} GB are left")
            images = np.lib.format.open_memmap(
                part / "images.npy", "w+", np.uint8, (count, 3, side, side)
            )
            if hasattr(os, "posix_fallocate"):  # else a full disk would kill a later write
                with (part / "images.npy").open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            sizes = np.lib.format.open_memmap(part / "sizes.npy", "w+", np.int32, (count, 2))
        except OSError as error:
            shutil.rmtree(part)
            raise ValueError(
                f"{self.folder} has no room for this split's {self.bytes / 1e9:.1f} GB ({error}); "
                "free some, or make that folder a link to one on a larger disk"
            ) from error
        return images, sizes


def load(folder: Path, key: str, squashed: bool = False) -> Split:
    """Return the split of a cache; its pixels stay on disk until they are read.

    Raises:
        ValueError: the cache is missing or damaged.
    """
    home = folder / key
    try:
        # copy on write: torch wants memory it may write to, and the file is left alone
        images, sizes = (np.load(home / f"{n}.npy", mmap_mode="c") for n in _PIXELS)
        labels = np.load(home / "labels.npy")
        if not len(images) == len(sizes) == len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"the decoded images in {home} cannot be read ({error}); delete that folder and decode "
            "them again"
        ) from error
    proportions = torch.from_numpy(np.asarray(sizes)) if squashed else None
    return Split(torch.from_numpy(np.asarray(images)), torch.from_numpy(labels), proportions)


@dataclass(frozen=True)
class Batches:
    """The batches of a split on a device, in order.

    On a GPU each batch is copied from pinned memory without waiting: the next one is read from disk
    while this one is computed.
    """

    split: Split
    size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 `(size, 3, height, width)` and labels int64 `(size,)`."""
        for images, labels in zip(
            self.split.images.split(self.size), self.split.labels.split(self.size), strict=True
        ):
            yield to_device(images, self.device), to_device(labels, self.device)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.split.labels) // self.size)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on `device`, copied without waiting where that is possible."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def random_resized_crop(images: Tensor, sizes: Tensor, seed: int) -> Tensor:
    """Cut a random box out of each squashed picture, as CLIP is fine-tuned (scale 0.9 to 1).

    The boxes are those that torchvision draws for a picture of the original proportions: squashing
    first and cutting then is one affine map, so it can be done on the device, batch by batch.

    Args:
        images: uint8 `(n, 3, side, side)`, squashed.
        sizes: `(n, 2)`, width and height of each picture before.
        seed: decides the boxes.

    Returns:
        Float `(n, 3, side, side)` of range 0..255.
    """
    theta = torch.empty(len(images), 2, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for row, (width, height) in zip(theta, sizes.tolist(), strict=True):
            shape = torch.empty(3, height, width, device="meta")
            top, left, h, w = RandomResizedCrop.get_params(shape, [0.9, 1.0], [3 / 4, 4 / 3])
            # in grid_sample's coordinates both the picture and the box run from -1 to 1
            row[0] = torch.tensor([w / width, 0.0, (2 * left + w) / width - 1])
            row[1] = torch.tensor([0.0, h / height, (2 * top + h) / height - 1])
    grid = F.affine_grid(to_device(theta, images.device), list(images.shape), align_corners=False)
    cropped = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return cropped.clamp_(0, 255)


class _Resized(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pictures decoded and resized, with their proportions before."""

    def __init__(self, pictures: Pictures, rows: Sequence[int], side: int, fit: Fit) -> None:
        self.pictures, self.rows, self.side, self.fit = pictures, rows, side, fit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = self.pictures[self.rows[index]]
        bicubic, side = V.InterpolationMode.BICUBIC, self.side
        if self.fit == "squash":
            square = V.resize(picture, [side, side], bicubic)
        else:
            square = V.center_crop(V.resize(picture, [side], bicubic), [side, side])
        return V.pil_to_tensor(square), torch.tensor(picture.size, dtype=torch.int32)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:  # the system drops the lock when this process is gone
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
