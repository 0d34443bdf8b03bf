"""Edits of latents inside a mask, and the direction in latents that is brightness alone (spec 7.3).

colors = fit_colors(latents, pictures)          # of a few hundred pictures
brighter = brightness(latents, mask, 0.1, colors.gamma)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.config import StableDiffusionConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion.networks.stable_diffusion import latent_channels

#: Brightness in the latents of Stable Diffusion 1.4: the pseudo-inverse of its published 4 x 3 matrix (spec 7.3).
SD1_GAMMA = (1.611, 1.584, -0.275, -0.980)


def known_gamma(config: StableDiffusionConfig) -> tuple[float, ...]:
    """Brightness in latents, as `LatentColors.gamma`: exact for patches of pixels, else of Stable Diffusion 1.4."""
    if config.patches is None:
        return SD1_GAMMA
    return (2.0 * config.patches.scaling_factor,) * latent_channels(config)  # latents are pixels from -1 to 1


class LatentColors(NamedTuple):
    """The autoencoder's decoder as a linear map, ``rgb ≈ z A + bias``; float64.

    Attributes:
      matrix: A, [c,3].
      bias: [3].
      r2: share of the variance of the fitted pictures' cells that it explains.
    """

    matrix: Float[np.ndarray, "c 3"]
    bias: Float[np.ndarray, " 3"]
    r2: float

    @property
    def gamma(self) -> Float[np.ndarray, " c"]:
        """``1 A⁺``: adding it to all latents raises red, green and blue by 1 each; as long a step as it must be."""
        return np.ones(3) @ np.linalg.pinv(self.matrix)


def fit_colors(latents: Any, pictures: Any) -> LatentColors:
    """Least squares of the pictures' cells on the latents, with a bias.

    Args:
      latents: [B,h,w,c], of pictures.
      pictures: [B,H,W,3] in [0,1], what the decoder makes of them; H and W are multiples of h and w.

    Raises:
      ArgumentError: shapes that do not fit; fewer cells than unknowns; cells that are all the same.
    """
    latents, pictures = np.asarray(latents, np.float64), np.asarray(pictures, np.float64)
    b, h, w, c = latents.shape
    if pictures.shape[0] != b or pictures.shape[1] % h or pictures.shape[2] % w:
        raise ArgumentError(f"pictures {pictures.shape}: expected {b}, with sides that are multiples of {h} and {w}")
    factor = pictures.shape[1] // h, pictures.shape[2] // w
    cells = pictures.reshape(b, h, factor[0], w, factor[1], 3).mean((2, 4)).reshape(-1, 3)
    inputs = np.concatenate([latents.reshape(-1, c), np.ones((b * h * w, 1))], 1)
    solution, _, rank, _ = np.linalg.lstsq(inputs, cells, rcond=None)
    if rank < c + 1:
        raise ArgumentError(
            f"{b} pictures of {h} x {w} cells do not tell the {c} channels of the latents apart; take more pictures"
        )
    variance = np.square(cells - cells.mean(0)).sum()
    if not variance > 0:
        raise ArgumentError("all cells of the pictures have one colour: nothing to fit")
    return LatentColors(solution[:c], solution[c], float(1 - np.square(cells - inputs @ solution).sum() / variance))


def brightness(
    latents: Float[Array, "b h w c"], mask: Float[Array, "b h w"], alpha: Any, gamma: Any
) -> Float[Array, "b h w c"]:
    """Equation 2 with the channel vector: ``Z_E = M (Z + alpha gamma) + (1 - M) Z``.

    Args:
      mask: in [0,1].
      alpha: strength: a scalar, or [B].
      gamma: [c], of `LatentColors`.
    """
    return latents + _spread(alpha) * mask[..., None] * jnp.asarray(gamma, latents.dtype)


def contrast(
    latents: Float[Array, "b h w c"], mask: Float[Array, "b h w"], alpha: Any, gamma: Any = None
) -> Float[Array, "b h w c"]:
    """Equation 1, ``Z_E = M (a (Z - mu) + mu) + (1 - M) Z`` with ``a = 1 + alpha``; mu is the mean inside the mask.

    At alpha 0 nothing changes. With gamma only the part of Z - mu along gamma is scaled, so that contrast of brightness
    grows and colours stay: our reading of "mu becomes mu gamma, alpha becomes alpha gamma", which taken word by word
    changes latents at alpha 0, too. Arguments as of `brightness`.
    """
    inside = mask / jnp.maximum(mask.sum((1, 2), keepdims=True), 1e-12)
    centred = latents - (latents * inside[..., None]).sum((1, 2), keepdims=True)
    if gamma is not None:
        gamma = jnp.asarray(gamma, latents.dtype)
        centred = (centred @ gamma)[..., None] * gamma / jnp.maximum((gamma * gamma).sum(), 1e-12)
    return latents + _spread(alpha) * mask[..., None] * centred


def _spread(alpha: Any) -> Array:
    return jnp.asarray(alpha, jnp.float32).reshape(-1, 1, 1, 1)
