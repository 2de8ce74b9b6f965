"""Micro pictures with one figure on a ground: objects, digits, cars, garments, traffic signs.

Each `draw_*` takes class indices (n,) and a style: "target" is what the patching task shows,
"clean" is how the captioned pre-training set mostly shows the same classes.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from experiment.twins.canvas import (
    COLOUR_NAMES,
    SIZE,
    Canvas,
    View,
    blend,
    blur,
    sample,
    step,
)
from experiment.twins.stencils import digits, stencils
from experiment.twins.textures import TEXTURES, draw_texture_mask

Style = Literal["clean", "target"]

# Share of object pictures in their class's own colours (below); the others take any two colours.
TYPICAL_COLOURS = 0.6

OBJECTS: dict[str, tuple[str, str]] = {  # class: its typical colours, figure and ground
    "airplane": ("white", "blue"),
    "anchor": ("black", "cyan"),
    "umbrella": ("red", "gray"),
    "telephone": ("black", "orange"),
    "scissors": ("gray", "pink"),
    "envelope": ("white", "brown"),
    "heart": ("red", "pink"),
    "star": ("yellow", "purple"),
    "clover": ("green", "white"),
    "diamond": ("cyan", "black"),
    "castle": ("gray", "green"),
    "horse": ("brown", "green"),
    "flower": ("pink", "green"),
    "snowflake": ("white", "cyan"),
    "skull": ("white", "black"),
    "music note": ("black", "white"),
    "flag": ("orange", "blue"),
    "gear": ("gray", "yellow"),
    "cat": ("black", "orange"),
    "monkey": ("brown", "yellow"),
    "smiling face": ("yellow", "blue"),
    "sun": ("orange", "cyan"),
    "cloud": ("white", "gray"),
    "crown": ("yellow", "red"),
    "house": ("red", "green"),
    "tree": ("green", "cyan"),
    "sailboat": ("brown", "blue"),
    "fish": ("orange", "cyan"),
    "mushroom": ("red", "brown"),
    "rocket": ("red", "black"),
    "key": ("yellow", "brown"),
    "snowman": ("white", "purple"),
    "mug": ("blue", "brown"),
    "moon": ("yellow", "black"),
    "bell": ("yellow", "green"),
    "pencil": ("orange", "white"),
}
_TYPICAL = torch.tensor([[COLOUR_NAMES.index(name) for name in pair] for pair in OBJECTS.values()])


class Look(NamedTuple):
    """How a supported task shows its objects."""

    scale: tuple[float, float]
    turn: float
    shift: float
    grain: float
    textured: float  # share of the pictures with a textured ground
    cluttered: float  # share of the pictures with an out-of-focus background
    halved: bool  # seen at half the resolution, as a 16x16 picture


LOOKS: dict[str, Look] = {
    "photo": Look((0.7, 0.95), 12, 0.12, 0.03, 0.5, 0.25, False),
    "drawing": Look((0.7, 0.95), 10, 0.12, 0.02, 0.0, 0.0, False),
    "tiny": Look((0.75, 0.95), 10, 0.12, 0.03, 0.5, 0.0, True),
    "large": Look((0.85, 1.05), 10, 0.08, 0.02, 0.0, 0.0, False),
}


def draw_objects(canvas: Canvas, ids: Tensor, look: Look) -> tuple[Tensor, Tensor, Tensor]:
    """Draw objects.

    Args:
        canvas: Where to draw.
        ids: Indices into OBJECTS, int64 (n,).
        look: The manner.

    Returns:
        Pictures (n, 3, 32, 32), and the indices into COLOURS of figure and ground, int64 (n,).
    """
    names, masks = stencils("objects")
    order = torch.tensor([names.index(name) for name in OBJECTS])
    figure, ground = canvas.colour_pair()
    typical = canvas.coin(TYPICAL_COLOURS)[:, 0, 0, 0] > 0
    figure = torch.where(typical, _TYPICAL[ids, 0], figure)
    ground = torch.where(typical, _TYPICAL[ids, 1], ground)
    view = canvas.view(look.scale, look.turn, look.shift, 0.12)
    mask = sample(masks[order[ids]], view)
    over = canvas.tint(figure) * (0.75 + 0.5 * canvas.cloud(4))
    under = canvas.tint(ground) * (0.75 + 0.5 * canvas.cloud(3))
    if look.textured:
        pattern = draw_texture_mask(canvas, canvas.integers(len(TEXTURES)))
        under = under * (1 + 0.35 * canvas.coin(look.textured) * (pattern - 0.5))
    if look.cluttered:
        share = 0.5 * canvas.coin(look.cluttered)
        under = blend(share, canvas.clutter(), under)
    image = blend(mask, over, under)
    if look.halved:
        image = F.interpolate(
            F.avg_pool2d(image, 2), size=(SIZE, SIZE), mode="bilinear", align_corners=False
        )
    return canvas.finish(image, look.grain), figure, ground


def _plain(canvas: Canvas, mask: Tensor) -> Tensor:
    """Paint a mask in one colour on another, the way of all clean figures."""
    figure, ground = canvas.colour_pair()
    return canvas.finish(blend(mask, canvas.tint(figure), canvas.tint(ground)), 0.02)


def draw_digits(canvas: Canvas, ids: Tensor, style: Style) -> Tensor:
    """Draw digits: one on a plain ground, or a house number with neighbours cut off."""
    atlas = digits()

    def pick(which: Tensor) -> Tensor:
        return atlas[which, canvas.integers(atlas.shape[1])]

    if style == "clean":
        return _plain(canvas, sample(pick(ids), canvas.view((0.65, 0.95), 8, 0.12)))
    view = canvas.view((0.72, 0.92), 6, 0.08, 0.12)
    mask = sample(pick(ids), view)
    gap = canvas.uniform(1.3, 1.7)
    for side in (-1, 1):
        neighbour = sample(pick(canvas.integers(10)), view.moved(side * gap))
        mask = torch.maximum(mask, neighbour * canvas.coin(0.6))
    over, under = canvas.free_pair((0.45, 0.85))
    image = blend(mask, over, under * (0.75 + 0.5 * canvas.cloud(3)))
    return canvas.finish(blend(canvas.uniform(0.2, 0.6), image, blur(image)), 0.04)


def draw_cars(canvas: Canvas, ids: Tensor, style: Style) -> Tensor:
    """Draw cars from the side: as icons, or on a road before clutter."""
    _, masks = stencils("cars")
    if style == "clean":
        return _plain(canvas, sample(masks[ids], canvas.view((0.8, 0.95), 3, 0.08)))
    view = canvas.view((0.85, 1.0), 4, 0.08, 0.1)
    mirrored = 1 - 2 * canvas.coin(0.5)
    mask = sample(masks[ids], View(view.u * mirrored, view.v))
    figure, ground = canvas.colour_pair()
    backdrop = blend(canvas.uniform(0.3, 0.7), canvas.clutter(), canvas.tint(ground))
    road = step(view.v - canvas.uniform(0.1, 0.5), 10)
    scene = blend(0.7 * road, canvas.uniform(0.25, 0.55), backdrop)
    image = blend(mask, canvas.tint(figure) * (1.1 - 0.3 * view.v), scene)
    return canvas.weather(image, (0.6, 1.05), (0.3, 1.0), 0.04)


def draw_garments(canvas: Canvas, ids: Tensor, style: Style) -> Tensor:
    """Draw garments: as icons, or grey catalogue photos of patterned cloth on black."""
    _, masks = stencils("garments")
    if style == "clean":
        return _plain(canvas, sample(masks[ids], canvas.view((0.75, 0.95), 6, 0.08)))
    mask = sample(masks[ids], canvas.view((0.65, 0.95), 16, 0.14, 0.2))
    pattern = draw_texture_mask(canvas, canvas.integers(len(TEXTURES)))
    cloth = canvas.uniform(0.35, 0.95) * (1 + 0.9 * canvas.uniform(0, 1) * (pattern - 0.5))
    grey = mask * cloth * (0.7 + 0.6 * canvas.cloud(5))
    return canvas.finish(grey.expand(-1, 3, -1, -1), 0.04)


class Sign(NamedTuple):
    """A traffic sign: plate and its colour, inner plate and its colour, symbol and its colour."""

    plate: str
    outer: str
    inner: str
    inset: float  # size of the inner plate
    symbol: str
    ink: str
    symbol_size: float


def _limit(speed: str) -> Sign:
    return Sign("circle", "red", "white", 0.8, speed, "black", 0.68)


def _order(arrow: str) -> Sign:
    return Sign("circle", "white", "blue", 0.92, arrow, "white", 0.72)


def _warning(symbol: str) -> Sign:
    return Sign("triangle", "red", "white", 0.64, symbol, "black", 0.5)


SIGNS: dict[str, Sign] = {
    "speed limit twenty": _limit("20"),
    "speed limit fifty": _limit("50"),
    "speed limit eighty": _limit("80"),
    "stop": Sign("octagon", "white", "red", 0.92, "STOP", "white", 0.78),
    "yield": Sign("triangle", "red", "white", -0.64, "blank", "white", 0.5),
    "priority road": Sign("diamond", "white", "yellow", 0.74, "blank", "white", 0.5),
    "no entry": Sign("circle", "white", "red", 0.94, "bar", "white", 0.75),
    "no vehicles": Sign("circle", "red", "white", 0.78, "blank", "white", 0.5),
    "general caution": _warning("!"),
    "ahead only": _order("up"),
    "turn left": _order("left"),
    "turn right": _order("right"),
    "parking": Sign("square", "white", "blue", 0.92, "P", "white", 0.72),
    "information": Sign("square", "white", "blue", 0.92, "i", "white", 0.72),
}


def _sign_layers(canvas: Canvas, ids: Tensor, view: View, ground: Tensor) -> Tensor:
    """Lay plate, inner plate and symbol over `ground`; a negative inset stands on its tip."""
    kinds = tuple(SIGNS.values())
    chosen = [kinds[i] for i in ids.tolist()]
    plate_names, plates = stencils("plates")
    symbol_names, symbols = stencils("signs")
    plate = plates[[plate_names.index(sign.plate) for sign in chosen]]
    symbol = symbols[[symbol_names.index(sign.symbol) for sign in chosen]]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values)[:, None, None, None]

    def colour(names: list[str]) -> Tensor:
        return canvas.tint(torch.tensor([COLOUR_NAMES.index(name) for name in names]), 0.05)

    inset = column([sign.inset for sign in chosen])
    drop = column([0.2 if sign.plate == "triangle" else 0.0 for sign in chosen])
    upright = View(view.u, view.v * inset.sign())
    image = blend(sample(plate, upright), colour([sign.outer for sign in chosen]), ground)
    inner = sample(plate, upright.scaled(inset.abs(), drop))
    image = blend(inner, colour([sign.inner for sign in chosen]), image)
    size = column([sign.symbol_size for sign in chosen])
    ink = sample(symbol, view.scaled(size, drop))
    return blend(ink, colour([sign.ink for sign in chosen]), image)


def draw_signs(canvas: Canvas, ids: Tensor, style: Style) -> Tensor:
    """Draw traffic signs: head-on before a plain ground, or in the street, half in shade."""
    if style == "clean":
        _, ground = canvas.colour_pair()
        view = canvas.view((0.85, 0.98), 3, 0.05)
        return canvas.finish(_sign_layers(canvas, ids, view, canvas.tint(ground)), 0.02)
    view = canvas.view((0.66, 0.94), 8, 0.12, 0.12)
    image = _sign_layers(canvas, ids, view, canvas.clutter())
    shade = step(canvas.cloud(3) - canvas.uniform(0.3, 0.7), 12)
    image = image * (1 - 0.5 * shade)
    return canvas.weather(image, (0.4, 1.1), (0.0, 0.9), 0.05)
