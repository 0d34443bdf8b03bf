"""Pictures of any aspect ratio on a canvas of one size. NumPy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rahf.images.resize import resize

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import UInt8


class Frame(NamedTuple):
    """The part of a canvas that a picture fills, in cells of `stride` pixels.

    Whole cells: a density over the cells is then one over the picture, and no cell belongs to it in part.
    """

    top: int
    left: int
    rows: int
    columns: int

    def slices(self, stride: int = 1) -> tuple[slice, slice]:
        """Rows and columns of the canvas, in units of a `stride`-th of a cell."""
        return (
            slice(self.top * stride, (self.top + self.rows) * stride),
            slice(self.left * stride, (self.left + self.columns) * stride),
        )


def fit(size: tuple[float, float], grid: tuple[int, int]) -> Frame:
    """The largest frame of a picture's aspect ratio in the middle of a canvas.

    Args:
      size: height and width of the picture.
      grid: rows and columns of the canvas's cells, which are square.
    """
    scale = min(grid[0] / size[0], grid[1] / size[1])
    rows, columns = (min(cells, max(1, round(side * scale))) for side, cells in zip(size, grid))
    return Frame((grid[0] - rows) // 2, (grid[1] - columns) // 2, rows, columns)


def fill_value(mean: Sequence[float]) -> UInt8[np.ndarray, "3"]:
    """The colour around a picture: what the network's normalisation makes 0."""
    return np.round(255 * np.asarray(mean)).astype(np.uint8)


def place(
    rgb: UInt8[np.ndarray, "h w 3"],
    frame: Frame,
    canvas: tuple[int, int],
    stride: int,
    fill: np.ndarray,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture, or the part of it that `box` keeps (`rahf.images.resize.resize`), in its frame on a canvas of `fill`.

    Bilinear, antialiased.
    """
    result = np.broadcast_to(fill, (*canvas, 3)).copy()
    result[frame.slices(stride)] = resize(rgb, (frame.rows * stride, frame.columns * stride), box)
    return result
