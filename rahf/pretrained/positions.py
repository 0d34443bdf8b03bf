"""Position embeddings of one grid of patches interpolated to another, as PyTorch's `interpolate` does it."""

from __future__ import annotations

from typing import Literal

import numpy as np

Interpolation = Literal["bicubic", "bilinear"]


def resize_positions(position: np.ndarray, grid: int, new_grid: int, interpolation: Interpolation) -> np.ndarray:
    """Position embeddings [grid², D] → [new_grid², D], float32, separably over rows and columns.

    Raises:
      ValueError: another interpolation.
    """
    if new_grid == grid:
        return position
    weights = _resize_matrix(grid, new_grid, interpolation)
    square = position.reshape(grid, grid, -1).astype(np.float64)
    square = np.einsum("yr,xc,rcd->yxd", weights, weights, square, optimize=True)
    return square.reshape(new_grid * new_grid, -1).astype(np.float32)


def resize_antialiased(position: np.ndarray, grid: int, new_grid: int) -> np.ndarray:
    """Position embeddings [grid², D] → [new_grid², D], float32, bilinear; coarser grids average over wider triangles.

    As PyTorch's `interpolate(mode="bilinear", antialias=True)`; weights that fall outside of the grid are left out.
    """
    if new_grid == grid:
        return position
    scale = grid / new_grid
    width = max(scale, 1.0)
    centre = (np.arange(new_grid) + 0.5) * scale
    weights = np.clip(1 - np.abs((np.arange(grid)[None] + 0.5 - centre[:, None]) / width), 0, None)
    weights /= weights.sum(1, keepdims=True)
    square = position.reshape(grid, grid, -1).astype(np.float64)
    square = np.einsum("yr,xc,rcd->yxd", weights, weights, square, optimize=True)
    return square.reshape(new_grid * new_grid, -1).astype(np.float32)


def _resize_matrix(size: int, new_size: int, interpolation: Interpolation) -> np.ndarray:
    """Weights [new_size, size] in one dimension: half-pixel centres, repeated border values, no antialiasing."""
    centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    low = np.floor(centre).astype(int)
    fraction = centre - low
    if interpolation == "bilinear":
        taps = {0: 1 - fraction, 1: fraction}
    elif interpolation == "bicubic":
        taps = {offset: _cubic(np.abs(fraction - offset)) for offset in (-1, 0, 1, 2)}
    else:
        raise ValueError(f"interpolation {interpolation!r}: expected 'bicubic' or 'bilinear'")
    weights = np.zeros((new_size, size))
    for offset, weight in taps.items():
        np.add.at(weights, (np.arange(new_size), np.clip(low + offset, 0, size - 1)), weight)
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, the value that PyTorch uses."""
    a, d = -0.75, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
