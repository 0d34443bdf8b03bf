"""Bilinear resizing of maps and pictures, antialiased where they shrink. NumPy and Pillow only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float, Real, UInt8


def resize(
    values: Real[np.ndarray, "h w *c"], shape: tuple[int, ...], box: tuple[float, float, float, float] | None = None
) -> Float[np.ndarray, "H W *c"] | UInt8[np.ndarray, "H W *c"]:
    """Bilinear resize with half-pixel centres, smoothed when shrinking (`jax.image.resize`, "bilinear").

    A constant map stays exactly constant, because Pillow sums in float64: rounding noise would rank its pixels.

    Args:
      values: [h,w] or [h,w,c] of any real dtype; uint8 with channels has three (RGB).
      shape: (H, W).
      box: the part to keep: left, top, right, bottom as shares of width and height; None: everything.

    Returns:
      uint8 if `values` are uint8, rounded; else float32. Read-only.
    """
    if values.dtype == np.uint8:
        return _resized(values, shape, box)
    values = values.astype(np.float32, copy=False)
    if values.ndim == 2:
        return _resized(values, shape, box)
    return np.stack([_resized(values[:, :, channel], shape, box) for channel in range(values.shape[2])], axis=-1)


def _resized(values: np.ndarray, shape: tuple[int, ...], box: tuple[float, float, float, float] | None) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(values))
    if box is not None:
        box = tuple(edge * side for edge, side in zip(box, (*image.size, *image.size)))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box))
