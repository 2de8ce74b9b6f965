import errno
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as V

from experiment import pixels
from experiment.pixels import Batches, Cache, standardise
from experiment.profiles import Standard
from experiment.tasks import Split

SIDE = 32
CLIP = Standard((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Drawn:
    """Smooth pictures of several proportions; `broken` is the index that cannot be read."""

    def __init__(self, count: int = 10, broken: int = -1, pause: float = 0.0) -> None:
        self.labels = torch.arange(count) % 3
        self.identity = hashlib.sha256(b"drawn %d" % count).hexdigest()
        self.broken, self.pause, self.read = broken, pause, 0

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self, rows) -> str:
        return hashlib.sha256(str(list(rows)).encode()).hexdigest()

    def __getitem__(self, index: int) -> Image.Image:
        time.sleep(self.pause)
        self.read += 1
        if index == self.broken:
            raise ValueError(f"picture_{index}.jpg is damaged")
        width, height = ((80, 60), (60, 90), (50, 50))[index % 3]
        x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 3, height))
        waves = [np.sin(x + index), np.cos(y), np.sin(x * y / 3 + index)]
        return Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8))


def cache(folder: Path, pictures: Drawn, fit: pixels.Fit = "crop", rows=None) -> Cache:
    return Cache(folder, pictures, list(rows or range(len(pictures))), SIDE, fit)


def test_cached_pixels_are_those_open_clip_evaluates(tmp_path):
    pictures = Drawn()
    stored = cache(tmp_path, pictures)
    assert list(stored.write()) == [10] and stored.ready
    split = pixels.load(tmp_path, stored.key)
    transform = open_clip.image_transform(SIDE, is_train=False)
    expected = torch.stack([transform(pictures[i]) for i in range(10)])
    torch.testing.assert_close(standardise(split.images, CLIP), expected)
    assert torch.equal(split.labels, pictures.labels) and split.sizes is None


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_decoding_goes_on_where_it_stopped(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pixels, "_FLUSH", 64)
    killed, again = cache(tmp_path, Drawn(150)), cache(tmp_path, Drawn(150))
    whole = cache(tmp_path / "whole", Drawn(150))
    steps = killed.write(workers)
    assert next(steps) == 64
    steps.close()
    assert not killed.ready and (tmp_path / f"{killed.key}.part" / "done").read_text() == "64"
    assert list(again.write()) == [128, 150] and again.pictures.read == 86
    list(whole.write(workers))
    for name in ("images", "sizes", "labels"):
        files = [np.load(c.folder / c.key / f"{name}.npy") for c in (again, whole)]
        assert np.array_equal(*files)
    assert not (tmp_path / f"{killed.key}.part").exists()


def _write(folder: Path, queue) -> None:
    stored = cache(folder, Drawn(20, pause=0.02))
    list(stored.write())
    queue.put(stored.pictures.read)


def test_second_process_waits_and_decodes_nothing(tmp_path):
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    both = [fork.Process(target=_write, args=(tmp_path, queue)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(queue.get(timeout=30) for _ in both) == [0, 20]
    for process in both:
        process.join()
    assert len(pixels.load(tmp_path, cache(tmp_path, Drawn(20)).key).labels) == 20


def test_key_follows_pictures_rows_size_and_fit(tmp_path):
    pictures = Drawn()
    caches = [
        cache(tmp_path, pictures),
        cache(tmp_path, Drawn(9)),
        cache(tmp_path, pictures, "squash"),
        cache(tmp_path, pictures, rows=[1, 0]),
        Cache(tmp_path, pictures, list(range(10)), 64, "crop"),
    ]
    assert len({c.key for c in caches}) == 5
    assert caches[0].key == cache(tmp_path / "elsewhere", Drawn()).key


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_picture_is_named_and_leaves_nothing(tmp_path, workers):
    stored = cache(tmp_path, Drawn(broken=7))
    with pytest.raises(ValueError, match=r"^picture_7\.jpg is damaged$"):
        list(stored.write(workers))
    assert not stored.ready and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("lost", ["done", "images.npy"])
def test_unreadable_beginning_is_begun_again(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(pixels, "_FLUSH", 64)
    killed = cache(tmp_path, Drawn(150))
    steps = killed.write()
    next(steps)
    steps.close()
    (tmp_path / f"{killed.key}.part" / lost).write_text("")
    again = cache(tmp_path, Drawn(150))
    list(again.write())
    assert again.pictures.read == 150 and again.ready


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"),
    reason="macOS cannot reserve space, so there a full disk shows only while it is written to",
)
def test_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    def full(_file, start, size):
        assert (start, size) == (0, 128 + 10 * 3 * SIDE**2)  # header and pixels
        raise OSError(errno.ENOSPC, "No space left on device")

    stored = cache(tmp_path, Drawn())
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match="has no room for .*No space left.* make that folder a li"):
        list(stored.write())
    assert stored.pictures.read == 0 and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["images", "labels"])
def test_truncated_cache_is_refused(tmp_path, name):
    stored = cache(tmp_path, Drawn())
    list(stored.write())
    file = tmp_path / stored.key / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read .* delete that folder"):
        pixels.load(tmp_path, stored.key)
    with pytest.raises(ValueError, match="cannot be read"):
        pixels.load(tmp_path, "missing")


def test_reading_does_not_change_the_cache(tmp_path):
    stored = cache(tmp_path, Drawn())
    list(stored.write())
    before = (tmp_path / stored.key / "images.npy").read_bytes()
    pixels.load(tmp_path, stored.key).images.zero_()
    assert (tmp_path / stored.key / "images.npy").read_bytes() == before


def test_choice_of_a_dry_run_is_fixed_and_mixed():
    pictures = Drawn(100)
    assert pixels.choose(pictures, None) == pixels.choose(pictures, 100) == list(range(100))
    chosen = pixels.choose(pictures, 10)
    assert chosen == pixels.choose(Drawn(100), 10) and len(set(chosen)) == 10
    assert chosen != sorted(chosen)


def test_training_crop_matches_torchvisions_crop_of_the_whole_picture(tmp_path):
    pictures = Drawn(6)
    stored = cache(tmp_path, pictures, "squash")
    list(stored.write())
    split = pixels.load(tmp_path, stored.key, squashed=True)
    assert split.sizes.tolist()[:3] == [[80, 60], [60, 90], [50, 50]]
    cropped = pixels.random_resized_crop(split.images, split.sizes, seed=5)
    assert torch.equal(cropped, pixels.random_resized_crop(split.images, split.sizes, seed=5))
    torch.manual_seed(5)
    for row in range(6):
        box = RandomResizedCrop.get_params(
            V.pil_to_tensor(pictures[row]), [0.9, 1.0], [3 / 4, 4 / 3]
        )
        direct = V.resized_crop(pictures[row], *box, [SIDE, SIDE], V.InterpolationMode.BICUBIC)
        difference = (cropped[row] - V.pil_to_tensor(direct).float()).abs()
        assert difference.mean() < 2.0 and difference.max() < 16  # of 255
        squashed = (split.images[row].float() - V.pil_to_tensor(direct).float()).abs()
        assert difference.mean() < 0.5 * squashed.mean()


def test_crops_leave_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    pixels.random_resized_crop(torch.zeros(2, 3, 8, 8).byte(), torch.tensor([[8, 8]] * 2), seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_batches_are_the_split_in_order():
    images = torch.arange(7 * 3 * 4).reshape(7, 3, 2, 2).byte()
    batches = Batches(Split(images, torch.arange(7)), 3, torch.device("cpu"))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    for _ in range(2):  # iterated anew at each call
        assert torch.equal(torch.cat([images for images, _ in batches]), images)


def test_standardise_matches_the_formula():
    image = torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)
    expected = [(0.2 - m) / s for m, s in zip(CLIP.mean, CLIP.std, strict=True)]
    assert standardise(image, CLIP).flatten().tolist() == pytest.approx(expected, rel=1e-5)
