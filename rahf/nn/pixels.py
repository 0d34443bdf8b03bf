"""Arguments of a critic's pure JAX functions, checked and brought to the shapes that the network takes.

Differentiable in the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rahf.core import pixel_range
from rahf.core.errors import ImageError
from rahf.core.tree import Params

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Array, Float


def unit(image: Array, side: int) -> Float[Array, "b s s 3"]:
    """uint8 0..255 or float 0..1, [B,h,w,3] of any size → float32 0..1 at the network's side; differentiable.

    Antialiased bilinear; the aspect ratio is not kept.
    """
    scale = 1.0 / 255.0 if jnp.issubdtype(image.dtype, jnp.integer) else 1.0
    x = image.astype(jnp.float32) * scale
    if x.shape[1:3] != (side, side):
        x = jax.image.resize(x, (x.shape[0], side, side, 3), "bilinear", antialias=True)
    return x


def call(function: Callable, params: Params, pixels: Any, text_ids: Any, text_mask: Any) -> jax.Array:
    """Checks pixels, broadcasts the text to one row per image, and calls `function`.

    Args:
      function: of (params, pixels [B,h,w,3], text_ids [B,L], text_mask [B,L]).
      pixels: [B,h,w,3]; or [h,w,3], whose result has no batch axis, either.
      text_ids, text_mask: [B,L]; or [1,L] or [L] for all images.

    Raises:
      ImageError: another shape, or values that cannot be in [0,1] (under `jit`, `grad` and `vmap` only the shape).
      ValueError: another number of rows of text than images.
    """
    pixels, text_ids, text_mask = jnp.asarray(pixels), jnp.asarray(text_ids), jnp.asarray(text_mask)
    single = pixels.ndim == 3
    pixels = pixels[None] if single else pixels
    _check(pixels)
    rows = {len(jnp.atleast_2d(x)) for x in (text_ids, text_mask)}
    if not rows <= {1, len(pixels)}:
        raise ValueError(f"{len(pixels)} images but {max(rows)} rows of text; give one row, or one per image")
    text = (jnp.broadcast_to(x, (len(pixels), x.shape[-1])) for x in (text_ids, text_mask))
    result = function(params, pixels, *text)
    return result[0] if single else result


def _check(pixels: jax.Array) -> None:
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        channels_first = pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4)
        remedy = "; this looks like channels first (CHW), use jnp.moveaxis(pixels, -3, -1)" if channels_first else ""
        raise ImageError(f"pixels of shape {pixels.shape}, expected [B,h,w,3] or [h,w,3]{remedy}")
    if not pixels.size:
        raise ImageError(f"pixels of shape {pixels.shape}: there are none; give at least one image")
    if isinstance(pixels, jax.core.Tracer) or not jnp.issubdtype(pixels.dtype, jnp.floating):
        return
    pixel_range.check("pixels", float(pixels.min()), float(pixels.max()), pixel_range.OPTIMIZED)
