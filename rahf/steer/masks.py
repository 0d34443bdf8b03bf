"""Heatmap → mask of the pixels to repaint, for inpainting.

threshold (with hysteresis) → drop small components → dilate by a disc → close holes → feather; then, for a latent
diffusion model, any-coverage reduction to its grid. The RAHF paper says "threshold and dilate" and gives no values;
the defaults are ours. This module does not import JAX.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Real

from rahf.core.errors import ArgumentError
from rahf.images.regions import TOUCHING, drop_small, hysteresis
from rahf.images.resize import resize

_SLACK = 1e-6  # of a pixel: radii such as 40 * (1/40) must not depend on rounding


class MaskWarning(UserWarning):
    """A mask covers so much of a picture that inpainting makes a new one rather than a repair."""


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """How a heatmap becomes a mask. Lengths are in image heights, areas in shares of the image.

    Attributes:
      threshold: values of at least this are marked, in (0,1]. 0.3: about one annotator of three.
      seeds: hysteresis: of the marked components keep only those with a value at least this high; None: keep all.
        A usual pair is threshold 0.25 and seeds 0.5.
      min_area: components smaller than this share of the image are dropped.
      dilation: radius of the disc by which the mask grows.
      max_hole: enclosed holes up to this share of the image are closed; 1: all of them, 0: none.
      feather: width of the ramp around the mask over which the repainted picture fades into the original.
      warn_above: above this coverage there is a `MaskWarning`.
    """

    threshold: float = 0.3
    seeds: float | None = None
    min_area: float = 0.001
    dilation: float = 1 / 40
    max_hole: float = 1.0
    feather: float = 0.0
    warn_above: float = 0.6

    def __post_init__(self):
        """Raises ValueError naming the option, what was expected and what was found."""
        if not 0 < self.threshold <= 1:
            raise ArgumentError(f"threshold: expected above 0 and at most 1, found {self.threshold}")
        if self.seeds is not None and not self.threshold <= self.seeds <= 1:
            raise ArgumentError(
                f"seeds: expected from the threshold ({self.threshold}) to 1, found {self.seeds}; "
                "regions grow from the seeds down to the threshold"
            )
        for name in ("min_area", "dilation", "max_hole", "feather", "warn_above"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"{name}: expected 0 to 1, found {getattr(self, name)}")


class Mask(NamedTuple):
    """The region to repaint, at the size of the picture."""

    pixels: Bool[np.ndarray, "h w"]  # to repaint, the feathered ramp included
    alpha: Float[np.ndarray, "h w"]  # float32 in [0,1]: weight of the repainted picture when both are blended
    components: int  # marked regions that were large enough
    peak: float  # highest value of the heatmap
    note: str  # why nothing is to be repainted, or that the mask is very large; "" otherwise

    @property
    def coverage(self) -> float:
        """Share of the picture to repaint, in [0,1]."""
        return float(self.pixels.mean())

    @property
    def empty(self) -> bool:
        """Whether nothing is to be repainted: the picture should stay as it is."""
        return not self.pixels.any()

    def latent(self, cell: int = 8) -> Bool[np.ndarray, "gh gw"]:
        """The mask on the grid of a latent diffusion model; see `to_latent`."""
        return to_latent(self.pixels, cell)


def from_heatmap(
    heatmap: Real[np.ndarray, "h w"],
    size: tuple[int, int] | None = None,
    options: MaskOptions = MaskOptions(),
) -> Mask:
    """A heatmap as the mask of what to repaint.

    Args:
      heatmap: float in [0,1] or uint8 0..255, high = bad, at the network's size or the picture's.
      size: height and width of the picture in pixels; the heatmap is resized to it (bilinear) before anything is
        decided. None: of the heatmap.
      options: thresholds and lengths.

    Returns:
      The mask at `size`. It is empty, with a note that says why, if nothing is marked: leave the picture unchanged.

    Raises:
      ValueError: a heatmap of another shape or range, or with NaN.

    Warns:
      MaskWarning: the mask covers more than `options.warn_above` of the picture.
    """
    mask = noted_from_heatmap(heatmap, size, options)
    if mask.note and not mask.empty:
        warnings.warn(mask.note, MaskWarning, stacklevel=2)
    return mask


def noted_from_heatmap(
    heatmap: Real[np.ndarray, "h w"],
    size: tuple[int, int] | None = None,
    options: MaskOptions = MaskOptions(),
) -> Mask:
    """As `from_heatmap`, without a warning: the mask's note says the same."""
    values = _unit(heatmap)
    size = values.shape if size is None else (int(size[0]), int(size[1]))
    if min(size) < 1:
        raise ArgumentError(f"size: expected height and width of at least 1, found {size}")
    if size != values.shape:
        values = np.clip(resize(values, size), 0, 1)
    peak = float(values.max())
    marked = hysteresis(values, options.threshold, options.seeds)
    kept = drop_small(marked, options.min_area)
    if not kept.any():
        return Mask(kept, kept.astype(np.float32), 0, peak, _why_empty(marked, peak, options))
    components = scipy.ndimage.label(kept, TOUCHING)[1]
    solid = close_holes(dilate(kept, options.dilation), options.max_hole)
    alpha = feather(solid, options.feather)
    mask = Mask(alpha > 0, alpha, components, peak, "")
    if mask.coverage <= options.warn_above:
        return mask
    note = (
        f"the mask covers {mask.coverage:.0%} of the picture, more than {options.warn_above:.0%}: repainting it makes "
        "a new picture; raise the threshold or lower the dilation"
    )
    return mask._replace(note=note)


def dilate(mask: Bool[np.ndarray, "h w"], radius: float) -> Bool[np.ndarray, "h w"]:
    """Every pixel whose centre is at most `radius` image heights from the centre of a pixel of the mask."""
    if radius <= 0 or not mask.any():
        return mask.copy()
    return _distance(mask) <= radius * mask.shape[0] + _SLACK


def close_holes(mask: Bool[np.ndarray, "h w"], max_hole: float = 1.0) -> Bool[np.ndarray, "h w"]:
    """With the enclosed holes that cover at most the share `max_hole` of the image.

    A hole is enclosed if no path of pixels that share edges leads from it to the border of the image.
    """
    holes = scipy.ndimage.binary_fill_holes(mask) & ~mask
    labels, _ = scipy.ndimage.label(holes)  # by edges
    small = np.bincount(labels.ravel()) <= max_hole * mask.size + _SLACK
    small[0] = False
    return mask | small[labels]


def feather(mask: Bool[np.ndarray, "h w"], width: float) -> Float[np.ndarray, "h w"]:
    """A linear ramp around a mask: 1 in it, falling to 0 at `width` image heights from it.

    The ramp lies outside, so that what was marked is repainted wholly.

    Returns:
      float32 [h,w] in [0,1].
    """
    if width <= 0 or not mask.any():
        return mask.astype(np.float32)
    pixels = max(width * mask.shape[0], _SLACK)
    return np.clip(1 - _distance(mask) / pixels, 0, 1).astype(np.float32)


def to_latent(mask: Real[np.ndarray, "h w"], cell: int = 8) -> Real[np.ndarray, "gh gw"]:
    """A mask on a coarser grid, by any coverage: a cell has the highest value of its pixels (max-pooling).

    Nearest or mean sampling would leave thin marked parts untouched.

    Args:
      mask: bool, or any real values.
      cell: side of a cell in pixels; 8 for the latents of Stable Diffusion.

    Returns:
      [ceil(h/cell), ceil(w/cell)] of the same dtype; the cells at the right and lower border may be smaller.
    """
    if cell < 1:
        raise ArgumentError(f"cell: expected at least 1 pixel, found {cell}")
    mask = np.asarray(mask)
    rows, columns = (range(0, side, cell) for side in mask.shape)
    return np.maximum.reduceat(np.maximum.reduceat(mask, rows, axis=0), columns, axis=1)


def _distance(mask: np.ndarray) -> np.ndarray:
    """Of every pixel to the nearest one of the mask, in pixels between centres."""
    return scipy.ndimage.distance_transform_edt(~mask)


def _unit(heatmap: np.ndarray) -> np.ndarray:
    values = np.asarray(heatmap)
    if values.ndim != 2 or not values.size:
        raise ArgumentError(
            f"heatmap: expected [height, width], found shape {values.shape}; give one map of one picture"
        )
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArgumentError("heatmap: has values that are not finite (NaN or infinite)")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ArgumentError(
            f"heatmap: expected values in 0..1, found {low:g} to {high:g}; give uint8, or divide by 255"
        )
    return np.clip(values, 0, 1)


def _why_empty(marked: np.ndarray, peak: float, options: MaskOptions) -> str:
    if marked.any():
        return f"no marked region is as large as {options.min_area:.2%} of the picture"
    if peak < options.threshold:
        return f"no value reaches the threshold {options.threshold:g}; the highest is {peak:.2f}"
    return f"no value reaches {options.seeds:g}, from which regions grow; the highest is {peak:.2f}"
