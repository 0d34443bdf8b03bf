"""Loading what draws pictures, for commands: diffusion models of every family, those with a ControlNet included."""

from __future__ import annotations

import os

from rahf.config import GazeFusionConfig
from rahf.diffusion import loading
from rahf.diffusion import saved as saved_lib
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.pixel_generator import Generator
from rahf.saliency.gazefusion import task as gazefusion


def load_generator(model: str | os.PathLike | Pipeline | Generator) -> Pipeline | Generator:
    """What `rahf.diffusion.load` takes, or a run of GazeFusion, which brings its ControlNet; a loaded model stays.

    Raises:
      CheckpointError: no model there, or one that draws no pictures.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    if isinstance(saved_lib.find(model).config.model, GazeFusionConfig):
        return gazefusion.load(model)
    return loading.load(model)
