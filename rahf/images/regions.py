"""Heatmap → marked pixels → connected regions. The first steps of a repair mask, and what detection is measured by."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.ndimage

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Bool, Float, Real

#: Pixels that touch at a corner belong to one region.
TOUCHING = np.ones((3, 3), bool)
_SLACK = 1e-6  # of a pixel: areas such as 1000 * (1/1000) must not depend on rounding


@dataclasses.dataclass(frozen=True)
class RegionOptions:
    """Which pixels of a heatmap are a region.

    Attributes:
      threshold: values of at least this are marked; 0.5: at least half of the annotators.
      seeds: of the marked regions keep only those with a value at least this high; None: keep all.
      min_area: regions smaller than this share of the image are dropped.
    """

    threshold: float = 0.5
    seeds: float | None = None
    min_area: float = 0.0


class Component(NamedTuple):
    """One connected region of a heatmap, in pixels of the heatmap."""

    rows: slice
    columns: slice
    mask: Bool[np.ndarray, "h w"]  # within rows and columns
    peak: float  # highest value
    mass: float  # sum of values
    area: int  # number of pixels

    def box(self, size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
        """The smallest box of whole pixels that contains the region, in a picture of another size.

        Args:
          size: height and width of the picture.
          shape: of the heatmap.

        Returns:
          Left, top, right, bottom; right and bottom exclusive.
        """
        (height, width), (y, x) = size, (size[0] / shape[0], size[1] / shape[1])
        left, top = math.floor(self.columns.start * x), math.floor(self.rows.start * y)
        return left, top, min(width, math.ceil(self.columns.stop * x)), min(height, math.ceil(self.rows.stop * y))


def marked(values: Real[np.ndarray, "h w"], options: RegionOptions = RegionOptions()) -> Bool[np.ndarray, "h w"]:
    """The pixels of a heatmap that belong to a region."""
    mask = hysteresis(values, options.threshold, options.seeds)
    return drop_small(mask, options.min_area) if options.min_area > 0 else mask


def components(values: Real[np.ndarray, "h w"], options: RegionOptions = RegionOptions()) -> list[Component]:
    """The connected regions of a heatmap, largest sum of values first; of equal ones the upper left first."""
    numbered, _ = scipy.ndimage.label(marked(values, options), structure=TOUCHING)
    found: list[Component] = []
    for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(numbered), start=1):
        mask = numbered[rows, columns] == number
        inside = values[rows, columns][mask].astype(np.float64)
        found.append(Component(rows, columns, mask, float(inside.max()), float(inside.sum()), inside.size))
    return sorted(found, key=lambda one: -one.mass)


def hysteresis(
    values: Float[np.ndarray, "h w"], threshold: float, seeds: float | None = None
) -> Bool[np.ndarray, "h w"]:
    """Marked pixels: components of `values >= threshold` that have a value `>= seeds` (None: all components).

    Pixels that touch at a corner belong to the same component.
    """
    mask = values >= threshold
    if seeds is None or seeds <= threshold:
        return mask
    labels, count = scipy.ndimage.label(mask, TOUCHING)
    strong = np.zeros(count + 1, bool)
    strong[labels[values >= seeds]] = True
    strong[0] = False
    return strong[labels]


def drop_small(mask: Bool[np.ndarray, "h w"], min_area: float) -> Bool[np.ndarray, "h w"]:
    """Without the components that cover less than the share `min_area` of the image."""
    labels, _ = scipy.ndimage.label(mask, TOUCHING)
    large = np.bincount(labels.ravel()) >= min_area * mask.size - _SLACK
    large[0] = False
    return large[labels]
