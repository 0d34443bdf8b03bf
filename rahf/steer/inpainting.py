"""A generator as the inpainting that `rahf.steer.repair.repair` asks for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.diffusion.pixel_generator import Generator
from rahf.nn import pixels
from rahf.steer.repair import Generate


def painter(generator: Generator, steps: int = 50, ahead: int = 1, **how: Any) -> Generate:
    """Inpainting of pictures of any size, for `rahf.steer.repair.repair`.

        repair(painter(generator, ahead=4), picture, prompt, n=4, critic=critic)

    A picture is brought to the generator's size, which blurs what it does not repaint: keep `blend` on there.

    Args:
      generator: of `rahf.diffusion.load`.
      steps: of DDIM.
      ahead: so many seeds are painted in one batch, from the first one asked for; as many as `repair` has candidates.
      how: other arguments of `Generator.inpaint`.

    Returns:
      A function of (image uint8 [h,w,3], mask bool [h,w], prompt, seed) → uint8 [h,w,3]. Its answers depend on these
      alone, up to rounding.
    """
    side = generator.config.model.image_size
    kept: dict[Any, np.ndarray] = {}  # of the last picture only

    def generate(image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        asked = (image.shape, image.tobytes(), mask.tobytes(), prompt)
        if (asked, seed) not in kept:
            kept.clear()
            seeds = [seed + number for number in range(ahead)]
            made = generator.inpaint(*_fitted(image, mask, side), prompt, seeds, steps, **how)
            kept.update({(asked, one): picture for one, picture in zip(seeds, made.uint8)})
        return _resized(kept[asked, seed], image.shape)

    return generate


def _fitted(image: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and mask at the generator's size; a pixel is repainted if any part of it is to be."""
    if image.shape[:2] == (side, side):
        return image, mask
    small = np.asarray(pixels.unit(jnp.asarray(image)[None], side)[0])
    covered = jax.image.resize(jnp.asarray(mask, jnp.float32), (side, side), "bilinear", antialias=True)
    return np.clip(small, 0, 1), np.asarray(covered) > 1e-6


def _resized(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if picture.shape == shape:
        return picture
    large = jax.image.resize(jnp.asarray(picture, jnp.float32), shape, "bicubic", antialias=True)
    return np.asarray(jnp.clip(jnp.round(large), 0, 255)).astype(np.uint8)
