"""Any network of a diffusion → the denoiser that `rahf.diffusion.sample.universal_guidance` takes: (z, t, cond) → eps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

#: z [B,...], t int32 [B], cond (any pytree) → predicted noise, of z's shape.
Denoiser = Callable[[Array, Array, Any], Array]


def classifier_free(denoiser: Denoiser, scale: Any) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): ``eps = eps_empty + scale · (eps_prompt - eps_empty)``.

    Args:
      denoiser: of conditions whose leaves all have the batch axis first.
      scale: 1: the prompt alone; 1.5 to 3 is usual together with universal guidance.

    Returns:
      A denoiser whose cond is a pair (of the prompt, of the empty prompt). Both are computed in one batch.
    """

    def both(z: Array, t: Array, cond: Any) -> Array:
        twice = jax.tree.map(lambda *parts: jnp.concatenate(parts), *cond)
        eps = denoiser(jnp.concatenate([z, z]), jnp.concatenate([t, t]), twice)
        given, empty = jnp.split(eps, 2)
        return empty + scale * (given - empty)

    return both


def epsilon(
    denoiser: Denoiser, signals: Float[np.ndarray, " t"], predicts: Literal["eps", "v", "x0"] = "v"
) -> Denoiser:
    """A network that predicts something else as a denoiser that predicts the noise.

    Args:
      denoiser: gives "eps"; "v", ``sqrt(abar) eps - sqrt(1 - abar) x0`` (Salimans & Ho 2022); or "x0", the
        clean picture.
      signals: ``abar`` of each time, as trained.

    Raises:
      ValueError: another kind of prediction.
    """
    if predicts not in ("eps", "v", "x0"):
        raise ValueError(f"predicts: expected 'eps', 'v' or 'x0', found {predicts!r}")
    if predicts == "eps":
        return denoiser
    known = np.asarray(signals, np.float32)

    def eps(z: Array, t: Array, cond: Any) -> Array:
        said = denoiser(z, t, cond).astype(jnp.float32)
        signal = jnp.asarray(known)[t].reshape(-1, *[1] * (z.ndim - 1))
        z = z.astype(jnp.float32)
        if predicts == "v":
            return jnp.sqrt(signal) * said + jnp.sqrt(1 - signal) * z
        return (z - jnp.sqrt(signal) * said) / jnp.sqrt(1 - signal)

    return eps


def inpainting(
    denoiser: Denoiser,
    signals: Float[np.ndarray, " t"],
    known: Float[Array, "b ..."],
    unknown: Bool[Array, "b ..."],
) -> Denoiser:
    """A denoiser that knows a part of the clean picture, and so paints the rest to fit.

    Its clean estimate is that of `denoiser` where unknown, and `known` elsewhere: there, the latents of every step
    are the known picture with the step's noise, which is what RePaint (Lugmayr et al. 2022, equation 8) puts in.
    `universal.sample` with recurrences is its resampling. Guidance moves the known part a little until the next step;
    lay the known picture over the final one.

    Args:
      signals: ``abar`` of each time, as trained.
      known: [B,...] clean latents, or pixels in the range of the denoiser's.
      unknown: of that shape or with axes of length 1; True: to be painted.
    """
    signals = np.asarray(signals, np.float32)

    def eps(z: Array, t: Array, cond: Any) -> Array:
        said = denoiser(z, t, cond).astype(jnp.float32)
        signal = jnp.asarray(signals)[t].reshape(-1, *[1] * (z.ndim - 1))
        z = z.astype(jnp.float32)
        return jnp.where(unknown, said, (z - jnp.sqrt(signal) * known) / jnp.sqrt(1 - signal))

    return eps
