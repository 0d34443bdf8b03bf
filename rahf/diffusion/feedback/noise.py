"""The usual loss of a latent diffusion on pictures with prompts: to tell noise and picture apart (Ho et al. 2020).

That of a network which predicts the clean picture counts as the error of the v that it implies: it is divided by
``1 - abar``. Such a network need not carry noise through its layers, which costs width where a cell has many pixels (Li
& He 2025, "Back to basics").
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from rahf.diffusion import schedulers, schedules
from rahf.nn import functional

#: Share of noise below which errors of the clean picture count no more than at it: v blows them up without bound.
_LEAST_NOISE = 0.05


def per_picture(
    graphdef: nnx.GraphDef,
    params: Any,
    conditions: Any,
    pictures: Float[Array, "b h w 3"],
    timesteps: Array,
    key: Key[Array, "*b"],
) -> Float[Array, " b"]:
    """Mean squared error of the U-Net's prediction over a picture's latents, float32 [B].

    Args:
      graphdef, params: of a `StableDiffusion`; the autoencoder is constant.
      conditions: `Conditions` of the prompts.
      pictures: in [0,1].
      timesteps: int32 [B].
      key: of the draw of latents and of the noise; or one of each picture, [B].
    """
    frozen = functional.merge(graphdef, jax.lax.stop_gradient(params))
    scheduler = frozen.config.scheduler
    abar = jnp.asarray(np.asarray(schedulers.alphas_cumprod(scheduler), np.float32))[timesteps][:, None, None, None]
    draws = lambda key, shape: [jax.random.normal(one, shape) for one in jax.random.split(key)]  # noqa: E731
    shape = jax.eval_shape(frozen.encode, pictures).shape
    of_latents, noise = jax.vmap(lambda key: draws(key, shape[1:]))(key) if key.ndim else draws(key, shape)
    latents = frozen.encode(pictures, of_latents)
    z = schedules.add_noise(latents, noise, abar)
    prediction = functional.merge(graphdef, params)(z, timesteps.astype(jnp.float32), conditions)
    return error(scheduler.prediction_type, prediction, latents, noise, abar)


def error(
    prediction_type: str,
    prediction: Float[Array, "b h w c"],
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    abar: Float[Array, "b 1 1 1"],
) -> Float[Array, " b"]:
    """Mean squared error of what a network predicts (noise, v or the clean latents), float32 [B]."""
    v = jnp.sqrt(abar) * noise - jnp.sqrt(1 - abar) * latents
    wanted = {"epsilon": noise, "v_prediction": v, "sample": latents}[prediction_type]
    squared = jnp.square(prediction.astype(jnp.float32) - wanted).mean((1, 2, 3))
    if prediction_type == "sample":
        squared = squared / jnp.maximum(1 - abar[:, 0, 0, 0], _LEAST_NOISE)
    return squared
