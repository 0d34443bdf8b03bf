"""A generator of one matrix, with what `rahf.diffusion.feedback` asks of a Stable Diffusion: it compiles at once."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rahf.config import SchedulerConfig
from rahf.diffusion.feedback.chain import Chain
from rahf.diffusion.networks.stable_diffusion import Conditions
from rahf.nn import functional, layers

SHAPE = (2, 3, 4)  # of latents
SCHEDULER = SchedulerConfig(num_train_timesteps=100, steps_offset=0)


class Toy(nnx.Module):
    """Latents [B,h,w,4] → noise of that shape; decodes the first three channels."""

    def __init__(self):
        self.unet, self.vae = nnx.Module(), nnx.Module()
        self.unet.kernel = layers.parameter(4, 4, std=0.5)
        self.vae.kernel = layers.parameter(4, 3, std=0.5)

    def __call__(self, z, t, conditions):
        words = conditions.text.mean((1, 2))[:, None, None, None]
        return jnp.tanh(z @ self.unet.kernel[...] + words) * (1 + t[:, None, None, None] / 100)

    def decode(self, z):
        return jax.nn.sigmoid(z @ self.vae.kernel[...])


def chain(steps=4, eta=0.0, guidance_scale=2.0, scheduler=SCHEDULER):
    """Its steps."""
    return Chain(functional.abstract(Toy)[0], scheduler, steps, guidance_scale, eta)


def params():
    """Its parameters."""
    return functional.init(Toy, seed=1)


def adapters(seed=0):
    """Of the matrix, neither half zero."""
    draw = np.random.default_rng(seed).normal(size=(2, 4, 2)).astype(np.float32) * 0.5
    return {"unet": {"kernel": {"a": jnp.asarray(draw[0]), "b": jnp.asarray(draw[1].T)}}}


def conditions(batch=3):
    """Of prompts and of negative prompts."""
    text = np.random.default_rng(5).normal(size=(batch, 2, 3)).astype(np.float32)
    return Conditions(jnp.asarray(text)), Conditions(jnp.zeros_like(text))


def keys(batch=3):
    """Of the noise."""
    return jax.vmap(jax.random.key)(jnp.arange(batch))
