"""Loading a diffusion model of any family."""

from __future__ import annotations

import os

from rahf.config import PixelDiffusionConfig, StableDiffusionConfig
from rahf.core.errors import CheckpointError
from rahf.diffusion import pipeline, pixel_generator
from rahf.diffusion import saved as saved_lib


def load(path: str | os.PathLike) -> pipeline.Pipeline | pixel_generator.Generator:
    """Loads a run or model directory, or one checkpoint of it.

    Returns:
      A `Pipeline` of Stable Diffusion, or a `Generator` of the family in pixels of earlier versions.

    Raises:
      rahf.core.errors.CheckpointError: no model there, or one that is no diffusion model.
    """
    saved = saved_lib.find(path)
    if isinstance(saved.config.model, PixelDiffusionConfig):
        return pixel_generator.load(path)
    if isinstance(saved.config.model, StableDiffusionConfig):
        return pipeline.load(path)
    raise CheckpointError(f"{saved.run}: a {saved.config.model.family}, no diffusion model; load it with rahf.load")
