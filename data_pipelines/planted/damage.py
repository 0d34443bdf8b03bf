"""Plants damage like that of image generators in photographs: nine kinds, each within a soft-edged region.

Unlike the damage of `data_pipelines.synthetic.damage`, which is drawn large on small scenes, regions are irregular, may
be barely visible, and the picture may have any shape. Places and lengths are shares of the picture's height.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import fft, ndimage

from data_pipelines.synthetic.damage import Damage

#: Share of pictures with damage, and how likely one, two and three regions are among these.
DAMAGED, COUNTS = 0.88, (0.5, 0.33, 0.17)
#: A damage whose pixels change by less than this on average is not planted: nobody could see it.
VISIBLE = 0.02
SMALLEST, LARGEST = 0.035, 0.17  # radius
_CELL = 8  # side of the cells of latent-like damage in pixels of a picture of 512; autoencoders have this stride
_TRIES = 8


class Region:
    """The rectangle around a damaged region: its pixels, the soft mask, and access to the whole picture.

    Attributes:
      pixels: float32 [h,w,3] in [0,1], a view of the picture.
      mask: float32 [h,w] in [0,1].
      dx, dy: float32, distance from the centre in radii.
      cell: side of a cell in pixels.
    """

    def __init__(self, canvas: np.ndarray, x: float, y: float, radius: float, rng: np.random.Generator):
        height, width = canvas.shape[:2]
        self.canvas, self.radius = canvas, radius * height
        self.x, self.y = x * height, y * height
        self.cell = max(4, round(_CELL * height / 512))
        reach = 1.5 * self.radius
        self.top, bottom = max(0, int(self.y - reach)), min(height, int(self.y + reach) + 1)
        self.left, right = max(0, int(self.x - reach)), min(width, int(self.x + reach) + 1)
        self.where = (slice(self.top, bottom), slice(self.left, right))
        self.pixels = canvas[self.where]
        self.rows = np.arange(self.top, bottom, dtype=np.float32)[:, None]
        self.columns = np.arange(self.left, right, dtype=np.float32)[None, :]
        self.dx, self.dy = (self.columns + 0.5 - self.x) / self.radius, (self.rows + 0.5 - self.y) / self.radius
        self.mask = self._outline(rng)

    def _outline(self, rng: np.random.Generator) -> np.ndarray:
        """An ellipse with an edge that smooth noise makes irregular."""
        turn, squeeze = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
        along = self.dx * math.cos(turn) + self.dy * math.sin(turn)
        across = (self.dy * math.cos(turn) - self.dx * math.sin(turn)) / squeeze
        bumps = self.noise(rng, 0.35 * self.radius) * rng.uniform(0.05, 0.35)
        softness = rng.uniform(0.08, 0.3)
        return np.clip((1 + bumps - np.hypot(along, across)) / softness + 0.5, 0, 1).astype(np.float32)

    def noise(self, rng: np.random.Generator, size: float) -> np.ndarray:
        """Smooth noise of deviation 1 over the rectangle, in lumps of about `size` pixels."""
        values = ndimage.gaussian_filter(rng.standard_normal(self.pixels.shape[:2]), 0.5 * size)
        return (values / max(values.std(), 1e-6)).astype(np.float32)

    def sample(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Pixels of the whole picture at fractional places, bilinear; edges repeat."""
        rows, columns = np.broadcast_arrays(rows, columns)
        channels = [
            ndimage.map_coordinates(self.canvas[..., c], (rows, columns), order=1, mode="nearest") for c in range(3)
        ]
        return np.stack(channels, -1)


def _latent(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Disturbs overlapping cells of the picture: permutes, amplifies, blurs into neighbours or adds noise to them.

    The cells hold cosine coefficients of windows that overlap by half, so that cells leave no edges, as the decoder of
    an autoencoder leaves none.
    """
    cells = _analyse(region.pixels, region.cell)
    height, width = cells.shape[:2]
    rows, columns = np.indices((height, width))
    way = rng.integers(4)
    if way == 0:
        shift = 1 + round(2 * strength)
        jump = rng.integers(-shift, shift + 1, (2, height, width))
        changed = cells[np.clip(rows + jump[0], 0, height - 1), np.clip(columns + jump[1], 0, width - 1)]
    elif way == 1:
        changed = cells * (1.6 + 2.4 * strength) * rng.choice((1.0, 1.0, -1.0), (height, width, 1, 1, 1))
        changed[:, :, 0, 0] = cells[:, :, 0, 0]  # the mean of a cell stays
    elif way == 2:
        drift = np.stack([_grid_noise(rng, (height, width)) for _ in range(2)]) * (1.0 + 2.0 * strength)
        places = np.stack([rows + drift[0], columns + drift[1]]).astype(np.float32)
        flat = cells.reshape(height, width, -1)
        moved = [ndimage.map_coordinates(flat[..., i], places, order=1, mode="nearest") for i in range(flat.shape[-1])]
        changed = np.stack(moved, -1).reshape(cells.shape)
    else:
        frequency = np.add.outer(np.arange(cells.shape[2]), np.arange(cells.shape[2]))[..., None]
        size = (0.25 + 0.75 * strength) * region.cell / (2.0 + frequency)
        changed = cells + size * rng.standard_normal(cells.shape) * (frequency > 0)
    return np.clip(_synthesise(changed, region.pixels.shape, region.cell), 0, 1)


def _grid_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    return values / max(values.std(), 1e-6)


def _window(cell: int) -> np.ndarray:
    """Squares of windows that overlap by half add to 1."""
    side = np.sin(np.pi * (np.arange(2 * cell) + 0.5) / (2 * cell))
    return np.outer(side, side)[..., None]


def _analyse(pixels: np.ndarray, cell: int) -> np.ndarray:
    """float [h,w,3] → cosine coefficients [rows, columns, 2·cell, 2·cell, 3] of overlapping windows."""
    padded = np.pad(pixels, [(cell, cell + -size % cell) for size in pixels.shape[:2]] + [(0, 0)], "symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * cell, 2 * cell), (0, 1))[::cell, ::cell]
    return fft.dctn(np.moveaxis(windows, 2, -1) * _window(cell), axes=(2, 3), norm="ortho")


def _synthesise(cells: np.ndarray, shape: tuple[int, ...], cell: int) -> np.ndarray:
    """The inverse of `_analyse`."""
    blocks = fft.idctn(cells, axes=(2, 3), norm="ortho") * _window(cell)
    rows, columns = cells.shape[:2]
    padded = np.zeros(((rows + 1) * cell, (columns + 1) * cell, 3))
    for i in range(2):
        for j in range(2):
            part = blocks[:, :, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
            part = part.transpose(0, 2, 1, 3, 4).reshape(rows * cell, columns * cell, 3)
            padded[i * cell : (i + rows) * cell, j * cell : (j + columns) * cell] += part
    return padded[cell : cell + shape[0], cell : cell + shape[1]].astype(np.float32)


def _permuted(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Cuts the region into tiles and permutes them."""
    tile = max(4, round(region.radius * rng.uniform(0.2, 0.5)))
    height, width = region.pixels.shape[:2]
    across = -(-width // tile)
    order = rng.permutation(-(-height // tile) * across)
    rows, columns = np.arange(height), np.arange(width)
    source = order[(rows // tile)[:, None] * across + (columns // tile)[None, :]]
    from_rows = np.minimum(source // across * tile + (rows % tile)[:, None], height - 1)
    from_columns = np.minimum(source % across * tile + (columns % tile)[None, :], width - 1)
    return region.pixels[from_rows, from_columns]


def _repeated(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Fills the region with copies of one small patch in it."""
    height, width = region.pixels.shape[:2]
    size = np.maximum(4, np.minimum((height, width), region.radius * rng.uniform(0.25, 0.6, 2))).astype(int)
    corner = [rng.integers(0, full - part + 1) for full, part in zip((height, width), size)]
    rows, columns = np.arange(height)[:, None] % size[0], np.arange(width)[None, :] % size[1]
    return region.pixels[corner[0] + rows, corner[1] + columns]


def _melted(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Shifts neighbouring columns by different lengths down or up, like wet paint."""
    width = region.columns.shape[1]
    drops = np.interp(np.linspace(0, 1, width), np.linspace(0, 1, 9), rng.random(9)).astype(np.float32)
    fall = (0.4 + 1.2 * strength) * region.radius * drops[None, :] * np.clip(0.6 + 0.5 * region.dy, 0, None)
    return region.sample(region.rows - fall * rng.choice((-1, 1)), region.columns)


def _doubled(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Repeats what lies beside the region inside of it, turned a little: a limb or a part that is there twice."""
    turn, away = rng.uniform(-0.7, 0.7), rng.uniform(0, 2 * np.pi)
    distance = region.radius * rng.uniform(0.9, 1.7)
    cosine, sine = math.cos(turn) * region.radius, math.sin(turn) * region.radius
    rows = region.y + distance * math.sin(away) + region.dx * sine + region.dy * cosine
    columns = region.x + distance * math.cos(away) + region.dx * cosine - region.dy * sine
    return region.sample(rows, columns)


def _recoloured(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Turns hues and stains lumps of the region with one colour; brightness stays."""
    pixels = region.pixels
    grey = pixels.mean(-1, keepdims=True)
    turned = grey + np.roll(pixels - grey, rng.integers(1, 3), -1) * (1 + strength)
    stain = rng.standard_normal(3)
    stain = (stain - stain.mean()) / max(np.abs(stain - stain.mean()).max(), 1e-6)
    lumps = np.clip(region.noise(rng, 0.5 * region.radius), 0, 2)[..., None]
    return np.clip(turned + (0.1 + 0.25 * strength) * lumps * stain, 0, 1).astype(np.float32)


def _noisy(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Adds coloured noise of grains of one to four pixels."""
    grain = rng.uniform(0.3, 2.0) * region.cell / _CELL
    noise = np.stack([region.noise(rng, 2 * grain) for _ in range(3)], -1)
    mixed = noise.mean(-1, keepdims=True) + rng.uniform(0, 1.5) * (noise - noise.mean(-1, keepdims=True))
    return np.clip(region.pixels + (0.08 + 0.22 * strength) * mixed, 0, 1)


def _seam(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Shifts one side of a line against the other: edges break off at the line."""
    turn = rng.uniform(0, np.pi)
    side = region.dx * math.cos(turn) + region.dy * math.sin(turn) > rng.uniform(-0.4, 0.4)
    shift = (0.25 + 0.6 * strength) * region.radius * rng.choice((-1, 1)) * side
    moved = region.sample(region.rows + shift * math.cos(turn), region.columns - shift * math.sin(turn))
    # Of one brightness on both sides, a seam in the sky would not be seen at all.
    return np.clip(moved * (1 + 0.12 * rng.choice((-1, 1)) * strength * side[..., None]), 0, 1).astype(np.float32)


def _warped(region: Region, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Bends the region: a whirl around its centre, or waves."""
    if rng.random() < 0.4:
        turn = (1.2 + 2.5 * strength) * np.clip(1.2 - np.hypot(region.dx, region.dy), 0, None) * rng.choice((-1, 1))
        dx = region.dx * np.cos(turn) - region.dy * np.sin(turn)
        dy = region.dx * np.sin(turn) + region.dy * np.cos(turn)
        return region.sample(region.y - 0.5 + dy * region.radius, region.x - 0.5 + dx * region.radius)
    reach = (0.12 + 0.3 * strength) * region.radius
    drift = [reach * region.noise(rng, rng.uniform(0.3, 0.8) * region.radius) for _ in range(2)]
    return region.sample(region.rows + drift[0], region.columns + drift[1])


_CHANGES: dict[str, tuple[float, Callable[[Region, np.random.Generator, float], np.ndarray]]] = {
    "latent": (0.28, _latent),  # the share of regions, and the change
    "permuted": (0.08, _permuted),
    "repeated": (0.08, _repeated),
    "melted": (0.11, _melted),
    "doubled": (0.11, _doubled),
    "recoloured": (0.08, _recoloured),
    "noisy": (0.06, _noisy),
    "seam": (0.08, _seam),
    "warped": (0.12, _warped),
}
KINDS = tuple(_CHANGES)


def plant(canvas: np.ndarray, rng: np.random.Generator) -> tuple[list[Damage], np.ndarray]:
    """Damages up to three regions of a picture.

    Args:
      canvas: float32 [h,w,3] in [0,1], changed in place.
      rng: source of randomness.

    Returns:
      The regions, lengths in shares of the height, areas in shares of its square; and float32 [h,w] in [0,1]: the
      exact soft mask of all of them, 0 where no pixel was changed.
    """
    height, width = canvas.shape[:2]
    mask = np.zeros((height, width), np.float32)
    damages: list[Damage] = []
    count = 0 if rng.random() >= DAMAGED else 1 + rng.choice(len(COUNTS), p=COUNTS)
    for _ in range(count):
        place = _free_place(rng, width / height, damages)
        if place is None:
            break
        region = Region(canvas, *place, rng)
        chosen = _change(region, rng)
        if chosen is None:  # in a plain sky most kinds of damage cannot be seen
            continue
        kind, changed, strength, visibility = chosen
        region.pixels += region.mask[..., None] * (changed - region.pixels)
        mask[region.where] = np.maximum(mask[region.where], region.mask)
        damages.append(Damage(kind, *place, strength, visibility, float(region.mask.sum()) / height**2))
    return damages, mask


def _free_place(rng: np.random.Generator, aspect: float, damages: list[Damage]) -> tuple[float, float, float] | None:
    """Centre and radius of a region apart from the others; None if there is no room."""
    for _ in range(_TRIES):
        radius = math.exp(rng.uniform(math.log(SMALLEST), math.log(min(LARGEST, 0.4 * aspect))))
        x, y = rng.uniform(0.6 * radius, aspect - 0.6 * radius), rng.uniform(0.6 * radius, 1 - 0.6 * radius)
        if all(math.hypot(x - d.x, y - d.y) > 1.2 * (radius + d.radius) for d in damages):
            return x, y, radius
    return None


def _change(region: Region, rng: np.random.Generator) -> tuple[str, np.ndarray, float, float] | None:
    """Tries kinds until one can be seen: its name, the changed pixels, strength and mean change inside of the mask."""
    shares = np.array([share for share, _ in _CHANGES.values()])
    weight = max(float(region.mask.sum()), 1e-6)
    for number in rng.choice(len(KINDS), _TRIES, p=shares / shares.sum()):
        strength = float(rng.beta(1.3, 1.3))
        changed = _CHANGES[KINDS[number]][1](region, rng, strength)
        changed = region.pixels + (0.35 + 0.65 * strength) * (changed - region.pixels)
        visibility = float((np.abs(changed - region.pixels).mean(-1) * region.mask).sum()) / weight
        if visibility >= VISIBLE:
            return KINDS[number], changed, strength, visibility
    return None
