"""A critic from a run directory or a checkpoint of it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from rahf import config as config_lib
from rahf.config import Config
from rahf.core import errors, licenses
from rahf.critic import families, provenance
from rahf.critic.critic import Critic
from rahf.critic.networks import build
from rahf.critic.provenance import Quantiles
from rahf.nn import functional
from rahf.text import Tokenizer, load_tokenizer
from rahf.training import checkpoint


def load(path: str | os.PathLike, *, dtype: Any = None, name_from_config: bool = False) -> Critic:
    """Loads a run directory or one checkpoint; see `rahf.critic.load`.

    Args:
      name_from_config: name the critic after the folder that it was trained in instead of the folder that it lies
        in: a cache calls that after a commit, and reference quantiles belong to a model of the same name.
    """
    config, params, tokenizer, run, step = parts(path, dtype)
    quantiles, weights = _quantiles(run), licence(run)
    name = pathlib.PurePath(config.workdir).name if name_from_config else ""
    return Critic(
        config,
        params,
        tokenizer,
        name or run.name,
        step,
        describe=lambda critic: provenance.of(critic, weights, quantiles),
    )


def parts(
    path: str | os.PathLike, dtype: Any = None
) -> tuple[Config, functional.Params, Tokenizer, pathlib.Path, int | None]:
    """Config, parameters, vocabulary, run directory and step of a model of any kind; raises as `rahf.critic.load`."""
    run, state = checkpoint.find(path)
    config = _config(run / "config.json", dtype)
    if not families.is_critic(config.model):
        raise errors.CheckpointError(f"{run}: a diffusion model, no critic; load it with rahf.diffusion.load")
    _, shapes = functional.abstract(build.build(config.model))
    # The checkpoint may come from other devices; here all parameters go to the first device.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    params = checkpoint.load_params(state, shapes)
    try:
        tokenizer = load_tokenizer(run / "tokenizer.model")
    except (OSError, ValueError) as error:
        raise errors.CheckpointError(f"{run}: its vocabulary cannot be read ({error})") from error
    problem = families.vocabulary_problem(config.model, tokenizer)
    if problem:
        raise errors.CheckpointError(f"{problem}: it is not the vocabulary that this model was trained with")
    step = int(state.parent.name) if state.parent.name.isdigit() else None
    return config, params, tokenizer, run, step


def _quantiles(run: pathlib.Path) -> Quantiles | None:
    file = run / provenance.QUANTILES_FILE
    try:
        return Quantiles.from_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise errors.CheckpointError(f"{file}: {error}") from error


def licence(run: pathlib.Path) -> str:
    """Licences of the weights that a model started from. Weights trained from scratch carry no third-party licence."""
    licences = sorted(set(licenses.model_licenses(run).values()))
    return "; ".join(licences) if licences else provenance.UNSPECIFIED


def _config(file: pathlib.Path, dtype: Any) -> Config:
    try:
        config = config_lib.from_json(file.read_text(), where=str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise config_lib.ConfigError(f"{file}: cannot be read ({error})") from error
    if dtype is None:
        return config
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise errors.ArgumentError(f"dtype: expected float32 or bfloat16, found {name}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, compute_dtype=name))
