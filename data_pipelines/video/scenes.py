"""Drawn scenes that sway: the flow of every pixel and the modes of the motion are known exactly.

A scene is a still background and layers in front of it. A layer has a texture, an opacity, and modes: complex shapes
over the whole picture, one per frequency, so that its point p is at ``p + F_t(p)`` with

    F_t(p) = m_t(p) - m_0(p),    m_t(p) = Re sum_k shape_k(p) exp(2 pi i k t / T)

As k is a whole number below K, the spectral volume of such a motion is ``S_k = T/2 shape_k`` and ``S_0 = -T m_0``,
without any cut or leakage. A frame is drawn by solving ``p + F_t(p) = q`` for every pixel q, which converges because
neighbouring points move alike. Kinds: grass, leaves, flags, flames, pendulums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_pipelines.video.volume import FPS, FRAMES, TERMS, SpectralVolume

#: Raised with every change that lets the same arguments give other scenes.
VERSION = 1
KINDS = ("grass", "leaves", "flag", "flame", "pendulum")
_ROUNDS = 12  # of the fixed point: the error shrinks by the largest gradient of the flow, below 0.5, in each


class Layer(NamedTuple):
    """Something in front of the background, as it is in frame 0.

    Attributes:
      colour: float32 [h,w,3] in [0,1].
      opacity: float32 [h,w] in [0,1].
      shapes: complex64 [K,h,w,2], pixels; 0 where a frequency is not used.
    """

    colour: np.ndarray
    opacity: np.ndarray
    shapes: np.ndarray


class Scene(NamedTuple):
    """A background and layers, the last one in front.

    Attributes:
      kind: of `KINDS`.
      background: float32 [h,w,3] in [0,1].
    """

    kind: str
    background: np.ndarray
    layers: tuple[Layer, ...]
    frames: int = FRAMES
    fps: float = FPS

    def frame(self, time: int) -> np.ndarray:
        """The picture at a frame, uint8 [h,w,3]; frame 0 is the photograph."""
        picture = self.background.copy()
        rows, columns = np.indices(picture.shape[:2], np.float32)
        for layer in self.layers:
            flow = _layer_flow(layer, time, self.frames)
            y, x = rows.copy(), columns.copy()
            for _ in range(_ROUNDS if time else 0):
                x = columns - _sample(flow[..., 0], y, x)
                y = rows - _sample(flow[..., 1], y, x)
            opacity = _sample(layer.opacity, y, x)[..., None]
            colour = np.stack([_sample(layer.colour[..., channel], y, x) for channel in range(3)], -1)
            picture = opacity * colour + (1 - opacity) * picture
        return np.floor(picture * 255 + 0.5).clip(0, 255).astype(np.uint8)

    def texture(self) -> np.ndarray:
        """The exact flow from frame 0, float32 [T,h,w,2]: that of the frontmost layer at each pixel."""
        texture = np.zeros((self.frames, *self.background.shape[:2], 2), np.float32)
        for layer in self.layers:
            visible = layer.opacity >= 0.5
            shapes = layer.shapes[:, visible]
            factors = np.exp(2j * np.pi * np.arange(len(shapes)) * np.arange(self.frames)[:, None] / self.frames) - 1
            texture[:, visible] = np.tensordot(factors.astype(np.complex64), shapes, 1).real
        return texture

    def volume(self, terms: int = TERMS) -> SpectralVolume:
        """The exact spectral volume, in closed form: its first `terms` terms. Those from `TERMS` on are 0."""
        spectrum = np.zeros((max(terms, TERMS), *self.background.shape[:2], 2), np.complex64)
        for layer in self.layers:
            values = layer.shapes * np.float32(self.frames / 2)
            values[0] = -self.frames * layer.shapes[1:].sum(0).real
            visible = layer.opacity >= 0.5
            spectrum[:TERMS, visible] = values[:, visible]
        return SpectralVolume(spectrum[:terms], self.frames, self.fps)

    def front(self) -> np.ndarray:
        """bool [h,w], where a layer is in front of the background in frame 0."""
        return np.max([layer.opacity >= 0.5 for layer in self.layers], 0)


def scene(seed: int, split: str, index: int, width: int, height: int) -> Scene:
    """Scene number `index` of a split: equal arguments give equal scenes. Kinds take turns."""
    rng = np.random.default_rng([VERSION, seed, *split.encode(), index])
    kind = KINDS[index % len(KINDS)]
    return Scene(kind, _background(rng, height, width), _DRAWN[kind](rng, height, width))


def _layer_flow(layer: Layer, time: int, frames: int) -> np.ndarray:
    """float32 [h,w,2]."""
    used = np.flatnonzero(np.abs(layer.shapes).max((1, 2, 3)) > 0)
    factors = np.exp(2j * np.pi * used * time / frames) - 1
    return np.tensordot(factors, layer.shapes[used], 1).real.astype(np.float32)


def _sample(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(values, [y, x], order=1, mode="nearest")


def _texture(rng: np.random.Generator, height: int, width: int, base: np.ndarray, contrast: float) -> np.ndarray:
    """A mottled surface: smooth noise at three scales, so that motion can be seen everywhere."""
    noise = np.zeros((height, width))
    for scale, share in ((1.2, 0.4), (3.0, 0.6), (9.0, 1.0)):
        smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), scale, mode="wrap")
        noise += share * smooth / smooth.std()
    tint = rng.normal(scale=0.15, size=3)
    return np.clip(base * (1 + contrast * noise[..., None] * (1 + tint) / 1.3), 0, 1).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    sky, ground = rng.uniform(0.45, 0.9, 3), rng.uniform(0.2, 0.55, 3)
    share = np.linspace(0, 1, height)[:, None, None] ** 1.5
    return _texture(rng, height, width, sky * (1 - share) + ground * share, 0.08)


def _smooth_step(values: np.ndarray) -> np.ndarray:
    """Opacity from a signed distance in pixels: 1 inside, an edge of one pixel."""
    return np.clip(values + 0.5, 0, 1).astype(np.float32)


def _frequencies(rng: np.random.Generator, low: int, high: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct terms between low and high, and amplitudes that fall with the frequency and sum to 1."""
    terms = np.sort(rng.choice(np.arange(low, high + 1), count, replace=False))
    amplitudes = rng.uniform(0.6, 1.4, count) / terms
    return terms, amplitudes / amplitudes.sum()


def _shapes(height: int, width: int) -> np.ndarray:
    return np.zeros((TERMS, height, width, 2), np.complex64)


def _phase(rng: np.random.Generator) -> complex:
    return np.exp(2j * np.pi * rng.random())


def _grass(rng: np.random.Generator, height: int, width: int) -> tuple[Layer, ...]:
    """Rows of blades that bend with the square of the height above the ground, in waves that cross the picture."""
    rows, columns = np.indices((height, width), np.float32)
    layers = []
    for depth in range(2):
        top = height * rng.uniform(0.35, 0.5) + depth * height * 0.18
        blades = top + height * 0.08 * ndimage.gaussian_filter1d(rng.normal(size=width), 0.8, mode="wrap") / 0.5
        colour = _texture(rng, height, width, np.array([0.25, 0.55, 0.2]) * rng.uniform(0.7, 1.3, 3), 0.2)
        bend = (np.clip((height - rows) / (height - top), 0, 1.6) ** 2)[..., None]
        shapes, (terms, amplitudes) = _shapes(height, width), _frequencies(rng, 1, 7, 3)
        for term, amplitude in zip(terms, amplitudes):
            wave = np.exp(2j * np.pi * rng.uniform(0.3, 0.9) * rng.choice([-1, 1]) * columns / width) * _phase(rng)
            size = amplitude * 0.03 * width * rng.uniform(0.7, 1.2)
            shapes[term] += size * bend * wave[..., None] * np.array([1.0, 0.12])
        layers.append(Layer(colour, _smooth_step(rows - blades[None]), shapes))
    return tuple(layers)


def _rotation(rows: np.ndarray, columns: np.ndarray, pivot: tuple[float, float]) -> np.ndarray:
    """Displacement (x, y) of a small turn by one radian about (row, column)."""
    return np.stack([rows - pivot[0], -(columns - pivot[1])], -1)


def _turning(rng, rows, columns, pivot, angle: float, low: int, high: int, count: int) -> np.ndarray:
    shapes, (terms, amplitudes) = _shapes(*rows.shape), _frequencies(rng, low, high, count)
    for term, amplitude in zip(terms, amplitudes):
        shapes[term] += amplitude * angle * _phase(rng) * _rotation(rows, columns, pivot)
    return shapes


def _leaves(rng: np.random.Generator, height: int, width: int) -> tuple[Layer, ...]:
    """Leaves that turn about their stalks, some in front of others."""
    rows, columns = np.indices((height, width), np.float32)
    layers = []
    for _ in range(int(rng.integers(4, 7))):
        pivot = rng.uniform(0.05, 0.6) * height, rng.uniform(0.15, 0.85) * width
        length, tilt = rng.uniform(0.3, 0.5) * height, rng.uniform(-0.7, 0.7)
        along = (rows - pivot[0]) * np.cos(tilt) + (columns - pivot[1]) * np.sin(tilt)
        across = -(rows - pivot[0]) * np.sin(tilt) + (columns - pivot[1]) * np.cos(tilt)
        share = np.clip(along / length, 0, 1)
        half = 0.34 * length * np.sin(np.pi * share) ** 0.8
        colour = _texture(rng, height, width, np.array([0.3, 0.5, 0.15]) * rng.uniform(0.6, 1.5, 3), 0.22)
        colour *= 1 - 0.35 * np.exp(-((across / 1.2) ** 2))[..., None]  # the midrib
        shapes = _turning(rng, rows, columns, pivot, rng.uniform(0.1, 0.2), 2, 11, 3)
        layers.append(
            Layer(colour.astype(np.float32), _smooth_step(np.where(half > 0.3, half - np.abs(across), -1)), shapes)
        )
    return tuple(layers)


def _flag(rng: np.random.Generator, height: int, width: int) -> tuple[Layer, ...]:
    """A striped cloth whose waves run away from the pole and grow."""
    rows, columns = np.indices((height, width), np.float32)
    top, bottom, left = (rng.uniform(*bounds) for bounds in ((0.12, 0.25), (0.6, 0.8), (0.12, 0.25)))
    top, bottom, left, right = top * height, bottom * height, left * width, rng.uniform(0.75, 0.9) * width
    along = np.clip((columns - left) / (right - left), 0, 1.4)
    stripes = (np.floor((rows - top) / (bottom - top) * rng.integers(3, 6)) % 2)[..., None]
    first, second = rng.uniform(0.1, 0.95, 3), rng.uniform(0.1, 0.95, 3)
    colour = _texture(rng, height, width, first * stripes + second * (1 - stripes), 0.14)
    inside = np.minimum(np.minimum(rows - top, bottom - rows), np.minimum(columns - left, right - columns))
    shapes, (terms, amplitudes) = _shapes(height, width), _frequencies(rng, 4, 13, 3)
    for term, amplitude in zip(terms, amplitudes):
        wave = np.exp(-2j * np.pi * rng.uniform(0.7, 1.3) * along) * _phase(rng) * along
        size = amplitude * 0.07 * height
        shapes[term] += size * wave[..., None] * np.array([0.3, 1.0])
    pole = np.abs(columns - left + 2) - 1.5
    wood = _texture(rng, height, width, np.array([0.45, 0.3, 0.2]), 0.1)
    still = Layer(wood, _smooth_step(np.minimum(-pole, rows - top + 6)), _shapes(height, width))
    return Layer(colour, _smooth_step(inside), shapes), still


def _flame(rng: np.random.Generator, height: int, width: int) -> tuple[Layer, ...]:
    """Flames that flicker at their tips; a small hot one in front of a large one."""
    rows, columns = np.indices((height, width), np.float32)
    layers, foot, middle = [], 0.85 * height, rng.uniform(0.4, 0.6) * width
    for size, base in ((1.0, np.array([0.95, 0.45, 0.1])), (0.6, np.array([1.0, 0.8, 0.35]))):
        tall, half = size * rng.uniform(0.55, 0.65) * height, size * rng.uniform(0.15, 0.22) * width
        up = np.clip((foot - rows) / tall, 0, 1.3)
        outline = half * np.sqrt(np.clip(up, 0, 1)) * np.clip(1 - up, 0, 1) * 2.2
        inside = np.minimum(np.where(outline > 0.3, outline - np.abs(columns - middle), -1), foot - rows)
        shapes, (terms, amplitudes) = _shapes(height, width), _frequencies(rng, 6, 15, 4)
        for term, amplitude in zip(terms, amplitudes):
            wave = up**1.5 * np.exp(-2j * np.pi * rng.uniform(0.3, 0.6) * up) * _phase(rng)
            shapes[term] += amplitude * 0.05 * width * wave[..., None] * np.array([1.0, 0.5])
        layers.append(Layer(_texture(rng, height, width, base, 0.18), _smooth_step(inside), shapes))
    return tuple(layers)


def _pendulum(rng: np.random.Generator, height: int, width: int) -> tuple[Layer, ...]:
    """Discs on strings that swing about their pivots and pass in front of each other."""
    rows, columns = np.indices((height, width), np.float32)
    layers = []
    for number in range(int(rng.integers(2, 4))):
        pivot = -0.05 * height, (0.25 + 0.22 * number + rng.uniform(-0.05, 0.05)) * width
        length, radius = rng.uniform(0.5, 0.8) * height, rng.uniform(0.09, 0.15) * height
        disc = radius - np.hypot(rows - pivot[0] - length, columns - pivot[1])
        string = np.minimum(0.9 - np.abs(columns - pivot[1]), pivot[0] + length - rows)
        colour = _texture(rng, height, width, rng.uniform(0.15, 0.95, 3), 0.25)
        shapes = _turning(rng, rows, columns, pivot, rng.uniform(0.08, 0.16), 2, 5, 1)
        layers.append(Layer(colour, _smooth_step(np.maximum(disc, string)), shapes))
    return tuple(layers)


_DRAWN: dict[str, Callable[[np.random.Generator, int, int], tuple[Layer, ...]]] = {
    "grass": _grass,
    "leaves": _leaves,
    "flag": _flag,
    "flame": _flame,
    "pendulum": _pendulum,
}
