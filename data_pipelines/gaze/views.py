"""One picture that people looked at, as a layout finds it, and the checks of what was recorded."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipelines.prepare.counts import Refused
from rahf import images
from rahf.core.files import read_regular

_SLACK = 0.02  # largest relative difference between the aspect ratios of a picture and of its map
_MOST_OUTSIDE = 0.5  # share of the fixations of a picture


class Viewed(NamedTuple):
    """A picture file with what was recorded of it.

    Attributes:
      uid: unique in the dataset.
      file: the picture.
      fixations: reads float [F,4], columns of `data_pipelines.store.records.FIXATION_COLUMNS`; None: not recorded.
      saliency: file of a ready map; None: there is none.
      split: train, dev or test if the layout says so; None: by a hash of the picture.
    """

    uid: str
    file: pathlib.Path
    fixations: Callable[[], np.ndarray] | None = None
    saliency: pathlib.Path | None = None
    split: str | None = None


class Checked(NamedTuple):
    """Fixations inside the picture, float32 [F,4], and how many were outside."""

    points: np.ndarray
    outside: int


def rows(x: object, y: object, viewer: object = -1, duration: object = np.nan) -> np.ndarray:
    """Columns of fixations as float [F,4]; a number stands for all rows.

    Raises:
      Refused: another number of x than of y, or something that is no number.
    """
    try:
        columns = [np.atleast_1d(np.asarray(value, np.float64)).ravel() for value in (x, y, viewer, duration)]
    except (TypeError, ValueError) as error:
        raise Refused("malformed", f"fixations are no numbers ({error})") from error
    count = len(columns[0])
    if len(columns[1]) != count:
        raise Refused("malformed", f"{count} x coordinates but {len(columns[1])} y coordinates")
    for place in (2, 3):
        if len(columns[place]) not in (1, count):
            raise Refused("malformed", f"{count} fixations but {len(columns[place])} viewers or durations")
        columns[place] = np.broadcast_to(columns[place], (count,))
    return np.stack(columns, 1)


def check(points: np.ndarray, size: tuple[int, int], exchange: bool = False) -> Checked:
    """Drops fixations outside the picture.

    Args:
      points: float [F,4].
      size: height and width of the picture in pixels.
      exchange: x and y are exchanged in the file.

    Raises:
      Refused: no fixation; x and y are exchanged; or most fixations lie outside the picture.
    """
    if exchange:
        points = points[:, [1, 0, 2, 3]]
    points = points[np.isfinite(points[:, :2]).all(1)]
    if not len(points):
        raise Refused("no fixations", "nobody's fixations were recorded for this picture")
    inside, turned = (_inside(points[:, order], size) for order in ([0, 1], [1, 0]))
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    text = (
        f"x goes from {low[0]:g} to {high[0]:g} and y from {low[1]:g} to {high[1]:g}, but the picture has "
        f"{size[1]} x {size[0]} pixels (width x height)"
    )
    if turned.all() and not inside.all():
        remedy = "leave --order yx out" if exchange else "read them with --order yx"
        raise Refused("x and y exchanged", f"{text}; exchanged, all fixations are inside: {remedy}")
    if (~inside).mean() > _MOST_OUTSIDE:
        raise Refused(
            "fixations outside the picture",
            f"{text}; expected pixels of the picture as stored, not of the screen that showed it",
        )
    return Checked(points[inside].astype(np.float32), int((~inside).sum()))


def _inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return ((xy >= 0) & (xy <= np.array([size[1], size[0]]))).all(1)


def check_map(grey: np.ndarray, size: tuple[int, int]) -> None:
    """Refuses a map that is 0 everywhere, or of another aspect ratio than its picture. Raises Refused."""
    if not grey.any():
        raise Refused("all-zero map", "the map is 0 everywhere, so it says of no place that people look there")
    height, width = grey.shape
    # Rounding a side to whole pixels changes the product by as much as the other side.
    if abs(height * size[1] - width * size[0]) > max(_SLACK * height * size[1], max(size)):
        raise Refused(
            "map of another shape",
            f"the map has {width} x {height} pixels, the picture {size[1]} x {size[0]}, which is another shape",
        )


def points_of_mask(grey: np.ndarray) -> np.ndarray:
    """Centres of the marked pixels of a picture of fixation points (more than half of white); float [F,4]."""
    row, column = np.nonzero(grey > (127 if grey.dtype == np.uint8 else 0))
    return rows(column + 0.5, row + 0.5)


def read_mask(file: pathlib.Path) -> np.ndarray:
    """Fixations of a picture whose white pixels are fixation points. Raises Refused."""
    try:
        return points_of_mask(images.load_grey(read_regular(file), what=file.name))
    except (OSError, images.ImageError) as error:
        raise Refused("malformed", f"{file.name}: {error}") from error
