"""The loss of a ControlNet beside a locked pipeline: that of the pipeline's own training (Zhang et al. 2023, eq. 5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rahf.config import GazeFusionConfig
from rahf.diffusion import schedules
from rahf.diffusion.controlnet import network
from rahf.diffusion.feedback import noise as noise_lib
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.diffusion.schedulers import alphas_cumprod
from rahf.nn import functional


class GazeFusionNetwork(nnx.Module):
    """The locked pipeline and the ControlNet, so that the parameters of a run are one tree."""

    def __init__(self, config: GazeFusionConfig):
        """Raises ConfigError: parts that do not fit each other."""
        self.base = StableDiffusion(config.pipeline)
        self.controlnet = network(config.controlnet, config.pipeline).build()


def locked(module: nnx.Module) -> nnx.Module:
    """The same network, whose parameters get no gradient; its inputs do."""
    graphdef, params = functional.split(module)
    return functional.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, params))


def per_example(
    config: GazeFusionConfig,
    model: GazeFusionNetwork,
    batch: Any,
    ids: tuple[Array, ...],
    t: Int[Array, " b"],
    latent_noise: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
) -> Float[Array, " b"]:
    """Mean squared error of what the pipeline predicts (noise, v or the clean latents), float32 [B].

    Args:
      batch: `data_pipelines.gazefusion.loader.ControlBatch`.
      ids: of the captions, those that are left out replaced by the empty one.
      t: timesteps.
      latent_noise: standard normal, of the draw from the autoencoder's distribution.
      noise: standard normal, added to the latents.
    """
    base = locked(model.base)
    size = (*batch.image.shape[1:3], 0, 0, *batch.image.shape[1:3])
    time_ids = None
    if config.pipeline.text_encoder_2 is not None:
        time_ids = jnp.tile(jnp.asarray(size, jnp.float32), (len(batch.image), 1))
    conditions = base.encode_prompt(ids, time_ids)
    x0 = base.encode(batch.image.astype(jnp.float32) / 255, latent_noise)
    abar = jnp.asarray(alphas_cumprod(config.pipeline.scheduler), jnp.float32)[t][:, None, None, None]
    z = schedules.add_noise(x0, noise, abar)
    hint = jnp.repeat(batch.hint[..., None], config.controlnet.conditioning_channels, -1)
    residuals = model.controlnet(z, t, conditions, hint)
    prediction = base(z, t, conditions, residuals)
    return noise_lib.error(config.pipeline.scheduler.prediction_type, prediction, x0, noise, abar)
