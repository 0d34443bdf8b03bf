"""A trained model in a run directory, of any family: its config, parameters and vocabulary.

The family brings its `build`, from the config of a model to a function that builds the network, and a function that
says why a vocabulary does not fit:

    saved = saved_model.find("runs/demo")
    params = saved.params(build(saved.config.model))
    tokenizer = saved.tokenizer(lambda tokenizer: vocabulary_problem(saved.config.model, tokenizer))
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rahf import config as config_lib
from rahf.config import Config
from rahf.core.errors import ArgumentError, CheckpointError
from rahf.nn import functional
from rahf.text import Tokenizer, load_tokenizer
from rahf.training import run_folder


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """Where a trained model is stored, and its config.

    Attributes:
      config: of the run, with the compute dtype that was asked for.
      run: the run directory.
      state: folder of the checkpoint that is read.
      step: of training at which the checkpoint was saved; None if the folder's name does not tell.
    """

    config: Config
    run: pathlib.Path
    state: pathlib.Path
    step: int | None

    def params(self, build: Callable[[], nnx.Module]) -> functional.Params:
        """Reads the parameters (their average, if the run has one) onto the first local device.

        Args:
          build: builds the network that the config describes.

        Raises:
          CheckpointError: a damaged checkpoint, or one of another architecture (lists the shapes that differ).
        """
        _, shapes = functional.abstract(build)
        # The run may have saved them from other devices.
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
        return run_folder.load_params(self.state, shapes)

    def tokenizer(self, problem: Callable[[Tokenizer], str | None]) -> Tokenizer:
        """Reads the vocabulary.

        Args:
          problem: says why a vocabulary does not fit the network, or None if it fits.

        Raises:
          CheckpointError: it is missing or damaged, or does not fit.
        """
        try:
            tokenizer = load_tokenizer(self.run / "tokenizer.model")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.run}: its vocabulary cannot be read ({error})") from error
        message = problem(tokenizer)
        if message:
            raise CheckpointError(f"{message}: it is not the vocabulary that this model was trained with")
        return tokenizer


def find(path: str | os.PathLike, dtype: Any = None, expected: str = "") -> SavedModel:
    """Finds a model and reads its config; parameters and vocabulary are read when they are asked for.

    Args:
      path: a run directory (its best checkpoint, else the newest), or one checkpoint of it.
      dtype: "float32" or "bfloat16" to compute in; None: as it was trained.
      expected: what belongs there, for the message where nothing is; "": any model.

    Raises:
      CheckpointError: there is no model; says what is there instead.
      rahf.config.ConfigError: `config.json` cannot be read or has an unknown field.
      rahf.core.errors.ArgumentError: another dtype.
    """
    run, state = run_folder.find(path, expected)
    step = int(state.parent.name) if state.parent.name.isdigit() else None
    return SavedModel(_config(run / "config.json", dtype), run, state, step)


def _config(file: pathlib.Path, dtype: Any) -> Config:
    config = config_lib.read_saved(file)
    if dtype is None:
        return config
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise ArgumentError(f"dtype: expected float32 or bfloat16, found {name}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, compute_dtype=name))
