"""The outlines of the shapes, and their coverage of pixels with smooth edges."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

#: Shapes are drawn this many times larger and then reduced.
SUPERSAMPLING = 4
_RING_HOLE = 0.52  # radius of the hole, as share of the ring's
#: Largest rotation of a shape to either side, in degrees: no shape may become another one.
TURN = {"square": 18, "triangle": 18, "cross": 16, "heart": 20, "star": 30, "crescent": 40}


def _circle(count: int = 72) -> np.ndarray:
    return _polar(np.arange(count) * 2 * np.pi / count)


def _polar(angles: np.ndarray, reach: np.ndarray | float = 1.0) -> np.ndarray:
    return np.stack([np.cos(angles) * reach, np.sin(angles) * reach], 1)


def _star() -> np.ndarray:
    number = np.arange(10)
    return _polar(number * np.pi / 5 - np.pi / 2, np.where(number % 2 == 0, 1.06, 0.47))


def _heart() -> np.ndarray:
    t = np.arange(72) * np.pi / 36
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 16.5


def _cross() -> np.ndarray:
    a, b = 0.36, 0.98
    corner = [(-a, -b), (a, -b), (a, -a)]  # the upper arm and its inner corner; rotated for the other three
    points = []
    for _ in range(4):
        points += corner
        corner = [(-y, x) for x, y in corner]
    return np.array(points)


def _crescent() -> np.ndarray:
    """The outer arc of the unit circle, and back along a smaller circle that is shifted to the right."""
    shift, small = 0.45, 0.78
    x = (1 - small**2 + shift**2) / (2 * shift)  # where the circles meet
    outer, inner = math.acos(x), math.acos((x - shift) / small)
    there = _polar(np.linspace(outer, 2 * np.pi - outer, 48))
    back = _polar(np.linspace(2 * np.pi - inner, inner, 40), small) + [shift, 0]
    return np.concatenate([there, back]) + [0.22, 0]


#: Polygons [n,2] (x right, y down) of about unit radius around the origin.
_OUTLINE = {
    "circle": _circle() * 0.96,
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.84,
    "triangle": _polar(np.array([-np.pi / 2, np.pi / 6, 5 * np.pi / 6])) * 1.1 + [0, 0.17],
    "star": _star(),
    "heart": _heart(),
    "ring": _circle(),
    "cross": _cross(),
    "crescent": _crescent(),
}


def shape_mask(shape: str, side: int, centre: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Coverage of a shape.

    Args:
      shape: a word of `language.SHAPES`.
      side: of the square mask in pixels.
      centre: (x, y) in pixels.
      radius: in pixels.
      angle: rotation in degrees.

    Returns:
      float32 [side,side] in [0,1].
    """
    big = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    pencil = ImageDraw.Draw(big)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[cosine, sine], [-sine, cosine]])

    def outline(points: np.ndarray, scale: float) -> list[tuple[float, float]]:
        moved = (points @ turn * (radius * scale) + centre) * SUPERSAMPLING - 0.5
        return [tuple(point) for point in moved.tolist()]

    pencil.polygon(outline(_OUTLINE[shape], 1.0), fill=255)
    if shape == "ring":
        pencil.polygon(outline(_OUTLINE["ring"], _RING_HOLE), fill=0)
    return np.asarray(big.reduce(SUPERSAMPLING), np.float32) / 255
