"""The micro twins: what they promise to whoever trains and measures on them."""

import hashlib
import math
from functools import cache

import pytest
import torch
from fontTools.ttLib import TTFont
from torch import Tensor

from experiment.profiles import PATCHING, SUPPORTED
from experiment.tasks import Split, Task
from experiment.twins import micro
from experiment.twins.canvas import COLOURS
from experiment.twins.figures import OBJECTS
from experiment.twins.micro import (
    MNIST_LIMIT,
    SPLITS,
    TASKS,
    SplitName,
    captioned,
    render,
)
from experiment.twins.stencils import DRAWN, FONTS, SIGN_TEXTS, SYMBOL_FONT, SYMBOLS, font_path

COUNT = 260  # more than one chunk of 250


@cache
def shown(name: str, split: SplitName) -> Split:
    """Render once what several tests look at."""
    return render(name, split, COUNT)


def hashes(images: Tensor) -> set[str]:
    return {hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images}


def test_tasks_are_the_thirteen_of_the_paper() -> None:
    assert SUPPORTED == ("ImageNet", "CIFAR10", "CIFAR100", "STL10")
    assert len(PATCHING) == 9
    assert set(SUPPORTED) | set(PATCHING) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_render_gives_balanced_uint8_pictures(name: str) -> None:
    classes = len(TASKS[name].classnames)
    split = shown(name, "test")
    assert split.images.shape == (COUNT, 3, 32, 32)
    assert split.images.dtype == torch.uint8
    assert split.labels.shape == (COUNT,)
    assert split.labels.dtype == torch.int64
    counts = torch.bincount(split.labels, minlength=classes)
    assert len(counts) == classes
    assert counts.min() >= 0.5 * COUNT / classes
    assert counts.max() <= 2 * math.ceil(COUNT / classes)
    blank = split.images.float().std(dim=(1, 2, 3)) < 2
    assert blank.float().mean() < 0.02


@pytest.mark.parametrize("name", TASKS)
def test_render_is_repeatable_and_a_prefix(name: str) -> None:
    long, short = shown(name, "validation"), render(name, "validation", 70)
    assert torch.equal(long.images[:70], short.images)
    assert torch.equal(long.labels[:70], short.labels)


@pytest.mark.parametrize("name", ["ImageNet", "GTSRB", "SUN397"])
def test_render_does_not_depend_on_threads_or_global_seed(name: str) -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.manual_seed(threads)
        torch.set_num_threads(threads)
        results.append(render(name, "train", 100).images)
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_picture(name: str) -> None:
    if name == "MNIST":  # all 5,000 digits
        seen = [hashes(render(name, split, MNIST_LIMIT[split]).images) for split in SPLITS]
    else:
        seen = [hashes(shown(name, split).images) for split in SPLITS]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert len(seen[0]) == (MNIST_LIMIT["train"] if name == "MNIST" else COUNT)


def test_mnist_refuses_more_digits_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"1000 test digits, 1001"):
        render("MNIST", "test", 1001)


def test_render_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"'Imagenet'.*ImageNet, CIFAR10.*FashionMNIST"):
        render("Imagenet", "test", 10)
    with pytest.raises(ValueError, match=r"'val'.*train, validation, test"):
        render("MNIST", "val", 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        render("DTD", "test", 0)


def test_task_refuses_a_template_without_its_slot() -> None:
    with pytest.raises(ValueError, match="1 of 2 templates"):
        Task("Pets", ("cat", "dog"), ("a {}.", "a cat."))
    with pytest.raises(ValueError, match="repeat"):
        Task("Pets", ("cat", "cat"), ("a {}.",))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_prompts_are_readable(task: Task) -> None:
    assert len(task.templates) >= 2
    assert all(template.count("{}") == 1 for template in task.templates)
    assert len(task.classnames) >= 10
    assert all(name == name.lower().strip() for name in task.classnames)


def test_captioned_is_repeatable_and_follows_its_seed() -> None:
    images, captions = captioned(200, seed=0)
    again, same = captioned(200, seed=0)
    other, different = captioned(200, seed=1)
    assert images.shape == (200, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images, again)
    assert captions == same
    assert captions != different
    assert not hashes(images) & hashes(other)


def test_captioned_shares_no_picture_with_the_tasks() -> None:
    learnt = hashes(captioned(200, seed=0)[0])
    for name in TASKS:
        assert not learnt & hashes(shown(name, "test").images)


def test_captioned_shuffles_the_promised_share() -> None:
    _, noisy = captioned(2000, seed=3)
    _, true = captioned(2000, seed=3, caption_noise=0.0)
    wrong = sum(a != b for a, b in zip(noisy, true, strict=True)) / 2000
    assert sorted(noisy) == sorted(true)
    assert wrong == pytest.approx(0.08, abs=0.025)  # an exchanged caption may equal the old one


def test_poor_pictures_are_those_of_the_share() -> None:
    """Without them the others are as they were, so that an ablation changes one thing."""
    poor, good = micro.render("STL10", "test", 60), micro.render("STL10", "test", 60, wild_share=0)
    same = (poor.images == good.images).flatten(1).all(1)
    assert torch.equal(poor.labels, good.labels) and 15 <= int(same.sum()) <= 45


def test_captioned_refuses_a_set_that_misses_sources() -> None:
    with pytest.raises(ValueError, match="ask for 100"):
        captioned(10, seed=0)


def test_fonts_have_every_glyph() -> None:
    symbols = TTFont(font_path(SYMBOL_FONT)).getBestCmap()
    assert [name for name, text in SYMBOLS.items() if ord(text) not in symbols] == []
    bold = TTFont(font_path("DejaVuSans-Bold")).getBestCmap()
    assert [text for text in SIGN_TEXTS if any(ord(letter) not in bold for letter in text)] == []
    for font in FONTS:
        cmap = TTFont(font_path(font)).getBestCmap()
        assert all(ord(digit) in cmap for digit in "0123456789"), font


def test_objects_have_a_silhouette_and_two_colours() -> None:
    assert set(SYMBOLS) | set(DRAWN) == set(OBJECTS)
    assert not set(SYMBOLS) & set(DRAWN)
    for figure, ground in OBJECTS.values():
        assert {figure, ground} <= set(COLOURS)
        assert figure != ground
