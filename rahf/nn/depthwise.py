"""Depthwise convolution: every channel is filtered on its own.

Kept by hand for speed: XLA's CPU backend computes grouped convolutions, and still more their gradients, one output at a
time (`python benchmarks/depthwise.py` compares them). There the convolution is written as a sum of shifted images, one
for each tap of the kernel. GPUs and TPUs get XLA's own convolution, unless the program was exported on a CPU. The
values differ in the order of summation only.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.nn import gradients

#: Rows at most that the gradient of a kernel is summed over at a time.
_ROWS = 16
#: Pixels of padding in front of and behind each axis; "same": so that the side is divided by the stride, rounded up.
Padding = tuple[int, int] | str


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int = 1, padding: Padding = "same"
) -> Float[Array, "b h2 w2 c"]:
    """Convolves each channel with its own square kernel, in the dtype of x.

    Args:
      x: maps.
      kernel: one filter per channel.
      stride: of both axes.
      padding: zeros in front of and behind both axes. "same" puts the smaller half in front, as TensorFlow does.
    """
    rows = _edges(x.shape[1], kernel.shape[0], stride, padding)
    columns = _edges(x.shape[2], kernel.shape[1], stride, padding)
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None, :],
            (stride, stride),
            (rows, columns),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
    taps = _taps_of_training if gradients.reordered() else _taps
    # In float32, for sums of many terms: over taps, and over all pixels in the gradient of the kernel.
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
    return taps(*wide, stride, rows, columns).astype(x.dtype)


def _edges(size: int, taps: int, stride: int, padding: Padding) -> tuple[int, int]:
    if not isinstance(padding, str):
        return padding
    missing = max((-(-size // stride) - 1) * stride + taps - size, 0)
    return missing // 2, missing - missing // 2


def _taps(x, kernel, stride, rows, columns):
    """The convolution as a sum over taps of shifted images."""
    x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    y = None
    for i, j, part in _shifted(x, kernel.shape[0], stride):
        y = part * kernel[i, j] if y is None else y + part * kernel[i, j]
    return y


def _shifted(padded: jax.Array, taps: int, stride: int):
    """For each tap (i, j) the image that it multiplies."""
    height, width = ((size - taps) // stride * stride + 1 for size in padded.shape[1:3])
    for i in range(taps):
        for j in range(taps):
            yield i, j, padded[:, i : i + height : stride, j : j + width : stride]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _taps_of_training(x, kernel, stride, rows, columns):
    return _taps(x, kernel, stride, rows, columns)


def _forward(x, kernel, stride, rows, columns):
    return _taps(x, kernel, stride, rows, columns), (x, kernel)


def _backward(stride, rows, columns, kept, gradient):
    """The gradient of x is the convolution of the spread-out gradient with the kernel turned by half a turn."""
    x, kernel = kept
    taps = kernel.shape[0]
    of_kernel = _of_kernel(jnp.pad(x, ((0, 0), rows, columns, (0, 0))), gradient, taps, stride)
    # Pixels behind the last whole step of the kernel get no gradient.
    edges = [
        (taps - 1 - first, size - 1 + first - (steps - 1) * stride, stride - 1)
        for (first, _), size, steps in zip((rows, columns), x.shape[1:3], gradient.shape[1:3])
    ]
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    of_x = _taps(spread, kernel[::-1, ::-1], 1, (0, 0), (0, 0))
    return of_x, of_kernel


def _of_kernel(padded: jax.Array, gradient: jax.Array, taps: int, stride: int) -> jax.Array:
    """The gradient of the kernel [k,k,c]: for each tap the sum over all pixels of image times gradient.

    A few rows of one example after the other, so that they stay in the processor's cache for all taps. Their sum over
    rows is written out, and runs over neighbouring values of memory: the compiler's own sums over pixels take six
    times as long.
    """
    batch, height, width, channels = gradient.shape
    block = max(n for n in range(1, min(height, _ROWS) + 1) if height % n == 0)
    # Columns that one tap meets lie beside each other. The barrier keeps the compiler from making them anew each time.
    phases = jax.lax.optimization_barrier([padded[:, :, first::stride] for first in range(stride)])
    span = (block - 1) * stride + taps

    def rows_of_one(sums, number):
        example, first = number // (height // block), number % (height // block) * block
        take = (
            lambda x, start, rows: jax.lax.dynamic_slice(  # noqa: E731
                x, (example, start, 0, 0), (1, rows, *x.shape[2:])
            )[0]
        )
        parts, of_rows = [take(x, first * stride, span) for x in phases], take(gradient, first, block)
        new = []
        for (i, j), total in zip(np.ndindex(taps, taps), sums, strict=True):
            column = j // stride
            for row in range(block):
                total += parts[j % stride][i + row * stride, column : column + width] * of_rows[row]
            new.append(total)
        return new, None

    start = [jnp.zeros((width, channels), gradient.dtype)] * taps**2
    sums, _ = jax.lax.scan(rows_of_one, start, jnp.arange(batch * (height // block)))
    return jnp.stack([total.sum(0) for total in sums]).reshape(taps, taps, channels)


_taps_of_training.defvjp(_forward, _backward)
