"""Instead of an autoencoder: squares of pixels as the cells of the latents (Hoogeboom et al. 2023, "simple diffusion").

So Stable Diffusion's U-Net is a diffusion of pixels, which learns from scratch without an autoencoder trained before.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import PatchesConfig
from rahf.core.errors import ConfigError
from rahf.diffusion.networks.autoencoder import LatentDistribution


class Patches(nnx.Module):
    """In the place of an autoencoder; without parameters, and exact both ways."""

    def __init__(self, config: PatchesConfig):
        self.config = config

    def encode(self, pictures: Float[Array, "b h w 3"]) -> LatentDistribution:
        """Pictures in [-1,1] → their cells, without any spread."""
        mean = cells(pictures.astype(jnp.float32), self.config.size)
        return LatentDistribution(mean, jnp.zeros_like(mean))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """Cells → pictures, float32, about [-1,1] and not clipped."""
        return pixels(latents.astype(jnp.float32), self.config.size)


def cells(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c2"]:
    """Squares of `side` pixels as channels of one cell."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // side, w // side, side * side * c)


def pixels(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c2"]:
    """The inverse of `cells`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, side, side, c // side**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * side, w * side, c // side**2)


def check(config: PatchesConfig, image_size: int) -> None:
    """Raises ConfigError for squares that do not tile a picture."""
    if config.size < 1 or image_size % config.size:
        raise ConfigError(
            f"model.patches.size: expected a divisor of model.image_size {image_size}, found {config.size}"
        )
    if not 0 < config.scaling_factor < float("inf"):
        raise ConfigError(f"model.patches.scaling_factor: expected a number above 0, found {config.scaling_factor}")
