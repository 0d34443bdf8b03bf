"""Draws textured backgrounds and shaded objects."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image
from scipy import ndimage

from data_pipelines.synthetic.shapes import TURN, shape_mask

#: Colours as drawn, 0..1.
RGB = {
    "red": (0.86, 0.12, 0.13),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.98, 0.86, 0.16),
    "green": (0.13, 0.62, 0.24),
    "blue": (0.13, 0.32, 0.86),
    "purple": (0.50, 0.17, 0.70),
    "pink": (0.98, 0.52, 0.72),
    "white": (0.96, 0.96, 0.95),
    "black": (0.12, 0.12, 0.14),
}
#: Background textures and the adjective that a prompt may use for each.
TEXTURES = {
    "gradient": None,
    "clouds": "cloudy",
    "wood": "wooden",
    "stripes": "striped",
    "checks": "checkered",
    "dots": "dotted",
    "sand": "sandy",
}


def draw_object(
    canvas: np.ndarray,
    rng: np.random.Generator,
    shape: str,
    colour: str,
    spot: tuple[float, float, float],
    light: tuple[float, float],
    gloss: float,
) -> None:
    """Draws one shaded object with its shadow into `canvas`.

    Args:
      canvas: float32 [S,S,3] in [0,1], changed in place.
      rng: source of randomness of rotation and shade.
      shape, colour: words of the prompt's vocabulary.
      spot: (x, y, diameter) as shares of the side.
      light: unit vector towards the light, (x, y).
      gloss: 0..1, strength of relief and highlight.
    """
    side = canvas.shape[0]
    diameter = spot[2] * side
    patch = int(math.ceil(diameter)) + 2 * int(math.ceil(0.16 * diameter) + 2)
    left = int(math.floor(spot[0] * side - patch / 2))
    top = int(math.floor(spot[1] * side - patch / 2))
    turn = TURN.get(shape, 0)
    centre = (spot[0] * side - left, spot[1] * side - top)
    mask = shape_mask(shape, patch, centre, 0.5 * diameter, rng.uniform(-turn, turn))
    soft = ndimage.gaussian_filter(mask, 0.055 * diameter, mode="constant", truncate=3.0)
    tint = np.array(RGB[colour]) * rng.uniform(0.93, 1.05) + rng.uniform(-0.025, 0.025, 3)
    colours = _shade(np.clip(tint, 0, 1).astype(np.float32), soft, diameter, light, gloss)
    offset = [int(round(-0.05 * diameter * part)) for part in (light[1], light[0])]
    shadow = 0.42 * ndimage.shift(soft, offset, order=0)
    y0, y1, x0, x1 = max(top, 0), min(top + patch, side), max(left, 0), min(left + patch, side)
    here = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    under = canvas[y0:y1, x0:x1] * (1 - shadow[here][..., None])
    canvas[y0:y1, x0:x1] = under + mask[here][..., None] * (colours[here] - under)


def _shade(tint: np.ndarray, soft: np.ndarray, diameter: float, light: tuple[float, float], gloss: float) -> np.ndarray:
    """Relief: the slope of the softened outline, lit from one side, like a thick sticker."""
    slope = np.zeros_like(soft)
    slope[1:-1] -= light[1] * (soft[2:] - soft[:-2])
    slope[:, 1:-1] -= light[0] * (soft[:, 2:] - soft[:, :-2])
    relief = np.tanh(slope * (0.09 * diameter))
    shade = 0.80 + 0.20 * soft + (0.12 + 0.22 * gloss) * relief
    shine = (0.06 + 0.30 * gloss) * np.clip(relief, 0, 1) ** 2
    return tint * shade[..., None] + shine[..., None]


def smooth_noise(rng: np.random.Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Random values on a coarse grid of `cells` (rows, columns), smoothly enlarged; float32 [side,side]."""
    grid = rng.random((max(2, cells[0]), max(2, cells[1])), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))


def draw_background(rng: np.random.Generator, side: int, texture: str, bold: float) -> np.ndarray:
    """A textured background in muted colours.

    Args:
      rng: source of randomness.
      side: in pixels.
      texture: a key of `TEXTURES`.
      bold: 0..1, strength of the texture.

    Returns:
      float32 [side,side,3] in [0,1].
    """
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = axis[None, :], axis[:, None]
    value = rng.uniform(0.50, 0.74)
    hue = rng.uniform(0.05, 0.11) if texture in ("wood", "sand") else rng.random()
    saturation = rng.uniform(0.10, 0.30) + (0.15 if texture == "wood" else 0.0)
    amplitude = 0.10 + 0.20 * bold
    pattern = _pattern(rng, texture, x, y, side)
    other_hue = (hue + rng.uniform(-0.06, 0.06)) % 1
    dark = colorsys.hsv_to_rgb(hue, saturation, value - amplitude * 0.6)
    pale = colorsys.hsv_to_rgb(other_hue, saturation * 0.8, value + amplitude * 0.6)
    dark, pale = np.array(dark, np.float32), np.array(pale, np.float32)
    return dark + pattern[..., None] * (pale - dark)


def _pattern(rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """float32 [side,side] about 0..1."""
    angle = rng.uniform(0, np.pi)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    across = -x * np.float32(np.sin(angle)) + y * np.float32(np.cos(angle))
    if texture == "gradient":
        low, high = along.min(), along.max()
        return (along - low) / (high - low)
    if texture == "clouds":
        noise = smooth_noise(rng, side, (3, 3)) + 0.5 * smooth_noise(rng, side, (6, 6))
        noise = noise + 0.25 * smooth_noise(rng, side, (13, 13))
        return np.clip(1.6 * (noise / 1.75) - 0.3, 0, 1)
    if texture == "wood":
        upright = rng.random() < 0.5
        bend = smooth_noise(rng, side, (3, 2) if upright else (2, 3))
        fibre = smooth_noise(rng, side, (5, 40) if upright else (40, 5))
        rings = np.sin(2 * np.pi * ((x if upright else y) * rng.uniform(3, 6) + 1.6 * bend))
        return 0.5 + 0.28 * rings + 0.45 * (fibre - 0.5)
    frequency = rng.uniform(4, 8)
    edge = side / frequency / 4  # slope of a border, about one pixel wide
    if texture == "stripes":
        return 0.5 + 0.5 * np.clip(np.sin(2 * np.pi * frequency * along) * edge, -1, 1)
    wave = np.sin(np.pi * frequency * along) * np.sin(np.pi * frequency * across)
    if texture == "checks":
        return 0.5 + 0.5 * np.clip(wave * edge, -1, 1)
    if texture == "dots":
        bumps = np.cos(2 * np.pi * frequency * along) + np.cos(2 * np.pi * frequency * across)
        return 0.3 + 0.7 * np.clip((bumps - 0.7) * edge, 0, 1)
    grain = smooth_noise(rng, side, (48, 48)) + 0.6 * smooth_noise(rng, side, (9, 9))
    return grain / 1.6
