"""EDICT (Wallace et al. 2023): DDIM over two coupled latents, which can be run backwards exactly.

Each step advances one latent by the noise predicted from the other, then mixes both. It can be inverted by solving for
the latents in the opposite order, so that the gradient of a whole sampling needs the final pair only, whatever the
number of steps (`denoise`).

Un-mixing amplifies rounding errors by up to ``p**-2`` a step: the pair is float32 or float64, only what the network
reads and writes may be of lower precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.config import SchedulerConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedulers
from rahf.nn import gradients

#: (arguments, latents [B,...], timesteps int32 [B]) → predicted noise. `arguments` is any pytree: parameters, prompts.
Denoiser = Callable[[Any, Array, Array], Array]

#: Mixing weight; 0.9 to 0.97 serve for 50 steps.
P = 0.93


class Pair(NamedTuple):
    """The two coupled latents, [B,...]."""

    x: Float[Array, "b ..."]
    y: Float[Array, "b ..."]


class Coefficients(NamedTuple):
    """A step from abar to abar', first the noisiest; NumPy float64 [N].

    Attributes:
      timestep: that the network is given.
      a: ``sqrt(abar' / abar)``.
      b: ``sqrt(1 - abar') - sqrt(abar' (1 - abar) / abar)``.
      swap: bool, whether x and y change their roles (leapfrog).
    """

    timestep: np.ndarray
    a: Float[np.ndarray, " n"]
    b: Float[np.ndarray, " n"]
    swap: np.ndarray


def coefficients(
    config: SchedulerConfig, num_inference_steps: int, leapfrog: bool = True, start: int = 0
) -> Coefficients:
    """The steps of DDIM over the scheduler's timesteps.

    Args:
      config: of the model.
      num_inference_steps: N.
      leapfrog: x and y change their roles at every other step, as in the published code; the paper's steps do not.
      start: number of the first step that is taken.
    """
    timesteps, before, after = schedulers.ddim_alphas(config, num_inference_steps)
    a = np.sqrt(after / before)
    b = np.sqrt(1 - after) - np.sqrt(after * (1 - before) / before)
    swap = leapfrog & (np.arange(num_inference_steps) % 2 == 1)
    return Coefficients(*(column[start:] for column in (timesteps.astype(np.int32), a, b, swap)))


def denoise(
    denoiser: Denoiser,
    coefficients: Coefficients,
    arguments: Any,
    pair: Pair,
    p: float = P,
    wrt_arguments: bool = False,
) -> Pair:
    """From a pair of noise (both the same) to a pair of clean latents; differentiable with flat memory.

    Its gradient keeps the final pair alone: each step is undone to get the pair before it, then differentiated. So the
    memory is that of one step's gradient, whatever the number of steps.

    Args:
      denoiser: of `arguments`; must not close over traced values.
      coefficients: of the steps.
      arguments: handed to the denoiser.
      pair: float32 or float64.
      p: mixing weight.
      wrt_arguments: whether the gradient with respect to `arguments` is computed, too; else it is 0.

    Raises:
      ArgumentError: a pair of lower precision, in which the steps cannot be undone, or a p outside of (0, 1].
    """
    check(pair, p)

    @jax.custom_vjp
    def chain(arguments: Any, pair: Pair) -> Pair:
        return run(denoiser, coefficients, arguments, pair, p)

    def forward(arguments: Any, pair: Pair):
        final = run(denoiser, coefficients, arguments, pair, p)
        return final, (arguments, final)

    def backward(kept, gradient: Pair):
        arguments, final = kept
        return _gradient(denoiser, coefficients, arguments, final, gradient, p, wrt_arguments)

    chain.defvjp(forward, backward)
    return chain(arguments, pair)


def invert(denoiser: Denoiser, coefficients: Coefficients, arguments: Any, pair: Pair, p: float = P) -> Pair:
    """The inverse of `denoise`: from a pair of clean latents to the noise that leads to it. Arguments as there."""
    check(pair, p)
    undo = lambda pair, row: (inverse_step(denoiser, arguments, row, pair, p), None)  # noqa: E731
    return jax.lax.scan(undo, pair, _rows(coefficients, pair.x.dtype), reverse=True)[0]


def run(denoiser: Denoiser, coefficients: Coefficients, arguments: Any, pair: Pair, p: float) -> Pair:
    """`denoise` as a plain scan, in any precision: its gradient keeps every step's values."""
    advance = lambda pair, row: (step(denoiser, arguments, row, pair, p), None)  # noqa: E731
    return jax.lax.scan(advance, pair, _rows(coefficients, pair.x.dtype))[0]


def step(denoiser: Denoiser, arguments: Any, row: Coefficients, pair: Pair, p: float) -> Pair:
    """One coupled step."""
    x, y = _swapped(row, pair)
    x = row.a * x + row.b * _eps(denoiser, arguments, y, row)
    y = row.a * y + row.b * _eps(denoiser, arguments, x, row)
    x = p * x + (1 - p) * y
    y = p * y + (1 - p) * x
    return _swapped(row, Pair(x, y))


def inverse_step(denoiser: Denoiser, arguments: Any, row: Coefficients, pair: Pair, p: float) -> Pair:
    """The pair before a coupled step."""
    x, y = _swapped(row, pair)
    y = (y - (1 - p) * x) / p
    x = (x - (1 - p) * y) / p
    y = (y - row.b * _eps(denoiser, arguments, x, row)) / row.a
    x = (x - row.b * _eps(denoiser, arguments, y, row)) / row.a
    return _swapped(row, Pair(x, y))


def check(pair: Pair, p: float) -> None:
    """Raises ArgumentError as `denoise`."""
    if not 0 < p <= 1:
        raise ArgumentError(f"p: expected above 0 up to 1 (0.93; 0.9 to 0.97 serve), found {p}")
    for latents in pair:
        if latents.dtype not in (jnp.float32, jnp.float64):
            raise ArgumentError(
                f"latents of {latents.dtype}: expected float32 or float64; in lower precision the steps cannot be "
                "undone. The network may compute in bfloat16"
            )


def _gradient(denoiser, coefficients, arguments, final, gradient, p, wrt_arguments):
    """Gradients of the arguments and of the first pair, from those of the last."""
    floats = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(arguments)]
    leaves, tree = jax.tree.flatten(arguments)
    inexact = [leaf for leaf, is_float in zip(leaves, floats) if is_float]

    def with_floats(values):
        values = iter(values)
        return jax.tree.unflatten(tree, [next(values) if f else leaf for leaf, f in zip(leaves, floats)])

    def network(row, z, total):
        """The noise that the network sees in z; and a function of its gradient: that of z, and `total` with those of
        the arguments added."""
        with gradients.of_guidance():
            if wrt_arguments:
                eps, vjp = jax.vjp(lambda v, z: _eps(denoiser, with_floats(v), z, row), inexact, z)
            else:
                eps, vjp = jax.vjp(lambda z: _eps(denoiser, arguments, z, row), z)

        def of_z(gradient):
            *of_values, result = vjp(gradient)
            return result, jax.tree.map(jnp.add, total, of_values[0]) if wrt_arguments else total

        return eps, of_z

    def back(carry, row):
        """Undoes `step` and its gradient together, line by line: what the network computes serves for both.

        The barrier keeps the compiler from running both calls of the network before the first one's gradient, which
        would keep the values of both.
        """
        pair, of_pair, total = carry
        (x, y), (of_x, of_y) = _swapped(row, pair), _swapped(row, of_pair)
        y = (y - (1 - p) * x) / p
        of_x, of_y = of_x + (1 - p) * of_y, p * of_y
        x = (x - (1 - p) * y) / p
        of_x, of_y = p * of_x, of_y + (1 - p) * of_x
        eps, of_z = network(row, x, total)
        y = (y - row.b * eps) / row.a
        of_eps, total = of_z(row.b * of_y)
        of_x, of_y = of_x + of_eps, row.a * of_y
        x, y, of_x, of_y, total = jax.lax.optimization_barrier((x, y, of_x, of_y, total))
        eps, of_z = network(row, y, total)
        x = (x - row.b * eps) / row.a
        of_eps, total = of_z(row.b * of_x)
        of_x, of_y = row.a * of_x, of_y + of_eps
        return (_swapped(row, Pair(x, y)), _swapped(row, Pair(of_x, of_y)), total), None

    zeros = [jnp.zeros_like(leaf) for leaf in inexact]
    rows = _rows(coefficients, final.x.dtype)
    (_, of_pair, total), _ = jax.lax.scan(back, (final, gradient, zeros if wrt_arguments else []), rows, reverse=True)
    values = iter(total if wrt_arguments else zeros)
    nothing = lambda leaf: np.zeros(np.shape(leaf), jax.dtypes.float0)  # noqa: E731 - of whole numbers
    of_leaves = [next(values) if f else nothing(leaf) for leaf, f in zip(leaves, floats)]
    return jax.tree.unflatten(tree, of_leaves), of_pair


def _rows(coefficients: Coefficients, dtype: Any) -> Coefficients:
    return Coefficients(
        jnp.asarray(coefficients.timestep),
        jnp.asarray(coefficients.a, dtype),
        jnp.asarray(coefficients.b, dtype),
        jnp.asarray(coefficients.swap),
    )


def _swapped(row: Coefficients, pair: Pair) -> Pair:
    return Pair(jnp.where(row.swap, pair.y, pair.x), jnp.where(row.swap, pair.x, pair.y))


def _eps(denoiser: Denoiser, arguments: Any, z: Array, row: Coefficients) -> Array:
    return denoiser(arguments, z, jnp.broadcast_to(row.timestep, z.shape[:1])).astype(z.dtype)
