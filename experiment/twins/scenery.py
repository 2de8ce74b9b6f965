"""Micro pictures of places: land cover and sites from above, scenes from the ground.

One small function draws one class. It receives a `Place`, which holds the coordinates, the
light and the canvas, and returns pictures (n, 3, 32, 32).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experiment.twins.canvas import Canvas, View, band, blend, box, step
from experiment.twins.textures import by_class

Style = Literal["clean", "target"]


@dataclass(frozen=True)
class Place:
    """What a place is drawn with.

    Attributes:
        canvas: Source of chance.
        view: Coordinates, already turned and shifted.
        cast: Colour cast of the picture, (n, 3, 1, 1), added to every colour.
        gain: Exposure of the picture, (n, 1, 1, 1), multiplies every colour.
        horizon: Height of the horizon in a scene, (n, 1, 1, 1).
    """

    canvas: Canvas
    view: View
    cast: Tensor
    gain: Tensor
    horizon: Tensor

    def colour(self, red: float, green: float, blue: float) -> Tensor:
        """Return a colour as this picture's light shows it."""
        plain = torch.tensor([red, green, blue])[None, :, None, None]
        return ((plain + self.cast) * self.gain).clamp(0, 1)

    def cloud(self, cells: int) -> Tensor:
        """Draw smooth noise; 3 cells make regions, 11 make grain."""
        return self.canvas.cloud(cells)

    def wave(self, coordinate: Tensor, low: float, high: float) -> Tensor:
        """Return a sine of a frequency in [low, high) and of any phase."""
        frequency = self.canvas.uniform(low, high)
        return (frequency * coordinate + self.canvas.phase()).sin()

    @property
    def grass(self) -> Tensor:
        """Dark green of a mown lawn."""
        return self.colour(0.27, 0.5, 0.2)

    @property
    def meadow(self) -> Tensor:
        """Light green of a meadow."""
        return self.colour(0.48, 0.62, 0.3)

    @property
    def forest(self) -> Tensor:
        """Blackish green of trees."""
        return self.colour(0.08, 0.26, 0.12)

    @property
    def water(self) -> Tensor:
        """Blue of deep water."""
        return self.colour(0.1, 0.26, 0.5)

    @property
    def asphalt(self) -> Tensor:
        """Grey of roads and roofs."""
        return self.colour(0.5, 0.5, 0.5)

    @property
    def sand(self) -> Tensor:
        """Yellow of dry ground."""
        return self.colour(0.78, 0.66, 0.42)

    @property
    def snow(self) -> Tensor:
        """White of snow, ice and paint."""
        return self.colour(0.92, 0.94, 0.98)

    @property
    def brick(self) -> Tensor:
        """Red of bricks and tiles."""
        return self.colour(0.62, 0.33, 0.25)

    def sky(self) -> Tensor:
        """Return a blue sky with some cloud."""
        haze, blue = self.colour(0.85, 0.9, 0.95), self.colour(0.45, 0.65, 0.92)
        return blend(0.6 * self.cloud(3), haze, blue)

    def below(self, height: float | Tensor, sharpness: float = 16.0) -> Tensor:
        """Return a mask of everything lower than `height`."""
        return step(self.view.v - height, sharpness)


Drawing = Callable[[Place], Tensor]


# ------------------------------------------------------------- land cover from a satellite


def _forest(p: Place) -> Tensor:
    return blend(p.cloud(11), p.forest, p.grass * 0.7)


def _river(p: Place) -> Tensor:
    bend = p.canvas.uniform(0.25, 0.5) * p.wave(p.view.u, 2, 4)
    return blend(band(p.view.v + bend, 0.2, 14), p.water, blend(p.cloud(3), p.grass, p.meadow))


def _highway(p: Place) -> Tensor:
    land = blend(p.cloud(3), p.grass, p.meadow)
    crossing = band(p.view.u - p.canvas.uniform(-0.6, 0.6), 0.07) * p.canvas.coin(0.5)
    return blend(torch.maximum(band(p.view.v, 0.12), crossing), p.asphalt, land)


def _blocks(p: Place, low: float, high: float) -> Tensor:
    columns, rows = p.wave(p.view.u, low, high), p.wave(p.view.v, low, high)
    return step(torch.minimum(columns, rows) + 0.25, 12)


def _residential(p: Place) -> Tensor:
    return blend(_blocks(p, 10, 14), p.brick, blend(p.cloud(11), p.grass, p.asphalt))


def _industrial(p: Place) -> Tensor:
    return blend(_blocks(p, 4.5, 6.5), p.colour(0.8, 0.8, 0.82), p.asphalt)


def _sea(p: Place) -> Tensor:
    return blend(0.5 * p.cloud(3), p.colour(0.06, 0.2, 0.36), p.water)


def _crop(p: Place) -> Tensor:
    return blend(step(p.wave(p.view.u, 13, 19), 3), p.sand, p.meadow)


def _pasture(p: Place) -> Tensor:
    fence = band(p.view.u - p.canvas.uniform(-0.5, 0.5), 0.03, 40)
    return blend(fence, p.forest, blend(p.cloud(4), p.meadow, p.colour(0.38, 0.58, 0.26)))


def _orchard(p: Place) -> Tensor:
    trees = p.wave(p.view.u, 10, 14) * p.wave(p.view.v, 10, 14)
    return blend(step(trees - 0.15, 8), p.forest, p.sand)


def _lake(p: Place) -> Tensor:
    shore = p.canvas.uniform(0.45, 0.75) - p.view.radius - 0.6 * (p.cloud(3) - 0.5)
    return blend(step(shore, 14), p.water, blend(p.cloud(6), p.grass, p.forest))


LAND: dict[str, Drawing] = {
    "forest": _forest,
    "river": _river,
    "highway": _highway,
    "residential buildings": _residential,
    "industrial buildings": _industrial,
    "sea": _sea,
    "crop land": _crop,
    "pasture land": _pasture,
    "orchard": _orchard,
    "lake": _lake,
}


# ------------------------------------------------------------- sites from an aeroplane


def _baseball(p: Place) -> Tensor:
    diamond = step(0.72 - (p.view.u + p.view.v).abs() - (p.view.u - p.view.v).abs(), 20)
    infield = step(0.34 - (p.view.u + p.view.v).abs() - (p.view.u - p.view.v).abs(), 20)
    lawn = blend(step(0.85 - p.view.radius), p.grass, p.meadow)
    return blend(infield, p.grass, blend(diamond, p.sand, lawn))


def _stadium(p: Place) -> Tensor:
    ring = View(p.view.u / 1.3, p.view.v).radius
    stands = blend(step(0.75 - ring, 18), p.asphalt, blend(p.cloud(6), p.forest, p.meadow))
    return blend(step(0.42 - ring, 18), p.grass, stands)


def _bridge(p: Place) -> Tensor:
    return blend(band(p.view.v, 0.13), p.asphalt, blend(p.cloud(6), p.water, p.water * 0.75))


def _round_field(p: Place) -> Tensor:
    crop = blend(p.cloud(3), p.grass, p.meadow)
    return blend(step(0.75 - p.view.radius, 18), crop, p.sand)


def _tennis(p: Place) -> Tensor:
    court = blend(box(p.view, 0.36, 0.66), p.colour(0.2, 0.4, 0.6), p.snow)
    net = band(p.view.v, 0.04, 40)
    return blend(box(p.view, 0.44, 0.74), blend(net, p.snow, court), p.grass)


def _parking(p: Place) -> Tensor:
    cars = torch.minimum(p.wave(p.view.u, 10, 13), p.wave(p.view.v, 5, 6.5))
    paint = blend(step(p.cloud(11) - 0.5), p.snow, p.brick)
    return blend(step(cars + 0.2, 12), paint, p.asphalt * 0.7)


def _island(p: Place) -> Tensor:
    shore = 0.5 - p.view.radius - 0.6 * (p.cloud(3) - 0.5)
    land = blend(step(shore - 0.12, 14), blend(p.cloud(6), p.grass, p.forest), p.sand)
    return blend(step(shore, 14), land, p.water)


def _desert(p: Place) -> Tensor:
    dunes = step((5 * p.view.v + 6 * p.cloud(3)).sin(), 1.5)
    return blend(dunes, p.sand, p.colour(0.6, 0.48, 0.3))


def _sea_ice(p: Place) -> Tensor:
    nearest, second = p.canvas.cells(p.view, 9)
    return blend(step(second - nearest - 0.1), blend(p.cloud(6), p.snow, p.snow * 0.85), p.water)


def _intersection(p: Place) -> Tensor:
    roads = torch.maximum(band(p.view.u, 0.15), band(p.view.v, 0.15))
    return blend(roads, p.asphalt, blend(p.cloud(6), p.grass, p.forest))


def _railway(p: Place) -> Tensor:
    sleepers = band(p.view.v, 0.22, 30) * step((26 * p.view.u).sin() + 0.3, 4)
    rails = band(p.view.v.abs() - 0.14, 0.035, 60)
    return blend(
        torch.maximum(sleepers, rails),
        p.colour(0.25, 0.2, 0.18),
        blend(p.cloud(6), p.sand, p.asphalt),
    )


def _storage_tanks(p: Place) -> Tensor:
    across = torch.remainder(2.1 * p.view.u, 2) - 1
    down = torch.remainder(2.1 * p.view.v, 2) - 1
    return blend(step(0.64 - View(across, down).radius), p.snow, p.asphalt * 0.9)


def _runway(p: Place) -> Tensor:
    dashes = band(p.view.v, 0.035, 60) * step((12 * p.view.u).sin(), 8)
    strip = blend(dashes, p.snow, p.asphalt * 0.75)
    return blend(band(p.view.v, 0.3), strip, blend(p.cloud(6), p.grass, p.meadow))


def _harbor(p: Place) -> Tensor:
    quay = p.below(-0.45)
    piers = step(p.wave(p.view.u, 9, 12) - 0.35, 10) * step(0.5 - p.view.v, 16)
    boats = torch.maximum(1 - quay, piers)
    return blend(boats, p.colour(0.75, 0.72, 0.68), p.water)


SITES: dict[str, Drawing] = {
    "baseball diamond": _baseball,
    "stadium": _stadium,
    "bridge": _bridge,
    "circular farmland": _round_field,
    "tennis court": _tennis,
    "parking lot": _parking,
    "island": _island,
    "desert": _desert,
    "sea ice": _sea_ice,
    "intersection": _intersection,
    "railway": _railway,
    "storage tank": _storage_tanks,
    "runway": _runway,
    "harbor": _harbor,
}


# ------------------------------------------------------------- scenes from the ground


def _beach(p: Place) -> Tensor:
    sea = blend(p.below(p.horizon), p.colour(0.1, 0.35, 0.6), p.sky())
    return blend(p.below(p.horizon + 0.4 + 0.2 * p.view.u), p.sand, sea)


def _ridge(p: Place, steepness: float) -> Tensor:
    foot = p.horizon - 0.15 - 0.25 * (p.cloud(6) - 0.5)
    peak = p.view.u + p.canvas.uniform(-0.4, 0.4)
    return foot - 0.7 * (1 - steepness * peak.abs()).clamp_min(0)


def _mountain(p: Place) -> Tensor:
    ridge = _ridge(p, 1.5)
    rock = blend(p.below(ridge + 0.25), p.colour(0.42, 0.4, 0.43), p.snow)
    return blend(p.below(p.horizon + 0.45), p.grass, blend(p.below(ridge), rock, p.sky()))


def _prairie(p: Place) -> Tensor:
    return blend(p.below(p.horizon), blend(p.cloud(11), p.grass, p.meadow), p.sky())


def _sandy_desert(p: Place) -> Tensor:
    crest = p.horizon + 0.15 * (4 * p.view.u + p.canvas.phase()).sin()
    return blend(p.below(crest), blend(p.cloud(6), p.sand, p.colour(0.72, 0.54, 0.33)), p.sky())


def _skyscraper(p: Place) -> Tensor:
    windows = step((22 * p.view.v).sin(), 6) * step((20 * p.view.u).sin(), 6)
    front = blend(windows, p.colour(0.8, 0.78, 0.6), p.colour(0.32, 0.35, 0.42))
    return blend(p.below(-0.7 + 1.1 * p.canvas.steps(6)), front, p.sky())


def _corridor(p: Place) -> Tensor:
    depth = torch.maximum(p.view.u.abs(), p.view.v.abs())
    frames = step((9 * torch.log(depth + 0.08)).sin(), 3)
    return blend(frames, p.colour(0.72, 0.66, 0.58), p.colour(0.35, 0.3, 0.28))


def _staircase(p: Place) -> Tensor:
    count = p.canvas.uniform(3.0, 4.5)
    tread = torch.floor(count * p.view.u) / count
    solid = step(p.view.v + 0.8 * tread - 0.1, 18)
    edge = band(p.view.v + 0.8 * tread - 0.1, 0.06, 30)
    stone = blend(p.cloud(6), p.colour(0.55, 0.45, 0.36), p.colour(0.48, 0.38, 0.3))
    wall = p.colour(0.82, 0.78, 0.7)
    return blend(edge, p.colour(0.25, 0.18, 0.14), blend(solid, stone, wall))


def _ocean(p: Place) -> Tensor:
    swell = 0.6 * step((13 * p.view.v + 5 * p.cloud(6)).sin(), 2)
    waves = blend(swell, p.colour(0.1, 0.35, 0.6), p.colour(0.2, 0.5, 0.7))
    return blend(p.below(p.horizon - 0.2), waves, p.sky())


def _waterfall(p: Place) -> Tensor:
    cliff = blend(p.cloud(6), p.colour(0.25, 0.33, 0.22), p.colour(0.4, 0.38, 0.36))
    fall = step(0.2 + 0.15 * (p.cloud(6) - 0.5) - p.view.u.abs(), 18)
    pool = blend(p.below(0.6), p.colour(0.35, 0.55, 0.65), cliff)
    return blend(fall, p.snow, pool)


def _sunset(p: Place) -> Tensor:
    glow = blend(
        (p.view.v * 0.5 + 0.5).clamp(0, 1), p.colour(0.98, 0.6, 0.2), p.colour(0.6, 0.25, 0.45)
    )
    disc = step(0.26 - p.view.moved(p.canvas.uniform(-0.4, 0.4), p.horizon).radius, 20)
    return blend(
        p.below(p.horizon + 0.1),
        p.colour(0.15, 0.08, 0.1),
        blend(disc, p.colour(1, 0.9, 0.5), glow),
    )


def _night_sky(p: Place) -> Tensor:
    stars = (torch.rand(p.canvas.n, 1, 32, 32, generator=p.canvas.rng) > 0.97).float()
    ground = p.below(p.horizon + 0.5)
    return blend(
        ground, p.colour(0.03, 0.05, 0.05), blend(stars, p.snow, p.colour(0.05, 0.06, 0.18))
    )


def _alley(p: Place) -> Tensor:
    street = blend(p.below(p.horizon + 0.2), p.colour(0.4, 0.4, 0.4), p.sky())
    walls = step(p.view.u.abs() - 0.35 + 0.25 * p.view.v, 16)
    return blend(walls, blend(p.cloud(6), p.brick, p.brick * 0.6), street)


def _snowfield(p: Place) -> Tensor:
    white = blend(p.cloud(6), p.snow, p.colour(0.8, 0.85, 0.92))
    firs = step(p.wave(p.view.u, 14, 20) - 0.3, 8) * band(p.view.v - p.horizon + 0.1, 0.16)
    return blend(p.below(p.horizon), white, blend(firs, p.forest, p.colour(0.7, 0.78, 0.88)))


def _volcano(p: Place) -> Tensor:
    cone = p.below(p.horizon - 0.5 + 0.9 * p.view.u.abs()) * p.below(-0.45, 20)
    lava = step(-p.view.v - 0.2 + 0.4 * (p.cloud(6) - 0.5), 20)
    return blend(cone, blend(lava, p.colour(0.95, 0.3, 0.1), p.colour(0.28, 0.2, 0.2)), p.sky())


SCENES: dict[str, Drawing] = {
    "beach": _beach,
    "mountain": _mountain,
    "prairie": _prairie,
    "desert": _sandy_desert,
    "skyscraper": _skyscraper,
    "corridor": _corridor,
    "staircase": _staircase,
    "ocean": _ocean,
    "waterfall": _waterfall,
    "sunset": _sunset,
    "night sky": _night_sky,
    "alley": _alley,
    "snowfield": _snowfield,
    "volcano": _volcano,
}


@dataclass(frozen=True)
class Conditions:
    """How far the light, pose and focus of a family of pictures vary."""

    cast: float
    gain: tuple[float, float]
    scale: tuple[float, float]
    turn: float
    shift: float
    horizon: tuple[float, float]
    patches: float  # strength of cloud shadow and uneven ground
    grain: float
    focus: tuple[float, float]
    hidden: float  # threshold of smooth noise above which something unrelated stands in front


CLEAN = Conditions(
    cast=0.03,
    gain=(1.0, 1.12),
    scale=(0.95, 1.05),
    turn=5,
    shift=0.06,
    horizon=(-0.05, 0.1),
    patches=0.05,
    grain=0.015,
    focus=(1.0, 1.0),
    hidden=1.0,
)
TARGET: dict[str, Conditions] = {
    "land": Conditions(
        cast=0.18,
        gain=(0.6, 1.05),
        scale=(0.85, 1.15),
        turn=180,
        shift=0.2,
        horizon=(0.0, 0.0),
        patches=0.18,
        grain=0.05,
        focus=(0.0, 1.0),
        hidden=1.0,
    ),
    "sites": Conditions(
        cast=0.2,
        gain=(0.6, 1.05),
        scale=(0.7, 1.15),
        turn=180,
        shift=0.25,
        horizon=(0.0, 0.0),
        patches=0.22,
        grain=0.06,
        focus=(0.0, 0.9),
        hidden=1.0,
    ),
    "scenes": Conditions(
        cast=0.24,
        gain=(0.55, 1.05),
        scale=(0.7, 1.2),
        turn=12,
        shift=0.25,
        horizon=(-0.3, 0.4),
        patches=0.22,
        grain=0.06,
        focus=(0.0, 0.9),
        hidden=0.8,
    ),
}
FAMILIES: dict[str, dict[str, Drawing]] = {"land": LAND, "sites": SITES, "scenes": SCENES}


def draw_places(canvas: Canvas, ids: Tensor, style: Style, family: str) -> Tensor:
    """Draw places: `ids` index FAMILIES[family]; "target" varies light and pose, "clean" hardly."""
    drawings = tuple(FAMILIES[family].values())
    conditions = CLEAN if style == "clean" else TARGET[family]

    def draw(index: int, part: Canvas) -> Tensor:
        view = part.view(conditions.scale, conditions.turn, conditions.shift)
        if family == "scenes":
            view = View(view.u * (1 - 2 * part.coin(0.5)), view.v)
        place = Place(
            part,
            view,
            part.uniform(-conditions.cast, conditions.cast, 3),
            part.uniform(*conditions.gain),
            part.uniform(*conditions.horizon),
        )
        image = drawings[index](place)
        image = (image + conditions.patches * (part.cloud(9) - 0.5)).expand(-1, 3, -1, -1)
        if conditions.hidden < 1:
            front = place.colour(0.2, 0.22, 0.18) * (0.5 + 1.0 * part.cloud(9))
            image = blend(step(part.cloud(4) - conditions.hidden, 20), front, image)
        return image

    image = canvas.finish(by_class(canvas, ids, draw, 3), 0.0)
    return canvas.weather(image, (1.0, 1.0), conditions.focus, conditions.grain)
