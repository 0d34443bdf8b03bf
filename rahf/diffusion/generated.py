"""What all generators return."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.diffusion.sample import universal_guidance


class GeneratedImages(NamedTuple):
    """What a generator drew.

    Attributes:
      images: float32 [B,H,W,3] in [0,1].
      energy: of the images, float32 [B]; None without guidance.
      trace: of guidance, step by step; None of a pipeline without guidance.
    """

    images: jax.Array
    energy: jax.Array | None = None
    trace: universal_guidance.Trace | None = None

    @property
    def uint8(self) -> np.ndarray:
        """The images as uint8 [B,H,W,3]."""
        return np.asarray(jnp.round(self.images * 255)).astype(np.uint8)
