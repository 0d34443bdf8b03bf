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
from jaxtyping import Array, Float

from rahf.nn import gradients

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
    padded = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    of_kernel = [(part * gradient).sum((0, 1, 2)) for _, _, part in _shifted(padded, taps, stride)]
    # Pixels behind the last whole step of the kernel get no gradient.
    edges = [
        (taps - 1 - first, size - 1 + first - (steps - 1) * stride, stride - 1)
        for (first, _), size, steps in zip((rows, columns), x.shape[1:3], gradient.shape[1:3])
    ]
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    of_x = _taps(spread, kernel[::-1, ::-1], 1, (0, 0), (0, 0))
    return of_x, jnp.stack(of_kernel).reshape(kernel.shape)


_taps_of_training.defvjp(_forward, _backward)
