"""Plants implausible damage: eight kinds, each within a soft-edged region, on objects or beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from data_pipelines.synthetic.layout import Spot

#: Share of scenes with damage, and of these the share with two regions.
DAMAGED, DAMAGED_TWICE = 0.85, 0.4
#: A damage whose pixels change by less than this on average would be invisible, and is not planted.
VISIBLE = 0.045
SMALLEST, LARGEST = 0.075, 0.14  # radius as share of the side


@dataclasses.dataclass(frozen=True)
class Damage:
    """One damaged region. Places and radius are shares of the picture's side."""

    kind: str
    x: float
    y: float
    radius: float
    strength: float  # 0..1, as chosen
    visibility: float  # mean absolute change of the pixels inside, 0..1
    area: float  # share of the picture's pixels, soft edge counted by its weight


class _Window:
    """The square of the picture around a region: pixels, soft mask and pixel coordinates."""

    def __init__(self, canvas: np.ndarray, x: float, y: float, radius: float, wobble: np.ndarray):
        side = canvas.shape[0]
        reach = 1.35 * radius * side
        self.canvas, self.side, self.radius = canvas, side, radius * side
        self.x, self.y = x * side, y * side
        left, right = max(0, int(self.x - reach)), min(side, int(self.x + reach) + 1)
        top, bottom = max(0, int(self.y - reach)), min(side, int(self.y + reach) + 1)
        self.where = (slice(top, bottom), slice(left, right))
        self.rows = np.arange(top, bottom, dtype=np.float32)[:, None]
        self.columns = np.arange(left, right, dtype=np.float32)[None, :]
        self.dx = (self.columns + 0.5 - self.x) / self.radius
        self.dy = (self.rows + 0.5 - self.y) / self.radius
        self.distance = np.hypot(self.dx, self.dy)
        turn = np.arctan2(self.dy, self.dx)
        edge = 1 + wobble[0] * np.sin(2 * turn + wobble[1]) + wobble[2] * np.sin(3 * turn + wobble[3])
        self.mask = np.clip((edge - self.distance) / 0.22 + 0.5, 0, 1)
        self.pixels = canvas[self.where]

    def sample(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Pixels of the whole picture at fractional places (bilinear, edges repeat)."""
        limit = self.side - 1
        rows, columns = np.clip(rows, 0, limit), np.clip(columns, 0, limit)
        r0, c0 = rows.astype(np.int32), columns.astype(np.int32)
        r1, c1 = np.minimum(r0 + 1, limit), np.minimum(c0 + 1, limit)
        fr, fc = (rows - r0)[..., None], (columns - c0)[..., None]
        upper = self.canvas[r0, c0] * (1 - fc) + self.canvas[r0, c1] * fc
        lower = self.canvas[r1, c0] * (1 - fc) + self.canvas[r1, c1] * fc
        return upper * (1 - fr) + lower * fr

    def blotches(self, rng: np.random.Generator) -> np.ndarray:
        """Uneven weights 0..1 over the window, in lumps of about a third of the region."""
        height, width = self.pixels.shape[:2]
        lumps = Image.fromarray(rng.random((8, 8), dtype=np.float32))
        lumps = np.asarray(lumps.resize((width, height), Image.Resampling.BICUBIC))
        return np.clip(2.4 * lumps - 0.6, 0, 1)


def _swirl(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Rotates the pixels around the centre, most at the centre."""
    turn = (2.2 + 2.8 * strength) * np.clip(1.25 - w.distance, 0, None) * (1 if rng.random() < 0.5 else -1)
    cosine, sine = np.cos(turn), np.sin(turn)
    dx, dy = w.dx * cosine - w.dy * sine, w.dx * sine + w.dy * cosine
    return w.sample(w.y - 0.5 + dy * w.radius, w.x - 0.5 + dx * w.radius)


def _melt(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Shifts columns down by different lengths, like wet paint."""
    width = w.columns.shape[1]
    drops = np.interp(np.linspace(0, 1, width), np.linspace(0, 1, 9), rng.random(9)).astype(np.float32)
    fall = (0.5 + 1.5 * strength) * w.radius * (0.25 + drops)[None, :] * (0.55 + 0.45 * w.dy)
    rows = w.rows - np.clip(fall, 0, None)
    return w.sample(rows, np.broadcast_to(w.columns, rows.shape))


def _shuffle(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Cuts the region into small tiles and permutes them."""
    tile = max(2, round(w.radius * (0.36 - 0.12 * strength)))
    height, width = w.pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    order = rng.permutation(down * across)
    rows, columns = np.arange(height), np.arange(width)
    source = order[(rows // tile)[:, None] * across + (columns // tile)[None, :]]
    from_rows = np.minimum(source // across * tile + (rows % tile)[:, None], height - 1)
    from_columns = np.minimum(source % across * tile + (columns % tile)[None, :], width - 1)
    return w.pixels[from_rows, from_columns]


def _burst(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Covers the region with coloured noise of small blocks."""
    block = max(1, round(w.side / 72))
    height, width = w.pixels.shape[:2]
    noise = rng.random((-(-height // block), -(-width // block), 3), dtype=np.float32)
    noise = noise.repeat(block, 0).repeat(block, 1)[:height, :width]
    return 0.15 * w.pixels + 0.85 * noise


def _torn(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Cuts the region into bands and shifts them sideways."""
    thickness = max(2.0, 0.3 * w.radius)
    bands = np.floor((w.rows[:, 0] - w.rows[0, 0]) / thickness).astype(np.int64)
    pull = rng.uniform(0.6, 1.0, bands.max() + 1) * (0.5 + 0.9 * strength) * w.radius
    pull[::2] *= -1
    columns = w.columns + pull[bands][:, None].astype(np.float32)
    return w.sample(np.broadcast_to(w.rows, columns.shape), columns)


def _bleed(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Shifts the three colour channels apart and adds blotches of one of them."""
    start = rng.uniform(0, 2 * np.pi)
    reach = (0.35 + 0.55 * strength) * w.radius
    result = np.empty_like(w.pixels)
    for channel in range(3):
        angle = start + channel * 2 * np.pi / 3
        moved = w.sample(w.rows + reach * math.sin(angle), w.columns + reach * math.cos(angle))
        result[..., channel] = moved[..., channel]
    stain = np.full(3, -0.5, np.float32)
    stain[rng.integers(3)] = 1.0
    amount = (0.25 + 0.30 * strength) * w.blotches(rng)
    return np.clip(result + amount[..., None] * stain, 0, 1)


def _smudge(w: _Window, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smudges the region into dull, darker or paler blotches without structure."""
    soft = ndimage.gaussian_filter(w.pixels, (0.5 * w.radius, 0.5 * w.radius, 0))
    grey = soft.mean(axis=-1, keepdims=True)
    shift = (0.20 + 0.30 * strength) * (1 if soft.mean() < 0.45 else -1)
    return np.clip(0.55 * soft + 0.45 * grey + shift * w.blotches(rng)[..., None], 0, 1)


def _copy(w: _Window, rng: np.random.Generator, strength: float, source: Spot) -> np.ndarray:
    """Repeats a fragment of an object, rotated and enlarged, beside the objects."""
    turn = rng.uniform(0.5, 2 * np.pi - 0.5)
    step = 0.6 * w.radius  # enlarged, so that it does not look like another object
    cosine, sine = math.cos(turn) * step, math.sin(turn) * step
    offset = 0.3 * source[2] * w.side
    x = source[0] * w.side - 0.5 + offset * math.cos(turn)
    y = source[1] * w.side - 0.5 + offset * math.sin(turn)
    moved = w.sample(y + w.dx * sine + w.dy * cosine, x + w.dx * cosine - w.dy * sine)
    return moved


_CHANGES: dict[str, Callable[..., np.ndarray]] = {
    "swirl": _swirl,
    "melt": _melt,
    "shuffle": _shuffle,
    "burst": _burst,
    "torn": _torn,
    "bleed": _bleed,
    "smudge": _smudge,
    "copy": _copy,
}
KINDS = tuple(_CHANGES)


def plant_damage(canvas: np.ndarray, rng: np.random.Generator, spots: list[Spot]) -> tuple[list[Damage], np.ndarray]:
    """Damages up to two regions of a picture.

    Args:
      canvas: float32 [S,S,3] in [0,1], changed in place.
      rng: source of randomness.
      spots: objects in the picture.

    Returns:
      The regions, and float32 [S,S] in [0,1]: the soft true mask of all of them.
    """
    side = canvas.shape[0]
    truth = np.zeros((side, side), np.float32)
    damages: list[Damage] = []
    count = 0 if rng.random() >= DAMAGED else 2 if rng.random() < DAMAGED_TWICE else 1
    for _ in range(count):
        for _ in range(8):
            x, y, radius, on_object = _choose_place(rng, spots)
            if all(math.hypot(x - d.x, y - d.y) > 1.2 * (radius + d.radius) for d in damages):
                break
        else:
            break
        wobble = rng.uniform((0.0, 0, 0.0, 0), (0.16, 2 * np.pi, 0.12, 2 * np.pi)).astype(np.float32)
        window = _Window(canvas, x, y, radius, wobble)
        strength = float(rng.uniform(0.1, 1.0))
        kind, changed, visibility = _apply(window, rng, spots, strength, on_object)
        mask = window.mask[..., None]
        window.pixels += mask * (changed - window.pixels)
        area = float(window.mask.sum()) / side**2
        truth[window.where] = np.maximum(truth[window.where], window.mask)
        damages.append(Damage(kind, x, y, radius, strength, visibility, area))
    return damages, truth


def _choose_place(rng: np.random.Generator, spots: list[Spot]) -> tuple[float, float, float, bool]:
    """A random place and radius, and whether it is on an object: mostly so, near its outline; else beside the objects.

    The region is small enough that damaged objects stay recognisable: it must not make the prompt untrue.
    """
    if rng.random() < 0.75 and spots:
        x, y, size = spots[rng.integers(len(spots))]
        radius = float(np.clip(rng.uniform(0.28, 0.40) * size, SMALLEST, LARGEST))
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.45) * size
        return *_inside(x + away * math.cos(angle), y + away * math.sin(angle), radius), radius, True
    radius = float(rng.uniform(SMALLEST, LARGEST))
    for _ in range(10):
        x, y = _inside(*rng.random(2), radius)
        if all(math.hypot(x - spot[0], y - spot[1]) > 0.45 * spot[2] + radius for spot in spots):
            return x, y, radius, False
    return x, y, SMALLEST, bool(spots)


def _inside(x: float, y: float, radius: float) -> tuple[float, float]:
    """The place, moved so that most of the region lies in the picture."""
    low, high = 0.7 * radius, 1 - 0.7 * radius
    return float(np.clip(x, low, high)), float(np.clip(y, low, high))


def _apply(window, rng, spots, strength, on_object) -> tuple[str, np.ndarray, float]:
    """Tries kinds in random order until one is visible; the last one, noise, always is."""
    order = [KINDS[i] for i in rng.permutation(len(KINDS))]
    names = [name for name in order if name != "copy" or (spots and not on_object)]
    weight = float(window.mask.sum())
    for name in [*names[:5], "burst"]:
        extra = (spots[rng.integers(len(spots))],) if name == "copy" else ()
        changed = _CHANGES[name](window, rng, strength, *extra)
        changed = window.pixels + (0.45 + 0.55 * strength) * (changed - window.pixels)
        difference = np.abs(changed - window.pixels).mean(axis=-1)
        visibility = float((difference * window.mask).sum()) / weight
        if visibility >= VISIBLE:
            break
    return name, changed, visibility
