"""What the stages of the motion model learn. All values are per example, float32 [B]."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from data_pipelines.video.loader import MotionBatch
from rahf.diffusion import schedules
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.network import MotionModel

#: Weights of the autoencoder's loss (Li et al. 2024).
L1_WEIGHT, GRADIENT_WEIGHT, KL_WEIGHT = 1.0, 0.2, 1e-6
_LEAST_MOTION = 1e-3  # mean normalised magnitude that every frequency counts for
_JITTER = 0.01  # standard deviation of noise on the autoencoder's input
_SCALES = 4  # of the gradients: the picture and three halvings


class AutoencoderLoss(NamedTuple):
    """Parts of the autoencoder's loss, float32 [B] each, not weighted."""

    l1: Float[Array, " b"]
    gradient: Float[Array, " b"]
    kl: Float[Array, " b"]

    @property
    def total(self) -> Float[Array, " b"]:
        """The weighted sum."""
        return L1_WEIGHT * self.l1 + GRADIENT_WEIGHT * self.gradient + KL_WEIGHT * self.kl


def autoencoder(
    model: MotionModel, batch: MotionBatch, scales: Float[Array, " k"], keys: Key[Array, " b"]
) -> AutoencoderLoss:
    """One random frequency of each clip through the autoencoder.

    Args:
      model: the network.
      batch: of clips.
      scales: of the frequencies.
      keys: of each example.
    """
    which, noise, jitter = _keys(keys, 3)
    normalised = spectrum_lib.normalise(batch.spectrum, scales, model.config.normalisation)
    slices = _one_frequency(normalised, moving_frequencies(which, normalised))
    # A drawn scene does not move at all in some frequencies. At an input of zeros every norm of the network multiplies
    # the gradient by 1000, and it overflows.
    shake = jax.vmap(lambda key: jax.random.normal(key, slices.shape[1:]))(jitter)
    latents = model.encode(slices + _JITTER * shake)
    draws = jax.vmap(lambda key: jax.random.normal(key, latents.mean.shape[1:]))(noise)
    decoded = model.vae.decode(latents.mean + latents.std * draws)
    variance = jnp.square(latents.std)
    kl = 0.5 * (jnp.square(latents.mean) + variance - 1 - jnp.log(variance)).sum((1, 2, 3))
    return AutoencoderLoss(jnp.abs(decoded - slices).mean((1, 2, 3)), multi_scale_gradient(decoded - slices), kl)


def multi_scale_gradient(error: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean absolute differences of neighbours of an error, at up to four scales, each half the one before, summed."""
    total = jnp.zeros(error.shape[0])
    for _ in range(_SCALES):
        if min(error.shape[1:3]) < 2:
            break
        for axis in (1, 2):
            total = total + jnp.abs(jnp.diff(error, axis=axis)).mean((1, 2, 3))
        h, w = error.shape[1] // 2, error.shape[2] // 2
        error = error[:, : 2 * h, : 2 * w].reshape(-1, h, 2, w, 2, error.shape[-1]).mean((2, 4))
    return total


def denoising(
    model: MotionModel,
    batch: MotionBatch,
    scales: Float[Array, " k"],
    alphas_cumprod: Float[Array, " t"],
    keys: Key[Array, " b"],
    timesteps: Array | None = None,
) -> Float[Array, " b"]:
    """Mean squared error of the predicted noise (Ho et al. 2020); the latents are constants.

    Args:
      model: the network; its stage decides whether one frequency of each clip is denoised, or all together.
      batch: of clips.
      scales: of the frequencies.
      alphas_cumprod: of the timesteps.
      keys: of each example.
      timesteps: int32 [B]; None: random ones.
    """
    config = model.config
    which, _, latent, _, _ = _keys(keys, 5)
    normalised = spectrum_lib.normalise(batch.spectrum, scales, config.normalisation)
    frequencies = None
    if config.stage != "frequency" and not model.volume:
        frequencies = _frequencies(which, scales)
        normalised = _one_frequency(normalised, frequencies)[:, None]
    clean = _latents(model, normalised, latent)
    return noise_error(model, clean, frequencies, batch.image, alphas_cumprod, keys, timesteps)


def noise_error(
    model: MotionModel,
    clean: Float[Array, "b k h w c"],
    frequencies: Array | None,
    images: UInt8[Array, "b H W 3"],
    alphas_cumprod: Float[Array, " t"],
    keys: Key[Array, " b"],
    timesteps: Array | None = None,
) -> Float[Array, " b"]:
    """`denoising` of latents that are at hand.

    Args:
      model: the network.
      clean: scaled latents.
      frequencies: int32 [B], the term of each example where k is 1 and a term is denoised alone; None: all together.
      images: the photographs.
      alphas_cumprod, keys, timesteps: as of `denoising`.
    """
    _, when, _, noise, dropped = _keys(keys, 5)
    if timesteps is None:
        timesteps = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(alphas_cumprod)))(when)
    kept = jax.vmap(lambda key: jax.random.uniform(key) >= model.config.image_dropout)(dropped)
    photographs = model.condition(images, kept)
    draws = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(noise)
    noisy = schedules.add_noise(clean, draws, alphas_cumprod[timesteps][:, None, None, None, None])
    if frequencies is None:
        predicted = model.denoise(noisy, timesteps, photographs)
    else:
        predicted = model.denoise_slice(noisy[:, 0], timesteps, frequencies, photographs)[:, None]
    return jnp.square(predicted - draws).mean((1, 2, 3, 4))


def _latents(model: MotionModel, normalised: Float[Array, "b k h w 4"], keys: Key[Array, " b"]) -> Array:
    """Scaled latents of all given slices, [B,k,h,w,c], without a gradient."""
    b, k = normalised.shape[:2]
    latents = model.encode(normalised.reshape(b * k, *normalised.shape[2:]))
    mean, std = (part.reshape(b, k, *part.shape[1:]) for part in latents)
    draws = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return jax.lax.stop_gradient((mean + std * draws) * model.latent_scale[...])


def _keys(keys: Key[Array, " b"], count: int) -> tuple[Key[Array, " b"], ...]:
    parts = jax.vmap(lambda key: jax.random.split(key, count))(keys)
    return tuple(parts[:, number] for number in range(count))


def _frequencies(keys: Key[Array, " b"], scales: Array) -> Array:
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, len(scales)))(keys)


def moving_frequencies(keys: Key[Array, " b"], normalised: Float[Array, "b k h w 4"]) -> Array:
    """A frequency of each clip, drawn in proportion to its mean magnitude.

    In drawn scenes most slices are zero, and the median that an absolute error asks for is zero, too: of slices drawn
    alike an autoencoder learnt within 400 steps to say zero everywhere.
    """
    logits = jnp.log(jnp.abs(normalised).mean((2, 3, 4)) + _LEAST_MOTION)
    return jax.vmap(jax.random.categorical)(keys, logits)


def _one_frequency(values: Float[Array, "b k h w 4"], frequencies: Array) -> Float[Array, "b h w 4"]:
    return jnp.take_along_axis(values, frequencies[:, None, None, None, None], 1)[:, 0]
