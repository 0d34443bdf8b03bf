"""Maps of where people shall look, to steer a generator by: drawn from shapes, or read from a file. NumPy only.

    shapes = [Gaussian(180, 200, sigma=60), Disc(400, 120, radius=40, value=0.5), Avoid(Disc(60, 60, radius=50))]
    target = draw(shapes, (512, 512))
    pipe("a red cat", control_image=target)

Places are pixels of the picture, x from the left and y from the top.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from rahf import images
from rahf.core.errors import ArgumentError
from rahf.core.files import read_regular
from rahf.images.resize import resize

#: What a map of eight bits can hold at least: less in a region to be avoided counts as nothing there.
_LEAST = 1 / 255


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A soft spot: ``value · exp(-r² / 2 sigma²)`` around (x, y), sigma in pixels."""

    x: float
    y: float
    sigma: float
    value: float = 1.0

    def coverage(self, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """How far each pixel is covered, in [0,1]."""
        return np.exp(-0.5 * np.square(_distance(self, size) / self.sigma))


@dataclasses.dataclass(frozen=True)
class Disc:
    """A disc of one value around (x, y), radius in pixels; its edge is smoothed over one pixel."""

    x: float
    y: float
    radius: float
    value: float = 1.0

    def coverage(self, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """How far each pixel is covered, in [0,1]."""
        return np.clip(self.radius + 0.5 - _distance(self, size), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of one value: pixels from `left` and `top` on, up to `right` and `bottom`, which are outside."""

    left: float
    top: float
    right: float
    bottom: float
    value: float = 1.0

    def coverage(self, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """The share of each pixel that is covered, in [0,1]."""
        y, x = (np.arange(side, dtype=np.float64) for side in size)
        across = np.clip(np.minimum(x + 1, self.right) - np.maximum(x, self.left), 0, 1)
        down = np.clip(np.minimum(y + 1, self.bottom) - np.maximum(y, self.top), 0, 1)
        return down[:, None] * across[None]


Shape = Gaussian | Disc | Box


@dataclasses.dataclass(frozen=True)
class Avoid:
    """A region that nobody shall look at: 0 where the disc or box lies."""

    region: Disc | Box


def draw(shapes: Sequence[Shape | Avoid], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Draws shapes over each other, in their order: each covers what was drawn before it.

    A region to be avoided cuts away what lies below it. It stays empty: a later shape that reaches into it asks for the
    contrary and is refused.

    Args:
      shapes: a Gaussian covers softly, by its own height, so that two far apart do not change each other.
      size: height and width in pixels.

    Returns:
      float32 [h,w], its largest value 1: what a ControlNet reads. `normalised` makes a density of it.

    Raises:
      ArgumentError: a number that makes no sense, nothing drawn, or mass in a region to be avoided; names the shape.
    """
    if len(size) != 2 or min(size) < 1:
        raise ArgumentError(f"size: expected height and width in pixels, found {size}")
    drawn = np.zeros(size)
    forbidden = np.zeros(size, bool)
    for number, shape in enumerate(shapes):
        region = shape.region if isinstance(shape, Avoid) else shape
        _check_shape(region, number)
        covered = region.coverage(size)
        if isinstance(shape, Avoid):
            forbidden |= covered > 0
            drawn = np.where(covered > 0, 0.0, drawn)
            continue
        drawn = (1 - covered) * drawn + covered * shape.value
        # The far tail of a Gaussian is no wish.
        inside = np.where(forbidden, drawn, 0.0)
        if inside.max() > _LEAST * drawn.max():
            raise ArgumentError(
                f"shape {number} ({shape}): puts {inside.sum() / drawn.sum():.1%} of the mass into a region that is "
                "to be avoided; move it, make it smaller, or draw it before the region, which then cuts it"
            )
        drawn = np.where(forbidden, 0.0, drawn)
    return check(drawn, "the drawn map", size, forbidden)


def read(path: str | os.PathLike, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A target map of a picture file, white where people shall look.

    Args:
      size: height and width of the picture to be drawn; the map is brought to it.

    Returns:
      float32 [h,w], its largest value 1.

    Raises:
      ArgumentError: an all-zero map, or one of another aspect.
      ImageError, OSError: it cannot be read.
    """
    name = os.fspath(path)
    return check(np.asarray(images.load_grey(read_regular(path), what=name), np.float64), name, size)


def check(
    target: np.ndarray, name: str, size: tuple[int, int], forbidden: Bool[np.ndarray, "h w"] | None = None
) -> Float[np.ndarray, "h w"]:
    """A map at the picture's size, its largest value 1.

    Args:
      target: [H,W], at least 0, of any scale.
      name: for messages.
      size: height and width of the picture.
      forbidden: bool [h,w] of the picture's size, where no mass may lie.

    Raises:
      ArgumentError: another shape or aspect; negative values or NaN; zero everywhere; mass in a forbidden region.
    """
    target = np.asarray(target, np.float64)
    if target.ndim != 2 or not target.size:
        raise ArgumentError(f"{name}: expected a map [h,w], found shape {target.shape}")
    if not (np.isfinite(target).all() and target.min() >= 0):
        raise ArgumentError(f"{name}: expected values of at least 0 in a map, found negative ones, NaN or infinity")
    if not target.max() > 0:
        raise ArgumentError(f"{name}: the map is 0 everywhere: it asks nobody to look anywhere. Draw where to look")
    height, width = target.shape
    if abs(height * size[1] / width - size[0]) >= 1:
        raise ArgumentError(
            f"{name}: a map of another aspect: {width} x {height}, the picture is {size[1]} x {size[0]}. Draw the map "
            "for this picture, or ask for a picture of its aspect"
        )
    if target.shape != tuple(size):
        target = np.maximum(resize(target.astype(np.float32), size), 0).astype(np.float64)
    target = target / target.max()
    if forbidden is not None:
        if forbidden.shape != target.shape:
            raise ArgumentError(f"{name}: its forbidden regions have shape {forbidden.shape}, expected {target.shape}")
        if (target[forbidden] > _LEAST).any():
            share = target[forbidden].sum() / target.sum()
            raise ArgumentError(f"{name}: asks for {share:.1%} of its mass inside regions that are to be avoided")
    return target.astype(np.float32)


def normalised(target: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The map as a density, float64, sum 1. Raises ArgumentError: zero everywhere, negative or not finite."""
    target = np.asarray(target, np.float64)
    check(target, "the map", target.shape)
    return target / target.sum()


def _distance(shape: Gaussian | Disc, size: tuple[int, int]) -> np.ndarray:
    """From the shape's centre to those of the pixels, which lie at halves."""
    y, x = (np.arange(side) + 0.5 for side in size)
    return np.hypot(y[:, None] - shape.y, x[None] - shape.x)


def _check_shape(shape: Shape, number: int) -> None:
    for name, value in dataclasses.asdict(shape).items():
        if not math.isfinite(value) or (name in ("sigma", "radius") and value <= 0):
            least = "above 0 " if name in ("sigma", "radius") else ""
            raise ArgumentError(f"shape {number} ({shape}): {name}: expected a number {least}of pixels, found {value}")
    if not 0 <= shape.value <= 1:
        raise ArgumentError(f"shape {number} ({shape}): value: expected 0 to 1, found {shape.value}")
    if isinstance(shape, Box) and not (shape.left < shape.right and shape.top < shape.bottom):
        raise ArgumentError(f"shape {number} ({shape}): expected left < right and top < bottom")
