"""Fixations → the density of where people look; densities as PNG of 16 bits."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from rahf import images
from rahf.core.errors import ArgumentError

#: A stored density has at least so many cells per standard deviation: bilinear interpolation then adds next to nothing.
_CELLS_PER_SIGMA = 6
_MOST = 65535


def gaussian(
    points: np.ndarray, size: tuple[int, int], sigma: float, grid: tuple[int, int] | None = None
) -> np.ndarray:
    """The sum of one Gaussian per fixation, cut off at the picture's edges, sum 1.

    Args:
      points: float [F,2 or more], x and y in pixels of the picture.
      size: height and width of the picture in pixels.
      sigma: standard deviation in pixels of the picture.
      grid: rows and columns of the result, whose cells divide the picture evenly; None: one cell per pixel.

    Returns:
      float64 [h,w].

    Raises:
      ArgumentError: no fixation, or no positive standard deviation.
    """
    points = np.asarray(points, np.float64)
    if not len(points) or not sigma > 0:
        raise ArgumentError(f"density: expected fixations and a sigma above 0, found {len(points)} and {sigma}")
    factors = []
    for column, side, cells in zip((1, 0), size, grid or size):
        centres = (np.arange(cells) + 0.5) * side / cells
        factors.append(np.exp(-0.5 * np.square((centres - points[:, column, None]) / sigma)))
    density = factors[0].T @ factors[1]
    return density / density.sum()


def counts(points: np.ndarray, size: tuple[float, float], grid: tuple[int, int]) -> np.ndarray:
    """How many fixations fall into each cell of a grid; float32 [h,w]. Arguments as of `gaussian`."""
    result = np.zeros(grid, np.float32)
    np.add.at(result, cells_of(points, size, grid), 1.0)
    return result


def cells_of(points: np.ndarray, size: tuple[float, float], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the cell that each fixation falls into."""
    points = np.asarray(points, np.float64).reshape(-1, np.shape(points)[-1])
    row, column = (
        np.clip(np.floor(points[:, axis] * cells / side).astype(np.int64), 0, cells - 1)
        for axis, side, cells in zip((1, 0), size, grid)
    )
    return row, column


def stored_grid(size: tuple[int, int], sigma: float) -> tuple[int, int]:
    """Rows and columns of the density to store for a picture: `_CELLS_PER_SIGMA` cells per sigma, or one per pixel."""
    step = max(1.0, sigma / _CELLS_PER_SIGMA)
    return max(1, round(size[0] / step)), max(1, round(size[1] / step))


def encode(density: np.ndarray) -> bytes:
    """float [h,w], not negative, not all zero → PNG of 16 bit grey whose largest value is 65535."""
    scaled = np.round(np.asarray(density, np.float64) * (_MOST / density.max())).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(scaled).save(buffer, "PNG")
    return buffer.getvalue()


def decode(encoded: bytes, what: str = "density") -> np.ndarray:
    """The inverse of `encode`, up to a factor: float32 [h,w] of sum 1; also of maps of 8 bits.

    Raises:
      rahf.images.ImageError: no picture, or a map that is 0 everywhere.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            deep = image.mode.startswith("I") and image.width * image.height <= images.MAX_PIXELS
            values = np.asarray(image, np.float64) if deep else None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise images.ImageError(f"{what}: cannot be decoded ({error})") from error
    if values is None:
        values = images.load_grey(encoded, what=what).astype(np.float64)
    total = values.sum()
    if not total > 0:
        raise images.ImageError(f"{what}: is 0 everywhere, so it says of no place that people look there")
    return (values / total).astype(np.float32)
