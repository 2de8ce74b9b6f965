"""Ten textures as masks, for µDTD and for textured grounds and cloth elsewhere."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from experiment.twins.canvas import SIZE, Canvas, View, blend, step

Weave = Callable[[Canvas, View, Tensor], Tensor]


def _striped(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    return step((f * view.u + canvas.phase()).sin(), 4)


def _dotted(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    waves = (f * view.u + canvas.phase()).sin() + (f * view.v + canvas.phase()).sin()
    return step(waves - 0.75, 6)


def _chequered(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    waves = (f * view.u + canvas.phase()).sin() * (f * view.v + canvas.phase()).sin()
    return step(waves, 14)


def _grid(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    f = 0.8 * f
    waves = torch.maximum((f * view.u + canvas.phase()).sin(), (f * view.v + canvas.phase()).sin())
    return step(waves - 0.72, 10)


def _zigzagged(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    zigzag = torch.asin(0.99 * (0.8 * f * view.u + canvas.phase()).sin())
    return step((0.8 * f * view.v + 1.8 * zigzag + canvas.phase()).sin(), 4)


def _spiralled(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    turns = 3 * torch.atan2(view.v, view.u)
    return step((0.9 * f * view.radius + turns + canvas.phase()).sin(), 4)


def _cracked(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    nearest, second = canvas.cells(view, 12)
    return step(second - nearest - 0.13, 24)


def _crosshatched(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    rising = (0.6 * f * (view.u + view.v) + canvas.phase()).sin()
    falling = (0.6 * f * (view.u - view.v) + canvas.phase()).sin()
    return step(torch.maximum(rising, falling) - 0.75, 10)


def _marbled(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    return step((0.5 * f * view.u + canvas.phase() + 8 * canvas.cloud(4)).sin(), 3)


def _sprinkled(canvas: Canvas, view: View, f: Tensor) -> Tensor:
    specks = torch.rand(canvas.n, 1, SIZE, SIZE, generator=canvas.rng)
    return step(specks - 0.82, 18)


TEXTURES: dict[str, Weave] = {
    "striped": _striped,
    "polka-dotted": _dotted,
    "chequered": _chequered,
    "grid": _grid,
    "zigzagged": _zigzagged,
    "spiralled": _spiralled,
    "cracked": _cracked,
    "crosshatched": _crosshatched,
    "marbled": _marbled,
    "sprinkled": _sprinkled,
}


def by_class(
    canvas: Canvas, ids: Tensor, draw: Callable[[int, Canvas], Tensor], channels: int
) -> Tensor:
    """Draw one class after the other and return the pictures in the order of `ids`."""
    out = torch.empty(canvas.n, channels, SIZE, SIZE)
    for index in sorted(set(ids.tolist())):
        members = (ids == index).nonzero()[:, 0]
        out[members] = draw(index, Canvas(len(members), canvas.rng))
    return out


def draw_texture_mask(
    canvas: Canvas,
    ids: Tensor,
    turn: float = 90,
    bend: float = 0.0,
    frequency: tuple[float, float] = (3.0, 5.5),
) -> Tensor:
    """Draw textures as masks (n, 1, 32, 32).

    Args:
        canvas: Where to draw.
        ids: Indices into TEXTURES, int64 (n,).
        turn: Largest rotation, degrees.
        bend: Largest local displacement of the pattern.
        frequency: Periods across the picture, lowest and highest.
    """
    weaves = tuple(TEXTURES.values())

    def draw(index: int, part: Canvas) -> Tensor:
        view = part.view((0.9, 1.1), turn, 0.3, 0.12)
        if bend:
            right, down = bend * (part.cloud(3) - 0.5), bend * (part.cloud(3) - 0.5)
            view = View(view.u + right, view.v + down)
        return weaves[index](part, view, part.uniform(*frequency) * math.pi)

    return by_class(canvas, ids, draw, 1)


def draw_textures(canvas: Canvas, ids: Tensor, style: Literal["clean", "target"]) -> Tensor:
    """Draw textures: upright in two plain colours, or bent, unevenly lit and faded."""
    if style == "clean":
        figure, ground = canvas.colour_pair()
        mask = draw_texture_mask(canvas, ids, turn=4, frequency=(3.2, 4.5))
        return canvas.finish(blend(mask, canvas.tint(figure), canvas.tint(ground)), 0.02)
    mask = draw_texture_mask(canvas, ids, turn=7, bend=0.12, frequency=(3.2, 4.5))
    over, under = canvas.free_pair((0.5, 0.9))
    image = blend(mask, over, under) * (0.75 + 0.5 * canvas.cloud(3))
    return canvas.finish(image, 0.03)
