"""The usual loss of a latent diffusion on pictures with prompts: to tell noise and picture apart (Ho et al. 2020)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from rahf.diffusion import schedulers, schedules
from rahf.nn import functional


def per_picture(
    graphdef: nnx.GraphDef,
    params: Any,
    conditions: Any,
    pictures: Float[Array, "b h w 3"],
    timesteps: Array,
    key: Key[Array, ""],
) -> Float[Array, " b"]:
    """Mean squared error of the U-Net's prediction over a picture's latents, float32 [B].

    Args:
      graphdef, params: of a `StableDiffusion`; the autoencoder is constant.
      conditions: `Conditions` of the prompts.
      pictures: in [0,1].
      timesteps: int32 [B].
      key: of the draw of latents and of the noise.
    """
    frozen = functional.merge(graphdef, jax.lax.stop_gradient(params))
    scheduler = frozen.config.scheduler
    abar = jnp.asarray(np.asarray(schedulers.alphas_cumprod(scheduler), np.float32))[timesteps][:, None, None, None]
    of_latents, of_noise = jax.random.split(key)
    shape = jax.eval_shape(frozen.encode, pictures).shape
    latents = frozen.encode(pictures, jax.random.normal(of_latents, shape))
    noise = jax.random.normal(of_noise, shape)
    z = schedules.add_noise(latents, noise, abar)
    v = jnp.sqrt(abar) * noise - jnp.sqrt(1 - abar) * latents
    wanted = {"epsilon": noise, "v_prediction": v, "sample": latents}[scheduler.prediction_type]
    prediction = functional.merge(graphdef, params)(z, timesteps.astype(jnp.float32), conditions)
    return jnp.square(prediction.astype(jnp.float32) - wanted).mean((1, 2, 3))
