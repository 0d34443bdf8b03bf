"""The inner problem of backward guidance: a displacement of the clean estimate that lowers the energy."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from rahf.diffusion.sample.options import GuidanceOptions
from rahf.nn import gradients


def descend(
    energy: Callable[[Array], Array], x0: Float[Array, "b ..."], options: GuidanceOptions
) -> tuple[Float[Array, "b ..."], Bool[Array, " b"]]:
    """``argmin_d energy(x0 + d) + total_variation · TV(x0 + d)`` from d = 0 by a few steps of Adam.

    Each sample stops for itself: after `options.backward_steps` steps, when its energy is below
    `options.backward_tolerance`, or when its energy or gradient is not finite, keeping the displacement it
    had.

    Args:
      energy: clean estimates → [B].
      x0: float32 [B,...], the clean estimates.

    Returns:
      The displacements, and whether a sample stopped because something was not finite.
    """
    adam = optax.adam(options.backward_rate)

    def loss(moved: Array) -> tuple[Array, Array]:
        values = energy(x0 + moved)
        return (values + options.total_variation * total_variation(x0 + moved)).sum(), values

    def running(state):
        count, _, _, active, _ = state
        return (count < options.backward_steps) & active.any()

    def step(state):
        count, moved, moments, active, failed = state
        with gradients.of_guidance():
            (_, values), gradient = jax.value_and_grad(loss, has_aux=True)(moved)
        finite = jnp.isfinite(values) & jnp.isfinite(gradient).all(tuple(range(1, x0.ndim)))
        # Adam's moments keep a NaN for ever. The sample has stopped by then, but its row is still computed.
        update, moments = adam.update(jnp.where(rows(finite, x0), gradient, 0.0), moments)
        active, failed = active & finite & (values >= options.backward_tolerance), failed | (active & ~finite)
        return count + 1, jnp.where(rows(active, x0), moved + update, moved), moments, active, failed

    zeros, every = jnp.zeros_like(x0), jnp.ones(x0.shape[0], bool)
    state = (jnp.int32(0), zeros, adam.init(zeros), every, ~every)
    # A while loop ends early, and the trajectory's scan stays the only scan of the program.
    _, moved, _, _, failed = jax.lax.while_loop(running, step, state)
    return moved, failed


def total_variation(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Mean absolute difference between neighbours along the two axes after the batch; length 1 counts 0."""
    total = jnp.zeros(x.shape[0], jnp.float32)
    for axis in range(1, min(x.ndim, 3)):
        if x.shape[axis] > 1:
            total += jnp.abs(jnp.diff(x, axis=axis)).mean(tuple(range(1, x.ndim)))
    return total


def rows(values: Array, like: Array) -> Array:
    """[B] → [B,1,1,...], which broadcasts with `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
