"""Pixels given to JAX functions: checked, and brought to the shape that networks take; differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.core import pixel_range
from rahf.core.errors import ArgumentError, ArgumentTypeError, ImageError
from rahf.core.tree import Params

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Array, Float


_PRECISION = 22  # bits behind the point in Pillow's weights for 8 bit pixels


def unit(image: Array, side: int | tuple[int, int]) -> Float[Array, "b s t 3"]:
    """uint8 0..255 or float 0..1, [B,h,w,3] of any size → float32 0..1 at the network's side, or height and width.

    Antialiased bilinear; the aspect ratio is not kept. uint8 becomes the square of `rahf.images.decode_resized` to the
    bit: it is resized in Pillow's fixed-point arithmetic. Floats are not rounded: the result is differentiable in them.
    """
    shape = (side, side) if isinstance(side, int) else side
    if not jnp.issubdtype(image.dtype, jnp.integer):
        x = image.astype(jnp.float32)
        if x.shape[1:3] != shape:
            x = jax.image.resize(x, (x.shape[0], *shape, 3), "bilinear", antialias=True)
        return x
    rows, columns = image.shape[1] - shape[0], image.shape[2] - shape[1]  # that must go
    height_first = rows > 0 and rows > 2 * columns  # as Pillow 13; the order changes the rounding
    for axis in (1, 2) if height_first else (2, 1):
        image = _resized_bytes(image, shape[axis - 1], axis)
    return image.astype(jnp.float32) * (1.0 / 255.0)


def _resized_bytes(image: Array, side: int, axis: int) -> Array:
    """8 bit pixels resized along one axis, as Pillow's `Image.resize` with the bilinear filter."""
    if image.shape[axis] == side:
        return image
    places, weights = (jnp.asarray(x) for x in _weights(image.shape[axis], side))
    shape = (*image.shape[:axis], side, *image.shape[axis + 1 :])
    along = [side if number == axis else 1 for number in range(image.ndim)]
    whole = image.astype(jnp.int32)

    def add(tap: Array, total: Array) -> Array:
        return total + jnp.take(whole, places[tap], axis=axis) * weights[tap].reshape(along)

    half = jnp.full(shape, 1 << (_PRECISION - 1), jnp.int32)
    return jnp.clip(jax.lax.fori_loop(0, len(places), add, half) >> _PRECISION, 0, 255)


def _weights(size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each tap of the filter and each pixel of the result: the pixel to read, and its weight times 2^22; int32."""
    scale = size / side
    reach = max(scale, 1.0)
    centres = (np.arange(side) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), size)
    places = first + np.arange((last - first).max())[:, None]
    weights = np.maximum(1.0 - np.abs((places - centres + 0.5) / reach), 0.0) * (places < last)
    weights /= weights.sum(axis=0)
    fixed = (0.5 + weights * (1 << _PRECISION)).astype(np.int32)
    return np.minimum(places, size - 1).astype(np.int32), fixed


def batch(pixels: Any, name: str = "pixels") -> tuple[Array, bool]:
    """Pixels as a JAX array [B,h,w,3], uint8 or float, and whether the batch axis was missing.

    Args:
      pixels: uint8, or float in [0,1]: [B,h,w,3] or [h,w,3], of JAX or NumPy; or a list of such arrays of one size.
        Floats may leave [0,1] by 0.25, as pixels that an optimizer changes do.
      name: for messages.

    Raises:
      ImageError: another shape or dtype (both are named), or values that cannot be in [0,1]. Values under `jit`, `grad`
        or `vmap` are not checked.
      ArgumentTypeError: paths, Pillow images or PyTorch tensors; the message says what takes them.
    """
    array = _array(pixels, name)
    single = array.ndim == 3
    array = array[None] if single else array
    if array.ndim != 4 or array.shape[-1] != 3:
        first = array.ndim == 4 and array.shape[1] in (1, 3, 4)
        remedy = "; this looks like channels first (CHW), use jnp.moveaxis(pixels, -3, -1)" if first else ""
        raise ImageError(f"{name} of shape {array.shape}, expected [B,h,w,3] or [h,w,3]{remedy}")
    if not array.size:
        raise ImageError(f"{name} of shape {array.shape}: there are none; give at least one image")
    if array.dtype == jnp.uint8:
        return array, single
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ImageError(f"{name} of type {array.dtype}; {pixel_range.EXPECTED_TYPES}")
    if not isinstance(array, jax.core.Tracer):
        # XLA's CPU backend drops NaN from the minimum and maximum of arrays of some shapes.
        finite = bool(jnp.isfinite(array).all())
        low, high = (float(array.min()), float(array.max())) if finite else (math.nan, math.nan)
        pixel_range.check(name, low, high, pixel_range.OPTIMIZED)
    return array, single


def call(function: Callable, params: Params, pixels: Any, text_ids: Any, text_mask: Any) -> jax.Array:
    """Checks pixels, broadcasts the text to one row per image, and calls `function`.

    Args:
      function: of (params, pixels [B,h,w,3], text_ids [B,L], text_mask [B,L]).
      pixels: as in `batch`; without a batch axis the result has none, either.
      text_ids, text_mask: [B,L]; or [1,L] or [L] for all images.

    Raises:
      ImageError, ArgumentTypeError: as `batch`.
      ValueError: another number of rows of text than images.
    """
    pixels, single = batch(pixels)
    text_ids, text_mask = jnp.asarray(text_ids), jnp.asarray(text_mask)
    rows = {len(jnp.atleast_2d(x)) for x in (text_ids, text_mask)}
    if not rows <= {1, len(pixels)}:
        raise ArgumentError(f"{len(pixels)} images but {max(rows)} rows of text; give one row, or one per image")
    text = (jnp.broadcast_to(x, (len(pixels), x.shape[-1])) for x in (text_ids, text_mask))
    result = function(params, pixels, *text)
    return result[0] if single else result


def _array(pixels: Any, name: str) -> Array:
    if isinstance(pixels, (list, tuple)):
        if not pixels:
            raise ImageError(f"{name}: there are none; give at least one image")
        arrays = [_array(one, f"{name}[{number}]") for number, one in enumerate(pixels)]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise ImageError(f"{name}: images of {len(shapes)} shapes in one list; critic.score takes any sizes")
        return jnp.stack(arrays)
    kind = type(pixels)
    if kind.__module__.partition(".")[0] == "torch":
        raise ArgumentTypeError(
            f"{name}: a PyTorch tensor, whose gradients JAX cannot follow; use rahf.interop.torch.as_torch(critic), or "
            "give tensor.detach().numpy() as [B,h,w,3]"
        )
    if isinstance(pixels, (jax.Array, np.ndarray)):
        # Not by jnp.asarray alone: without 64 bits it would change int64 before the type is checked.
        if isinstance(pixels, np.ndarray) and pixels.dtype.itemsize == 8 and pixels.dtype.kind not in "fV":
            raise ImageError(f"{name} of type {pixels.dtype}; {pixel_range.EXPECTED_TYPES}")
        if isinstance(pixels, np.ndarray) and pixels.dtype.kind not in "fuibV":
            raise ImageError(f"{name} of type {pixels.dtype}; {pixel_range.EXPECTED_TYPES}")
        if isinstance(pixels, np.ma.MaskedArray):
            raise ImageError(f"{name}: {pixel_range.MASKED}")
        if isinstance(pixels, np.ndarray) and not pixels.dtype.isnative:  # JAX takes no other order of bytes
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        return jnp.asarray(pixels)
    raise ArgumentTypeError(
        f"{name}: expected an array [B,h,w,3] of JAX or NumPy, found {kind.__module__}.{kind.__name__}; "
        "critic.score(images, prompts) takes paths, encoded images and Pillow images"
    )
