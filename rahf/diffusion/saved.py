"""A saved diffusion model; errors say what belongs in its place."""

from __future__ import annotations

import os
import pathlib

from rahf.core.errors import CheckpointError
from rahf.training import saved_model
from rahf.training.saved_model import SavedModel

EXPECTED = "a model directory of `rahf import stable-diffusion`, or a run directory of a diffusion model"


def find(path: str | os.PathLike) -> SavedModel:
    """Finds a model directory, a run directory or one checkpoint of it; or the hub id of a run directory.

    Raises:
      CheckpointError: there is no model; says what is there instead, and what to do with a pipeline of `diffusers`.
    """
    folder = pathlib.Path(path)
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{path}: a pipeline in the layout of diffusers; make a model directory of it first: "
            f"rahf import stable-diffusion {path} OUT"
        )
    return saved_model.find(path, expected=EXPECTED)
