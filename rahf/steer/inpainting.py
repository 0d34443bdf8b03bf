"""A diffusion model as the inpainting that `rahf.steer.repair` takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.core import renamed
from rahf.diffusion.generated import GeneratedImages
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.pixel_generator import Generator
from rahf.images.resize import resize
from rahf.nn import pixels
from rahf.steer.repaint import Inpaint


@renamed.arguments(steps="num_inference_steps", prompt_scale="guidance_scale")
def painter(generator: Generator | Pipeline, num_inference_steps: int = 50, ahead: int = 1, **options: Any) -> Inpaint:
    """Inpainting of pictures of any size, for `rahf.steer.repair`.

        repair(painter(generator, ahead=4), picture, prompt, n=4, critic=critic)

    A picture is resized to the small generator's size, or for Stable Diffusion to whole cells of the latents, which
    blurs the part that is not repainted: keep `blend` on there.

    Args:
      generator: of `rahf.diffusion.load`.
      num_inference_steps: of the sampler.
      ahead: number of seeds that are painted in one batch, from the requested one on; best: `n` of `repair`.
      options: other arguments of `Generator.inpaint`, or of `Pipeline`.

    Returns:
      A function of (image uint8 [h,w,3], mask bool [h,w], prompt, seed) → uint8 [h,w,3]. Its result depends on these
      alone, up to rounding.
    """
    painted: dict[Any, np.ndarray] = {}  # of the last picture only

    def inpaint(image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        task = (image.shape, image.tobytes(), mask.tobytes(), prompt)
        if (task, seed) not in painted:
            painted.clear()
            seeds = [seed + number for number in range(ahead)]
            draw = _pipeline_batch if isinstance(generator, Pipeline) else _generator_batch
            batch = draw(generator, image, mask, prompt, seeds, num_inference_steps, options)
            painted.update({(task, one): picture for one, picture in zip(seeds, batch.uint8)})
        return _resized(painted[task, seed], image.shape)

    return inpaint


def _generator_batch(generator, image, mask, prompt, seeds, steps, options) -> GeneratedImages:
    fitted = _fitted(image, mask, generator.config.model.image_size)
    return generator.inpaint(*fitted, prompt, seeds, steps, **options)


def _pipeline_batch(pipe, image, mask, prompt, seeds, steps, options) -> GeneratedImages:
    cell = pipe.scale_factor
    shape = tuple(max(1, round(side / cell)) * cell for side in image.shape[:2])
    covered = resize(mask.astype(np.float32), shape) > 1e-6
    fitted = {"image": resize(image, shape), "mask_image": covered.astype(np.float32)}
    return pipe(prompt, seeds=seeds, num_inference_steps=steps, **fitted, **options)


def _fitted(image: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and mask at the generator's size; a pixel is repainted if the mask covers any part of it."""
    if image.shape[:2] == (side, side):
        return image, mask
    small = np.asarray(pixels.unit(jnp.asarray(image)[None], side)[0])
    coverage = jax.image.resize(jnp.asarray(mask, jnp.float32), (side, side), "bilinear", antialias=True)
    return np.clip(small, 0, 1), np.asarray(coverage) > 1e-6


def _resized(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if picture.shape == shape:
        return picture
    large = jax.image.resize(jnp.asarray(picture, jnp.float32), shape, "bicubic", antialias=True)
    return np.asarray(jnp.clip(jnp.round(large), 0, 255)).astype(np.uint8)
