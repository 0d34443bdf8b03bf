"""Gradients of dense convolutions on a CPU, in a loop and outside of one: XLA's own against `rahf.nn.gradients`.

    python benchmarks/convolutions.py

Prints CPU milliseconds of all threads for both gradients of a 3x3 convolution, the least of three calls; in a loop for
each of two passes. "Eigen" is a program with the compiler option of `rahf.nn.execution.options_of_convolutions`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import measuring
import numpy as np

from rahf.nn import execution, gradients

#: Examples, rows, columns, channels.
SHAPES = ((32, 16, 16, 64), (32, 10, 16, 32), (4, 40, 64, 16), (2, 32, 32, 128))
_PASSES = 2


def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own gradients."""
    return gradients.convolution(x, kernel)


def by_us(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As a training step computes it."""
    with gradients.of_training():
        return gradients.convolution(x, kernel)


def main() -> None:
    """Measures and prints a table."""
    options, rng = execution.options_of_convolutions(), np.random.default_rng(0)
    print(
        "| maps | XLA | ours | XLA, Eigen | ours, Eigen | XLA, in a loop | ours, in a loop | ours, in a loop, Eigen |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for batch, height, width, channels in SHAPES:
        x = jnp.asarray(rng.standard_normal((batch, height, width, channels)), jnp.float32)
        kernel = jnp.asarray(rng.standard_normal((3, 3, channels, channels)), jnp.float32)

        def both(convolve):
            return jax.grad(lambda *pair: jnp.square(convolve(*pair)).sum(), argnums=(0, 1))

        def looped(convolve):
            step = lambda _, pair: jax.tree.map(lambda a, b: a - 1e-9 * b, pair, both(convolve)(*pair))
            return lambda *pair: jax.lax.fori_loop(0, _PASSES, step, pair)

        once = [
            measuring.cpu_milliseconds(jax.jit(both(convolve), compiler_options=given), x, kernel)
            for given in (None, options)
            for convolve in (by_xla, by_us)
        ]
        each = [
            measuring.cpu_milliseconds(jax.jit(looped(convolve), compiler_options=given), x, kernel) / _PASSES
            for convolve, given in ((by_xla, None), (by_us, None), (by_us, options))
        ]
        print(
            f"| {batch} x {height} x {width} x {channels} | " + " | ".join(f"{cell:.0f}" for cell in once + each) + " |"
        )


if __name__ == "__main__":
    main()
