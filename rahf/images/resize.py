"""Bilinear resizing of float maps in NumPy, antialiased where a map shrinks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float, Real


def resize(image: Real[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float[np.ndarray, "H W"]:
    """Bilinear resize with half-pixel centres, smoothed when shrinking (`jax.image.resize`, "bilinear").

    Works in float64 and rounds to float32, so that a constant map stays exactly constant: rounding noise
    would otherwise rank its pixels.

    Args:
      image: [h,w] of any real dtype.
      shape: (H, W).

    Returns:
      float32 [H,W].
    """
    rows, columns = _resize_weights(image.shape[0], shape[0]), _resize_weights(image.shape[1], shape[1])
    return (rows @ image.astype(np.float64) @ columns.T).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _resize_weights(source: int, target: int) -> np.ndarray:
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(source)) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return weights / weights.sum(1, keepdims=True)
