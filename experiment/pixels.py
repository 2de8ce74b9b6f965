"""Pixels on their way to the model: decoded once into a memory-mapped cache, read in batches.

What is stored are the uint8 pixels of the square that the model sees.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as V

from experiment.profiles import Standard
from experiment.tasks import Split
from paintlib.files import replacing

if TYPE_CHECKING:
    from experiment.real.datasets import Pictures

Fit = Literal["crop", "squash"]  # to evaluate: shorter side, centre; to train: the whole picture
_FLUSH = 4096  # pictures, of batches of 64, between two notes of how far decoding has come


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


def choose(pictures: Pictures, limit: int | None, balanced: bool = False) -> list[int]:
    """Return which pictures of a split are used: all, or `limit` of them drawn with seed 0.

    With `balanced`, classes that have enough pictures differ by one picture at most.
    """
    if limit is None or limit >= len(pictures):
        return list(range(len(pictures)))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pictures), generator=generator)
    if balanced:  # the first picture of each class in that order, then the second of each
        labels, by_class = pictures.labels[order].sort(stable=True)
        turn = torch.empty_like(by_class)
        turn[by_class] = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
        order = order[turn.argsort(stable=True)]
    return order[:limit].tolist()


@dataclass(frozen=True)
class Cache(Dataset[tuple[Tensor, Tensor]]):
    """Decoded pictures of one split, of `rows` alone, in a folder of their own below `folder`.

    `crop` cuts out the centre, as CLIP is evaluated; `squash` keeps the whole picture, from which a
    training crop is drawn in its own proportions.
    """

    folder: Path
    pictures: Pictures
    rows: Sequence[int]
    size: int
    fit: Fit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Decode one picture: its pixels, and its width and height before."""
        picture = self.pictures[self.rows[index]]
        square = [self.size, self.size]
        shape = square if self.fit == "squash" else [self.size]  # of the shorter side
        resized = V.resize(picture, shape, InterpolationMode.BICUBIC)
        pixels = V.pil_to_tensor(V.center_crop(resized, square))
        return pixels, torch.tensor(picture.size, dtype=torch.int32)

    @cached_property
    def key(self) -> str:
        """Return the name of the cache: a digest of the pictures and of what is done to them."""
        content = f"{self.pictures.identity} {self.pictures.digest(self.rows)}"
        what = f"{content} {self.fit} bicubic {self.size} {list(self.rows)}"
        return hashlib.sha256(what.encode()).hexdigest()[:24]

    @property
    def bytes(self) -> int:
        return len(self) * 3 * self.size**2

    @property
    def ready(self) -> bool:
        return (self.folder / self.key).is_dir()

    def write(self, workers: int = 0) -> Iterator[int]:
        """Decode the pictures, by `workers` processes or this one; yield how many are stored.

        A killed run goes on, a second process waits for the first. ValueError: a picture is broken
        or the disk has not the room.
        """
        part = self.folder / f"{self.key}.part"
        with FileLock(self.folder / f"{self.key}.lock"):
            if self.ready:
                return
            try:
                done, (images, sizes) = int((part / "done").read_text()), _mapped(part, "r+")
            except (OSError, ValueError, EOFError):  # nothing whole is there to go on from
                self._begin(part)
                done, (images, sizes) = 0, _mapped(part, "r+")
            rest = DataLoader(Subset(self, range(done, len(self))), 64, num_workers=workers)
            try:
                for squares, proportions in rest:
                    begin, done = done, done + len(squares)
                    images[begin:done], sizes[begin:done] = squares, proportions
                    if done % _FLUSH == 0 or done == len(self):
                        images.flush()
                        sizes.flush()
                        with replacing(part / "done") as note:
                            note.write_text(str(done))
                    yield done
            except ValueError as error:  # a worker wraps the message in its traceback
                error.__traceback__ = None  # or the workers would end in 5 seconds each
                shutil.rmtree(part)  # the picture's successor will make it another cache
                raise ValueError(str(error).rpartition("ValueError: ")[2].strip()) from None
            np.save(part / "labels.npy", self.pictures.labels[list(self.rows)].numpy())
            os.replace(part, self.folder / self.key)

    def _begin(self, part: Path) -> None:
        """Make room for all pictures: a disk that filled up later would kill the process."""
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        make, count, side = np.lib.format.open_memmap, len(self), self.size
        try:
            make(part / "images.npy", "w+", np.uint8, (count, 3, side, side))
            make(part / "sizes.npy", "w+", np.int32, (count, 2))
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with (part / "images.npy").open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        except OSError as error:
            shutil.rmtree(part)
            raise ValueError(
                f"{self.folder} has no room for this split's {self.bytes / 1e9:.1f} GB ({error}); "
                "free some, or make that folder a link to one on a larger disk"
            ) from error


def _mapped(home: Path, mode: Literal["r+", "c"]) -> tuple[Any, Any]:
    images, sizes = (np.load(home / f"{name}.npy", mmap_mode=mode) for name in ("images", "sizes"))
    return images, sizes


def load(folder: Path, key: str, squashed: bool = False) -> Split:
    """Return the split of a cache; its pixels stay on disk until they are read."""
    home = folder / key
    try:
        # copy on write: torch wants memory it may write to, and the file is left alone
        images, sizes = _mapped(home, "c")
        labels = np.load(home / "labels.npy")
        if not len(images) == len(sizes) == len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"the decoded images in {home} cannot be read ({error}); "
            "delete that folder and decode them again"
        ) from error
    images, sizes, labels = map(torch.from_numpy, (images, sizes, labels))
    return Split(images, labels, sizes if squashed else None)


@dataclass(frozen=True)
class Batches:
    """The batches of a split on a device, in order: uint8 images and int64 labels.

    A GPU gets the next batch, from pinned memory, while it computes this one.
    """

    split: Split
    size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        columns = (column.split(self.size) for column in self.split[:2])
        for images, labels in zip(*columns, strict=True):
            yield to_device(images, self.device), to_device(labels, self.device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on `device`, copied without waiting where that is possible."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def random_resized_crop(images: Tensor, sizes: Tensor, seed: int) -> Tensor:
    """Cut a random box out of each squashed picture, as CLIP is fine-tuned (scale 0.9 to 1).

    The boxes, by `seed`, are those that torchvision draws for a picture of the original `sizes`
    `(n, 2)`. Squashing and cutting is one affine map, so it is done on the device. The result has
    the same shape and range, 0..255, in floats.
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
