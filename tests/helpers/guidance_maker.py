"""Gaussian data, whose best denoiser is known, and a quadratic energy: guidance has closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from rahf.diffusion import schedules
from rahf.diffusion.sample import universal_guidance

ALPHAS_CUMPROD = schedules.scaled_linear()
MEAN, TARGET = jnp.array([0.5, -1.0, 2.0, 0.0]), jnp.array([1.0, 1.0, -1.0, 0.5])
ALWAYS = dict(window=(0.0, 1.0))


def gaussian(std=1.0, alphas_cumprod=ALPHAS_CUMPROD):
    """The exact eps of data N(MEAN, std² I): z_t ~ N(sqrt(abar) MEAN, (abar std² + 1 - abar) I)."""
    per_timestep = jnp.asarray(alphas_cumprod, jnp.float32)

    def eps(z, t, cond):
        a = per_timestep[t][:, None].astype(z.dtype)
        return jnp.sqrt(1 - a) * (z - jnp.sqrt(a) * MEAN.astype(z.dtype)) / (a * std**2 + 1 - a)

    return eps


def quadratic(x0):
    return 0.5 * jnp.square(x0 - TARGET).sum(-1)


def start(batch=3, seed=0):
    return universal_guidance.noise(jax.random.key(seed), batch, (4,))


def one_step(abar, abar_prev=0.5):
    """A schedule of one step, as if cut out of a long one."""
    values = [np.float32([x]) for x in (abar, abar_prev, (1 - abar_prev) ** 0.5, 0.0)]
    return schedules.Schedule(np.int32([int(np.argmin(np.abs(ALPHAS_CUMPROD - abar)))]), *values)
