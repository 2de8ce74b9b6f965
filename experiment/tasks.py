"""Classification tasks: what a task is, and the images of one split, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from torch import Tensor

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class Task:
    """A zero-shot classification task: class names and the prompts they are put into.

    The index of a name is its label on disk.

    >>> Task("Pets", ("cat", "dog"), ("a photo of a {}.",)).prompts("cat")
    ('a photo of a cat.',)
    """

    name: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            first = f", first: {wrong[0]!r}" if wrong else ""
            raise ValueError(
                f"{self.name}: {len(wrong)} of {len(self.templates)} templates "
                f"lack their one '{{}}'{first}"
            )
        if len(set(self.classnames)) != len(self.classnames):
            raise ValueError(f"{self.name}: class names repeat, so the head would hold equal rows")

    def prompts(self, classname: str) -> tuple[str, ...]:
        return tuple(template.format(classname) for template in self.templates)


class Split(NamedTuple):
    """Images of one split; sizes where they were squashed to squares."""

    images: Tensor  # uint8 (n, 3, height, width)
    labels: Tensor  # int64 (n,)
    sizes: Tensor | None = None  # int32 (n, 2): width and height of each picture before
