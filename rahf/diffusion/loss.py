"""What the denoiser learns: to tell noise and picture apart (Ho et al. 2020; v: Salimans & Ho 2022).

A network that gives the clean picture (x0) need not carry noise through its layers, which costs width where a cell
has many pixels (Li & He 2025, "Back to basics"). Its error counts as that of the v it implies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rahf.config import PixelDiffusionConfig
from rahf.core.batch import Batch
from rahf.diffusion import schedules
from rahf.diffusion.networks import pixel_unet
from rahf.nn import pixels

#: Share of noise below which errors of the clean picture count no more than at it: v blows them up without bound.
_LEAST_NOISE = 0.05


def per_example(
    config: PixelDiffusionConfig,
    model: pixel_unet.TextToImage,
    batch: Batch,
    t: Int[Array, " b"],
    noise: Float[Array, "b s s 3"],
    dropped: Array | None = None,
) -> Float[Array, " b"]:
    """Mean squared error of the prediction over a picture's pixels and channels; of x0, divided by ``1 - abar``.

    Args:
      batch: images and prompts; labels are not looked at.
      t: times, from 0 to `config.num_train_timesteps` - 1.
      noise: standard normal.
      dropped: bool [B], whose prompts are left out; None: nobody's.

    Returns:
      float32 [B].
    """
    x0 = 2.0 * pixels.unit(batch.image, config.image_size) - 1.0
    signal = jnp.asarray(pixel_unet.alphas_cumprod(config), jnp.float32)[t][:, None, None, None]
    z = schedules.add_noise(x0, noise, signal)
    mask = batch.text_mask if dropped is None else batch.text_mask & ~dropped[:, None]
    v = jnp.sqrt(signal) * noise - jnp.sqrt(1 - signal) * x0
    wanted = {"epsilon": noise, "v_prediction": v, "sample": x0}[config.prediction_type]
    prediction = model(z, t, model.encode(batch.text_ids, mask))
    error = jnp.square(prediction.astype(jnp.float32) - wanted).mean((1, 2, 3))
    if config.prediction_type == "sample":
        error = error / jnp.maximum(1 - signal[:, 0, 0, 0], _LEAST_NOISE)
    return error


def drawn(
    config: PixelDiffusionConfig,
    model: pixel_unet.TextToImage,
    batch: Batch,
    key: Key[Array, ""],
    examples: Float[Array, ""],
) -> Float[Array, ""]:
    """The training loss: random times, noise and left-out prompts, summed and divided by `examples`.

    The times of a batch are spread evenly over all times (Kingma et al. 2021), which lowers the gradient's
    variance.
    """
    b = batch.text_ids.shape[0]
    when, what, which = jax.random.split(key, 3)
    spread = (jax.random.uniform(when) + jnp.arange(b) / b) % 1.0
    t = jnp.minimum((spread * config.num_train_timesteps).astype(jnp.int32), config.num_train_timesteps - 1)
    noise = jax.random.normal(what, (b, config.image_size, config.image_size, 3))
    dropped = jax.random.bernoulli(which, config.prompt_dropout, (b,))
    values = per_example(config, model, batch, t, noise, dropped)
    return jnp.where(batch.example_mask, values, 0.0).sum() / examples


def repeatable(config: PixelDiffusionConfig, model: pixel_unet.TextToImage, batch: Batch) -> Float[Array, " b"]:
    """The evaluation loss, float32 [B]: time and noise of an example follow from its position in the split
    alone."""
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(batch.index.astype(jnp.uint32))
    side = config.image_size
    noise = jax.vmap(lambda key: jax.random.normal(key, (side, side, 3)))(keys)
    # The golden ratio spreads any number of examples evenly over the times.
    spread = (batch.index.astype(jnp.float32) * 0.6180339887) % 1.0
    t = jnp.clip((spread * config.num_train_timesteps).astype(jnp.int32), 0, config.num_train_timesteps - 1)
    return per_example(config, model, batch, t, noise)
