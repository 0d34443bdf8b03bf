"""What every network of a critic computes, and how pixels enter it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rahf.config import ImageModelConfig
from rahf.nn import pixels


class Fused(NamedTuple):
    """Output of the fusion stack."""

    image: Float[Array, "b h w d"]  # grid of image tokens
    memory: Float[Array, "b n d"]  # tokens that the decoder attends to
    memory_mask: Bool[Array, "b n"]
    inputs: Any = None  # augmented-prompt: the inputs of the stack, to fuse them again with each task's prefix
    maps: tuple[Float[Array, "b h w c"], ...] = ()  # of a tower that convolves, finest first


class TowerMaps(NamedTuple):
    """Outputs of an image tower in the place of an image, as a frozen tower has computed them before."""

    maps: tuple[Array, ...]  # [B,…]


class Logits(NamedTuple):
    """Raw outputs, float32; `tags` only in training and with a tag head.

    Outputs that a baseline does not predict (`rahf.critic.families.outputs`) are NaN, the sequence is None.
    """

    heatmaps: Float[Array, "b s s 2"]
    scores: Float[Array, "b 4"]
    sequence: Float[Array, "b t v"] | None
    tags: Float[Array, "b v"] | None = None


def normalised(config: ImageModelConfig, image: Array) -> Float[Array, "b s s 3"]:
    """uint8 0..255 or float 0..1, any size → float32 of the network's size and normalisation; differentiable."""
    x = pixels.unit(image, config.image_size)
    return (x - jnp.asarray(config.image_mean)) / jnp.asarray(config.image_std)
