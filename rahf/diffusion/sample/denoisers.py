"""Any network of a diffusion → the denoiser that `universal_guidance.sample` takes: (z, t, cond) → eps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rahf.core import renamed
from rahf.core.errors import ArgumentError

PredictionType = Literal["epsilon", "v_prediction", "sample"]

#: z [B,...], t int32 [B], cond (any pytree) → predicted noise, of z's shape.
Denoiser = Callable[[Array, Array, Any], Array]


#: Former names of prediction types.
_FORMER_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@renamed.arguments(scale="guidance_scale")
def classifier_free(denoiser: Denoiser, guidance_scale: Any) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): ``eps = eps_negative + scale · (eps_prompt - eps_negative)``.

    Args:
      denoiser: of conditions whose leaves all have the batch axis first.
      guidance_scale: 1: the prompt alone; 1.5 to 3 is usual together with universal guidance.

    Returns:
      A denoiser whose cond is a pair (of the prompt, of the negative or empty prompt). Both are computed in one batch.
    """

    def guided(z: Array, t: Array, cond: Any) -> Array:
        twice = jax.tree.map(lambda *parts: jnp.concatenate(parts), *cond)
        eps = denoiser(jnp.concatenate([z, z]), jnp.concatenate([t, t]), twice)
        prompt, negative = jnp.split(eps, 2)
        return negative + guidance_scale * (prompt - negative)

    return guided


@renamed.arguments(signals="alphas_cumprod", predicts="prediction_type")
def epsilon(
    denoiser: Denoiser, alphas_cumprod: Float[np.ndarray, " t"], prediction_type: PredictionType = "v_prediction"
) -> Denoiser:
    """A network that predicts something else as a denoiser that predicts the noise.

    Args:
      denoiser: predicts "epsilon", the noise; "v_prediction", ``sqrt(abar) eps - sqrt(1 - abar) x0`` (Salimans & Ho
        2022); or "sample", the clean picture.
      alphas_cumprod: ``abar`` of each timestep, as trained.

    Raises:
      ValueError: another prediction type.
    """
    if prediction_type in _FORMER_TYPES:
        renamed.warn(f"prediction_type {prediction_type!r}", repr(_FORMER_TYPES[prediction_type]), 4)
        prediction_type = _FORMER_TYPES[prediction_type]
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ArgumentError(
            f"prediction_type: expected 'epsilon', 'v_prediction' or 'sample', found {prediction_type!r}"
        )
    if prediction_type == "epsilon":
        return denoiser
    per_timestep = np.asarray(alphas_cumprod, np.float32)

    def eps(z: Array, t: Array, cond: Any) -> Array:
        output = denoiser(z, t, cond).astype(jnp.float32)
        abar = _per_sample(per_timestep, t, z)
        z = z.astype(jnp.float32)
        if prediction_type == "v_prediction":
            return jnp.sqrt(abar) * output + jnp.sqrt(1 - abar) * z
        return (z - jnp.sqrt(abar) * output) / jnp.sqrt(1 - abar)

    return eps


@renamed.arguments(signals="alphas_cumprod", known="clean", unknown="repaint")
def inpainting(
    denoiser: Denoiser,
    alphas_cumprod: Float[np.ndarray, " t"],
    clean: Float[Array, "b ..."],
    repaint: Bool[Array, "b ..."],
) -> Denoiser:
    """A denoiser that knows a part of the clean picture, and so paints the rest to fit.

    Its clean estimate is that of `denoiser` where `repaint` is True, and `clean` elsewhere: there, the latents of
    every step are the clean picture with the step's noise, which is what RePaint (Lugmayr et al. 2022, equation 8)
    puts in. `universal_guidance.sample` with recurrences is its resampling. Guidance moves that part a little until
    the next step; lay the clean picture over the final one.

    Args:
      alphas_cumprod: ``abar`` of each timestep, as trained.
      clean: [B,...] clean latents, or pixels in the range of the denoiser's.
      repaint: of that shape or with axes of length 1; True: to be painted.
    """
    per_timestep = np.asarray(alphas_cumprod, np.float32)

    def eps(z: Array, t: Array, cond: Any) -> Array:
        predicted = denoiser(z, t, cond).astype(jnp.float32)
        abar = _per_sample(per_timestep, t, z)
        z = z.astype(jnp.float32)
        return jnp.where(repaint, predicted, (z - jnp.sqrt(abar) * clean) / jnp.sqrt(1 - abar))

    return eps


def _per_sample(per_timestep: np.ndarray, t: Array, like: Array) -> Array:
    """Values of the timesteps t [B], as [B,1,1,...] to go with `like`."""
    return jnp.asarray(per_timestep)[t].reshape(-1, *[1] * (like.ndim - 1))
