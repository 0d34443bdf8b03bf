"""What every network of a critic computes, and how pixels enter it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rahf.config import ImageModelConfig
from rahf.nn import pixels


class Fused(NamedTuple):
    """Output of the fusion stack: `image` [B,h,w,D] token grid, `memory` [B,N,D] and its mask for the decoder."""

    image: Float[Array, "b h w d"]
    memory: Float[Array, "b n d"]
    memory_mask: Bool[Array, "b n"]
    inputs: Any = None  # augmented-prompt: what was fused, to be fused again with each task's prefix


class Logits(NamedTuple):
    """Raw outputs, float32: `heatmaps` [B,S,S,2], `scores` [B,4], `sequence` [B,T,V]; in training perhaps `tags` [B,V].

    A baseline need not predict everything (`rahf.critic.networks.families.outputs`): NaN then, and None for the sequence.
    """

    heatmaps: Float[Array, "b s s 2"]
    scores: Float[Array, "b 4"]
    sequence: Float[Array, "b t v"] | None
    tags: Float[Array, "b v"] | None = None


def normalised(config: ImageModelConfig, image: Array) -> Float[Array, "b s s 3"]:
    """uint8 0..255 or float 0..1, any size → float32 of the network's size and normalisation; differentiable."""
    x = pixels.unit(image, config.image_size)
    return (x - jnp.asarray(config.image_mean)) / jnp.asarray(config.image_std)
