"""Depthwise convolution of EfficientNet-Lite0's shapes on a CPU: XLA's grouped convolution against `rahf.nn.depthwise`.

    python benchmarks/depthwise.py

Prints CPU milliseconds of all threads, the least of three calls, for the convolution and for its two gradients.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import measuring
import numpy as np

from rahf.nn import gradients
from rahf.nn.depthwise import depthwise

#: Side, channels, side of the kernel, stride; with pictures of 256 pixels.
SHAPES = ((128, 32, 3, 1), (128, 96, 3, 2), (64, 144, 3, 1), (32, 240, 5, 1), (16, 480, 5, 1), (8, 1152, 5, 1))


def by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own convolution with a group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def by_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """As a training step computes it."""
    with gradients.of_training():
        return depthwise(x, kernel, stride)


def main(batch: int = 8) -> None:
    """Measures and prints a table."""
    rng = np.random.default_rng(0)
    print(f"| maps ({batch} examples) | kernel, stride | XLA | XLA, gradients | taps | taps, gradients |")
    print("|---|---|---|---|---|---|")
    for side, channels, size, stride in SHAPES:
        x = jnp.asarray(rng.standard_normal((batch, side, side, channels)), jnp.float32)
        kernel = jnp.asarray(rng.standard_normal((size, size, channels)), jnp.float32)
        cells = []
        for convolve in (by_xla, by_taps):
            forward = functools.partial(convolve, stride=stride)
            squares = lambda x, kernel, forward=forward: jnp.square(forward(x, kernel)).sum()
            cells += [measuring.cpu_milliseconds(jax.jit(forward), x, kernel)]
            cells += [measuring.cpu_milliseconds(jax.jit(jax.grad(squares, argnums=(0, 1))), x, kernel)]
        print(f"| {side} x {side} x {channels} | {size}, {stride} | " + " | ".join(f"{c:.0f}" for c in cells) + " |")


if __name__ == "__main__":
    main()
