"""Drawing primitives of the micro twins: many 32x32 pictures at once, as float32 tensors.

Shapes: a mask or a coordinate is (n, 1, 32, 32), a colour (n, 3, 1, 1), a number a picture
(n, 1, 1, 1) and a picture (n, 3, 32, 32), so that they broadcast. Values lie in [0, 1] unless
stated otherwise. All chance comes from the canvas's own generator.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.15, 0.62, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.95, 0.85, 0.15),
    "orange": (0.95, 0.55, 0.10),
    "purple": (0.52, 0.20, 0.70),
    "pink": (0.95, 0.58, 0.72),
    "brown": (0.48, 0.30, 0.12),
    "black": (0.07, 0.07, 0.08),
    "white": (0.95, 0.95, 0.94),
    "gray": (0.50, 0.50, 0.50),
    "cyan": (0.22, 0.80, 0.86),
}
COLOUR_NAMES = tuple(COLOURS)
RGB = torch.tensor(list(COLOURS.values()))
LEAST_CONTRAST = 0.6  # Euclidean RGB distance that keeps a figure visible on its ground

_axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
_Y, _X = torch.meshgrid(_axis, _axis, indexing="ij")


class View(NamedTuple):
    """Coordinates in which a picture is drawn: u to the right, v downwards, about -1..1."""

    u: Tensor
    v: Tensor

    @property
    def radius(self) -> Tensor:
        """Distance from the origin of the view."""
        return torch.sqrt(self.u * self.u + self.v * self.v)

    def scaled(self, factor: float | Tensor, down: float | Tensor = 0.0) -> "View":
        """Return the view in which a drawing is `factor` as large and lies `down` lower."""
        return View(self.u / factor, (self.v - down) / factor)

    def moved(self, right: float | Tensor, down: float | Tensor = 0.0) -> "View":
        """Return the view in which a drawing lies `right` and `down` of where it was."""
        return View(self.u - right, self.v - down)


def blend(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Lay `over` upon `under` where `mask` is 1."""
    return under + mask * (over - under)


def step(x: Tensor, sharpness: float = 16.0) -> Tensor:
    """Turn a signed quantity into a soft mask: 1 where `x` > 0."""
    return torch.sigmoid(x * sharpness)


def band(x: Tensor, half_width: float | Tensor, sharpness: float = 24.0) -> Tensor:
    """Return a soft mask of |x| < half_width."""
    return step(half_width - x.abs(), sharpness)


def box(view: View, half_width: float | Tensor, half_height: float | Tensor) -> Tensor:
    """Return a soft mask of an upright rectangle about the origin of `view`."""
    return band(view.u, half_width) * band(view.v, half_height)


def blur(image: Tensor) -> Tensor:
    """Average 3x3 neighbourhoods (edge pixels average what they have)."""
    return F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)


def sample(stencils: Tensor, view: View) -> Tensor:
    """Read stencils (n, 64, 64) at the coordinates of `view`; outside -1..1 the mask is 0."""
    grid = torch.cat([view.u, view.v], 1).permute(0, 2, 3, 1)
    return F.grid_sample(stencils[:, None], grid, align_corners=False)


def to_uint8(image: Tensor) -> Tensor:
    """Quantise a picture in [0, 1] to uint8."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Canvas:
    """A stack of `n` empty pictures and the generator that everything drawn on it uses."""

    n: int
    rng: torch.Generator

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        """Draw numbers in [low, high), shape (n, channels, 1, 1)."""
        return torch.rand(self.n, channels, 1, 1, generator=self.rng) * (high - low) + low

    def normal(self, channels: int = 1) -> Tensor:
        """Draw standard normal numbers, shape (n, channels, 1, 1)."""
        return torch.randn(self.n, channels, 1, 1, generator=self.rng)

    def integers(self, high: int) -> Tensor:
        """Draw integers in [0, high), int64, shape (n,)."""
        return torch.randint(0, high, (self.n,), generator=self.rng)

    def coin(self, probability: float) -> Tensor:
        """Return 1.0 with this probability, else 0.0, shape (n, 1, 1, 1)."""
        return (torch.rand(self.n, 1, 1, 1, generator=self.rng) < probability).float()

    def phase(self) -> Tensor:
        """Draw an angle in [0, 2 pi), shape (n, 1, 1, 1)."""
        return self.uniform(0, 2 * math.pi)

    def cloud(self, cells: int) -> Tensor:
        """Draw smooth noise with `cells` independent values along each side."""
        coarse = torch.rand(self.n, 1, cells, cells, generator=self.rng)
        smooth = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
        return smooth.clamp(0, 1)

    def steps(self, columns: int) -> Tensor:
        """Draw a random height for each of `columns` equal columns: a skyline."""
        heights = torch.rand(self.n, 1, 1, columns, generator=self.rng)
        return F.interpolate(heights, size=(SIZE, SIZE), mode="nearest")

    def view(
        self,
        scale: tuple[float, float] = (0.9, 1.1),
        turn: float = 0.0,
        shift: float = 0.0,
        shear: float = 0.0,
    ) -> View:
        """Draw a pose: size in `scale`, rotation within `turn` degrees, offset, shear."""
        angle = self.uniform(-turn, turn) * (math.pi / 180)
        x, y = _X - self.uniform(-shift, shift), _Y - self.uniform(-shift, shift)
        size, slant = self.uniform(*scale), self.uniform(-shear, shear)
        u = (x * angle.cos() + y * angle.sin()) / size
        v = (y * angle.cos() - x * angle.sin()) / size
        return View(u + slant * v, v)

    def cells(self, view: View, count: int) -> tuple[Tensor, Tensor]:
        """Return the distances to the nearest and the second nearest of `count` random points."""
        points = torch.rand(self.n, count, 2, 1, 1, generator=self.rng) * 2.6 - 1.3
        squared = (view.u - points[:, :, 0]) ** 2 + (view.v - points[:, :, 1]) ** 2
        nearest = squared.topk(2, dim=1, largest=False).values.sqrt()
        return nearest[:, :1], nearest[:, 1:]

    def colour_pair(self) -> tuple[Tensor, Tensor]:
        """Draw indices into COLOURS, int64 (n,), for a figure and a ground that contrast."""
        far = torch.cdist(RGB, RGB) > LEAST_CONTRAST
        figure = self.integers(len(RGB))
        ground = torch.multinomial(far[figure].float(), 1, generator=self.rng)[:, 0]
        return figure, ground

    def tint(self, index: Tensor, jitter: float = 0.08) -> Tensor:
        """Return the named colours at `index` (n,), each channel moved by up to `jitter`."""
        return (RGB[index][:, :, None, None] + self.uniform(-jitter, jitter, 3)).clamp(0, 1)

    def free_pair(self, contrast: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Draw any two colours, about `contrast` apart; each channel moves to its roomier side."""
        first, direction = self.uniform(0, 1, 3), self.normal(3).abs()
        direction = direction / direction.square().sum(1, keepdim=True).sqrt().clamp_min(1e-3)
        direction = direction * (1 - 2 * (first > 0.5).float())
        return first, (first + direction * self.uniform(*contrast)).clamp(0, 1)

    def clutter(self) -> Tensor:
        """Draw an out-of-focus background: two colours with a soft border and some shade."""
        first, second = self.uniform(0, 1, 3), self.uniform(0, 1, 3)
        return blend(step(self.cloud(4) - 0.5, 9), first, second) * (0.7 + 0.6 * self.cloud(6))

    def finish(self, image: Tensor, grain: float, exposure: float = 0.12) -> Tensor:
        """Vary contrast and brightness by up to `exposure`, add sensor noise `grain`, clip."""
        image = (image - 0.5) * self.uniform(1 - exposure, 1 + exposure) + 0.5
        image = image + self.uniform(-0.7 * exposure, 0.7 * exposure)
        return (image + torch.randn(image.shape, generator=self.rng) * grain).clamp(0, 1)

    def weather(
        self, image: Tensor, light: tuple[float, float], focus: tuple[float, float], grain: float
    ) -> Tensor:
        """Degrade a picture: light multiplies it, focus 1 is sharp and 0 a 3x3 mean, then noise."""
        sharp = self.uniform(*focus)
        image = blend(sharp, image, blur(image)) * self.uniform(*light)
        return (image + torch.randn(image.shape, generator=self.rng) * grain).clamp(0, 1)
