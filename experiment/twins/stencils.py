"""Silhouettes that the micro twins are drawn from: font glyphs and a few polygons.

A stencil is a float32 mask (64, 64) in [0, 1]. Polygons live in the unit square, y downwards.
The fonts are the ones that matplotlib ships.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

STENCIL = 64
_OVERSAMPLE = 4
_MARGIN = 3

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
)
SYMBOL_FONT = "DejaVuSans"

Point = tuple[float, float]
Stroke = tuple[str, Sequence[Point], int]  # kind, points in the unit square, grey value 0..255


def font_path(name: str) -> Path:
    """Return the file of a font that matplotlib ships."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def fill(*points: Point) -> Stroke:
    """Fill a polygon."""
    return "polygon", points, 255


def hole(*points: Point, grey: int = 0) -> Stroke:
    """Cut a polygon out; `grey` leaves a tinted pane."""
    return "polygon", points, grey


def oval(left: float, top: float, right: float, bottom: float, grey: int = 255) -> Stroke:
    """Fill an ellipse given by its bounding box."""
    return "ellipse", ((left, top), (right, bottom)), grey


def line(*points: Point, grey: int = 255) -> Stroke:
    """Draw an open line, a twentieth of the square wide."""
    return "line", points, grey


def _draw(strokes: Sequence[Stroke]) -> Tensor:
    side = STENCIL * _OVERSAMPLE
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    for kind, points, grey in strokes:
        scaled = [(x * side, y * side) for x, y in points]
        if kind == "polygon":
            pen.polygon(scaled, fill=grey)
        elif kind == "ellipse":
            pen.ellipse([*scaled[0], *scaled[1]], fill=grey)
        else:
            pen.line(scaled, fill=grey, width=round(0.05 * side), joint="curve")
    small = image.resize((STENCIL, STENCIL), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32) / 255)


def _glyph(text: str, font_name: str) -> Tensor:
    """Draw `text` as large as the stencil allows, its proportions kept."""
    font = ImageFont.truetype(str(font_path(font_name)), 2 * STENCIL)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    image = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), text, fill=255, font=font)
    shrink = (STENCIL - 2 * _MARGIN) / max(image.size)
    width, height = (max(2, round(edge * shrink)) for edge in image.size)
    sheet = Image.new("L", (STENCIL, STENCIL))
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    sheet.paste(small, ((STENCIL - width) // 2, (STENCIL - height) // 2))
    return torch.from_numpy(np.asarray(sheet, np.float32) / 255)


SYMBOLS: dict[str, str] = {
    "airplane": "\u2708",
    "anchor": "\u2693",
    "umbrella": "\u2602",
    "telephone": "\u260e",
    "scissors": "\u2702",
    "envelope": "\u2709",
    "heart": "\u2665",
    "star": "\u2605",
    "clover": "\u2663",
    "diamond": "\u2666",
    "castle": "\u265c",
    "horse": "\u265e",
    "flower": "\u273f",
    "snowflake": "\u2744",
    "skull": "\u2620",
    "music note": "\u266b",
    "flag": "\u2691",
    "gear": "\u2699",
    "cat": "\U0001f431",
    "monkey": "\U0001f435",
    "smiling face": "\u263b",
    "sun": "\u2600",
    "cloud": "\u2601",
    "crown": "\u265b",
}

DRAWN: dict[str, Sequence[Stroke]] = {
    "house": (
        fill((0.05, 0.5), (0.5, 0.08), (0.95, 0.5)),
        fill((0.16, 0.48), (0.84, 0.48), (0.84, 0.94), (0.16, 0.94)),
        hole((0.42, 0.94), (0.42, 0.64), (0.6, 0.64), (0.6, 0.94), grey=40),
    ),
    "tree": (
        fill((0.5, 0.03), (0.76, 0.36), (0.24, 0.36)),
        fill((0.5, 0.2), (0.84, 0.58), (0.16, 0.58)),
        fill((0.5, 0.4), (0.92, 0.8), (0.08, 0.8)),
        fill((0.42, 0.8), (0.58, 0.8), (0.58, 0.97), (0.42, 0.97)),
    ),
    "sailboat": (
        fill((0.08, 0.72), (0.92, 0.72), (0.76, 0.92), (0.24, 0.92)),
        fill((0.53, 0.06), (0.9, 0.64), (0.53, 0.64)),
        fill((0.45, 0.16), (0.45, 0.64), (0.14, 0.64)),
    ),
    "fish": (
        oval(0.04, 0.26, 0.74, 0.74),
        fill((0.62, 0.5), (0.96, 0.22), (0.96, 0.78)),
        oval(0.15, 0.38, 0.25, 0.48, grey=0),
    ),
    "mushroom": (
        oval(0.06, 0.08, 0.94, 0.92),
        hole((0.0, 0.56), (1.0, 0.56), (1.0, 1.0), (0.0, 1.0)),
        fill((0.38, 0.54), (0.62, 0.54), (0.68, 0.94), (0.32, 0.94)),
        oval(0.24, 0.28, 0.4, 0.44, grey=50),
        oval(0.56, 0.2, 0.74, 0.38, grey=50),
    ),
    "rocket": (
        fill((0.5, 0.02), (0.64, 0.22), (0.66, 0.72), (0.34, 0.72), (0.36, 0.22)),
        fill((0.34, 0.5), (0.12, 0.84), (0.34, 0.76)),
        fill((0.66, 0.5), (0.88, 0.84), (0.66, 0.76)),
        fill((0.42, 0.76), (0.58, 0.76), (0.5, 0.98)),
        oval(0.42, 0.28, 0.58, 0.44, grey=30),
    ),
    "key": (
        oval(0.03, 0.3, 0.43, 0.7),
        oval(0.14, 0.41, 0.32, 0.59, grey=0),
        fill((0.4, 0.44), (0.97, 0.44), (0.97, 0.56), (0.4, 0.56)),
        fill((0.68, 0.54), (0.76, 0.54), (0.76, 0.76), (0.68, 0.76)),
        fill((0.87, 0.54), (0.97, 0.54), (0.97, 0.8), (0.87, 0.8)),
    ),
    "snowman": (
        oval(0.22, 0.46, 0.78, 0.98),
        oval(0.31, 0.17, 0.69, 0.53),
        fill((0.3, 0.17), (0.7, 0.17), (0.7, 0.22), (0.3, 0.22)),
        fill((0.38, 0.02), (0.62, 0.02), (0.62, 0.18), (0.38, 0.18)),
        line((0.24, 0.62), (0.04, 0.4)),
        line((0.76, 0.62), (0.96, 0.4)),
    ),
    "mug": (
        oval(0.52, 0.28, 0.96, 0.72),
        oval(0.62, 0.38, 0.86, 0.62, grey=0),
        fill((0.1, 0.16), (0.7, 0.16), (0.7, 0.88), (0.1, 0.88)),
    ),
    "moon": (oval(0.1, 0.06, 0.9, 0.94), oval(0.36, 0.0, 1.12, 0.84, grey=0)),
    "bell": (
        oval(0.24, 0.1, 0.76, 0.7),
        fill((0.24, 0.4), (0.76, 0.4), (0.92, 0.78), (0.08, 0.78)),
        oval(0.4, 0.74, 0.6, 0.94),
        oval(0.43, 0.02, 0.57, 0.16),
    ),
    "pencil": (
        fill((0.04, 0.96), (0.1, 0.7), (0.3, 0.9)),
        fill((0.13, 0.66), (0.34, 0.87), (0.84, 0.37), (0.63, 0.16)),
        fill((0.67, 0.12), (0.88, 0.33), (0.97, 0.24), (0.76, 0.03)),
    ),
}


def _wheels(*centres: float, radius: float = 0.1, axle: float = 0.72) -> tuple[Stroke, ...]:
    return tuple(oval(x - radius, axle - radius, x + radius, axle + radius) for x in centres)


def _pane(left: float, top: float, right: float, bottom: float, slant: float = 0.0) -> Stroke:
    """Cut a car window whose front edge leans forward by `slant`."""
    return hole((left, bottom), (left, top), (right - slant, top), (right, bottom), grey=90)


CARS: dict[str, Sequence[Stroke]] = {
    "sedan": (
        fill((0.04, 0.7), (0.04, 0.54), (0.24, 0.5), (0.34, 0.34), (0.66, 0.34)),
        fill((0.04, 0.7), (0.04, 0.54), (0.24, 0.5), (0.66, 0.34), (0.78, 0.5), (0.96, 0.55)),
        fill((0.04, 0.7), (0.24, 0.5), (0.78, 0.5), (0.96, 0.55), (0.96, 0.7)),
        _pane(0.34, 0.39, 0.48, 0.49),
        _pane(0.53, 0.39, 0.72, 0.49, 0.08),
        *_wheels(0.24, 0.76),
    ),
    "hatchback": (
        fill((0.1, 0.7), (0.1, 0.42), (0.2, 0.28), (0.6, 0.28), (0.74, 0.48), (0.92, 0.54)),
        fill((0.1, 0.7), (0.1, 0.48), (0.74, 0.48), (0.92, 0.54), (0.92, 0.7)),
        _pane(0.22, 0.34, 0.38, 0.47),
        _pane(0.43, 0.34, 0.66, 0.47, 0.1),
        *_wheels(0.26, 0.76),
    ),
    "convertible": (
        fill((0.03, 0.7), (0.06, 0.53), (0.96, 0.55), (0.97, 0.7)),
        line((0.64, 0.54), (0.54, 0.36)),
        oval(0.3, 0.38, 0.42, 0.5),
        *_wheels(0.22, 0.78),
    ),
    "pickup truck": (
        fill((0.03, 0.7), (0.03, 0.5), (0.97, 0.52), (0.97, 0.7)),
        fill((0.46, 0.54), (0.46, 0.28), (0.68, 0.28), (0.79, 0.54)),
        _pane(0.52, 0.34, 0.72, 0.48, 0.07),
        *_wheels(0.2, 0.78),
    ),
    "van": (
        fill((0.05, 0.7), (0.05, 0.2), (0.72, 0.2), (0.86, 0.46), (0.95, 0.52), (0.95, 0.7)),
        _pane(0.58, 0.26, 0.79, 0.44, 0.1),
        *_wheels(0.24, 0.76),
    ),
    "bus": (
        fill((0.02, 0.18), (0.98, 0.18), (0.98, 0.7), (0.02, 0.7)),
        *(_pane(x, 0.26, x + 0.12, 0.42) for x in (0.08, 0.26, 0.44, 0.62, 0.8)),
        *_wheels(0.2, 0.8),
    ),
    "limousine": (
        fill((0.0, 0.66), (0.0, 0.54), (0.1, 0.51), (0.9, 0.51), (1.0, 0.55), (1.0, 0.66)),
        fill((0.1, 0.52), (0.18, 0.41), (0.82, 0.41), (0.9, 0.52)),
        *(_pane(x, 0.44, x + 0.1, 0.5) for x in (0.22, 0.36, 0.5, 0.64)),
        *_wheels(0.14, 0.86, radius=0.08, axle=0.68),
    ),
    "jeep": (
        fill((0.06, 0.66), (0.06, 0.24), (0.66, 0.24), (0.7, 0.44), (0.94, 0.44), (0.94, 0.66)),
        _pane(0.12, 0.3, 0.34, 0.43),
        _pane(0.4, 0.3, 0.64, 0.43, 0.03),
        *_wheels(0.24, 0.78, radius=0.15, axle=0.7),
    ),
    "race car": (
        fill((0.02, 0.7), (0.02, 0.62), (0.3, 0.52), (0.6, 0.52), (0.98, 0.64), (0.98, 0.7)),
        fill((0.02, 0.36), (0.2, 0.36), (0.2, 0.42), (0.02, 0.42)),
        line((0.12, 0.4), (0.14, 0.64)),
        oval(0.4, 0.42, 0.52, 0.54),
        *_wheels(0.2, 0.8, radius=0.12),
    ),
    "tractor": (
        fill((0.1, 0.66), (0.1, 0.26), (0.42, 0.26), (0.46, 0.48), (0.9, 0.48), (0.9, 0.66)),
        _pane(0.16, 0.32, 0.38, 0.46),
        line((0.74, 0.5), (0.74, 0.28)),
        *_wheels(0.25, radius=0.21, axle=0.68),
        *_wheels(0.8, radius=0.12, axle=0.76),
    ),
}

GARMENTS: dict[str, Sequence[Stroke]] = {
    "t-shirt": (
        fill((0.3, 0.1), (0.42, 0.16), (0.58, 0.16), (0.7, 0.1), (0.98, 0.3), (0.86, 0.46)),
        fill((0.3, 0.1), (0.02, 0.3), (0.14, 0.46), (0.3, 0.34)),
        fill((0.26, 0.14), (0.42, 0.16), (0.58, 0.16), (0.74, 0.14), (0.74, 0.92), (0.26, 0.92)),
    ),
    "trouser": (
        fill((0.3, 0.04), (0.7, 0.04), (0.76, 0.96), (0.56, 0.96), (0.5, 0.3), (0.44, 0.96)),
        fill((0.3, 0.04), (0.5, 0.3), (0.44, 0.96), (0.24, 0.96)),
    ),
    "pullover": (
        fill((0.32, 0.08), (0.44, 0.14), (0.56, 0.14), (0.68, 0.08), (0.72, 0.94), (0.28, 0.94)),
        fill((0.32, 0.08), (0.16, 0.2), (0.02, 0.86), (0.16, 0.9), (0.34, 0.4)),
        fill((0.68, 0.08), (0.84, 0.2), (0.98, 0.86), (0.84, 0.9), (0.66, 0.4)),
    ),
    "dress": (
        fill((0.36, 0.03), (0.46, 0.12), (0.54, 0.12), (0.64, 0.03), (0.62, 0.38), (0.38, 0.38)),
        fill((0.38, 0.36), (0.62, 0.36), (0.84, 0.97), (0.16, 0.97)),
    ),
    "coat": (
        fill((0.34, 0.03), (0.66, 0.03), (0.8, 0.98), (0.2, 0.98)),
        fill((0.34, 0.03), (0.18, 0.14), (0.06, 0.8), (0.2, 0.82), (0.34, 0.4)),
        fill((0.66, 0.03), (0.82, 0.14), (0.94, 0.8), (0.8, 0.82), (0.66, 0.4)),
        line((0.5, 0.1), (0.5, 0.98), grey=40),
    ),
    "sandal": (
        fill((0.02, 0.76), (0.98, 0.76), (0.98, 0.86), (0.02, 0.86)),
        line((0.1, 0.78), (0.38, 0.46), (0.58, 0.78)),
        line((0.58, 0.78), (0.78, 0.55), (0.94, 0.78)),
    ),
    "shirt": (
        fill((0.3, 0.06), (0.5, 0.2), (0.7, 0.06), (0.76, 0.14), (0.76, 0.95), (0.24, 0.95)),
        fill((0.3, 0.06), (0.24, 0.1), (0.24, 0.95), (0.4, 0.9)),
        fill((0.3, 0.06), (0.1, 0.2), (0.04, 0.64), (0.18, 0.66), (0.3, 0.4)),
        fill((0.7, 0.06), (0.9, 0.2), (0.96, 0.64), (0.82, 0.66), (0.7, 0.4)),
        *(oval(0.46, y, 0.54, y + 0.08, grey=0) for y in (0.28, 0.46, 0.64, 0.82)),
    ),
    "sneaker": (
        fill((0.03, 0.4), (0.25, 0.4), (0.4, 0.5), (0.8, 0.62), (0.97, 0.7), (0.97, 0.84)),
        fill((0.03, 0.4), (0.97, 0.84), (0.03, 0.84)),
        line((0.03, 0.76), (0.97, 0.78), grey=110),
    ),
    "bag": (
        fill((0.1, 0.4), (0.9, 0.4), (0.9, 0.92), (0.1, 0.92)),
        line((0.28, 0.42), (0.34, 0.14), (0.66, 0.14), (0.72, 0.42)),
    ),
    "ankle boot": (
        fill((0.2, 0.1), (0.56, 0.1), (0.58, 0.56), (0.95, 0.7), (0.95, 0.82), (0.2, 0.82)),
        fill((0.2, 0.8), (0.42, 0.8), (0.42, 0.94), (0.2, 0.94)),
        fill((0.56, 0.8), (0.95, 0.8), (0.95, 0.88), (0.56, 0.88)),
    ),
}

PLATES: dict[str, Sequence[Stroke]] = {
    "circle": (oval(0.03, 0.03, 0.97, 0.97),),
    "triangle": (fill((0.5, 0.04), (0.98, 0.92), (0.02, 0.92)),),
    "octagon": (
        fill(
            (0.3, 0.02),
            (0.7, 0.02),
            (0.98, 0.3),
            (0.98, 0.7),
            (0.7, 0.98),
            (0.3, 0.98),
            (0.02, 0.7),
            (0.02, 0.3),
        ),
    ),
    "diamond": (fill((0.5, 0.02), (0.98, 0.5), (0.5, 0.98), (0.02, 0.5)),),
    "square": (fill((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)),),
}

_UP = ((0.5, 0.1), (0.8, 0.46), (0.6, 0.46), (0.6, 0.88), (0.4, 0.88), (0.4, 0.46), (0.2, 0.46))
SIGN_SYMBOLS: dict[str, Sequence[Stroke]] = {
    "blank": (),
    "bar": (fill((0.12, 0.4), (0.88, 0.4), (0.88, 0.6), (0.12, 0.6)),),
    "up": (fill(*_UP),),
    "left": (fill(*((y, x) for x, y in _UP)),),
    "right": (fill(*((1 - y, x) for x, y in _UP)),),
}
SIGN_TEXTS = ("20", "50", "80", "STOP", "!", "P", "i")


@cache
def stencils(kind: str) -> tuple[tuple[str, ...], Tensor]:
    """Return the names and the masks (names, 64, 64) of one kind of silhouette.

    Args:
        kind: "objects", "cars", "garments", "plates" or "signs".
    """
    drawings = {"cars": CARS, "garments": GARMENTS, "plates": PLATES}
    if kind == "objects":
        masks = {name: _glyph(text, SYMBOL_FONT) for name, text in SYMBOLS.items()}
        masks |= {name: _draw(strokes) for name, strokes in DRAWN.items()}
    elif kind == "signs":
        masks = {name: _draw(strokes) for name, strokes in SIGN_SYMBOLS.items()}
        masks |= {text: _glyph(text, "DejaVuSans-Bold") for text in SIGN_TEXTS}
    else:
        masks = {name: _draw(strokes) for name, strokes in drawings[kind].items()}
    return tuple(masks), torch.stack(list(masks.values()))


@cache
def digits() -> Tensor:
    """Return the ten digits in every font, masks (10, fonts, 64, 64)."""
    return torch.stack([torch.stack([_glyph(str(d), font) for font in FONTS]) for d in range(10)])
