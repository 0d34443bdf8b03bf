"""A saliency model from a run directory or a checkpoint of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import Config, SaliencyConfig
from rahf.core import tree
from rahf.core.errors import CheckpointError
from rahf.critic.from_run import weight_license
from rahf.nn import functional
from rahf.nn.execution import full_precision
from rahf.saliency.network import SaliencyNetwork, blurred, log_density
from rahf.saliency.predictor import Function, Saliency, canvases
from rahf.training import saved_model

_LEAST = 1e-30  # of a density, in front of its logarithm


def load(path: str | os.PathLike, *, dtype: Any = None) -> Saliency:
    """Loads a run directory or one checkpoint; of Augsal, its saliency readout.

    Raises:
      CheckpointError: no model there, a damaged one, or one of another family.
      ArgumentError: another dtype than float32 and bfloat16.
    """
    saved = saved_model.find(path, dtype)
    if saved.config.model.family == "augsal":
        # Imported here, because a saliency model needs nothing of diffusion.
        from rahf.saliency.augsal import as_saliency

        return as_saliency.of_run(saved)
    if saved.config.model.family != "saliency":
        raise CheckpointError(f"{saved.run}: a {saved.config.model.family} model, no saliency model; use rahf.load")
    params = saved.params(lambda: SaliencyNetwork(saved.config.model))
    return of_params(saved.config, params, saved.run.name, saved.step, weight_license(saved.run))


def of_params(config: Config, params: tree.Params, name: str, step: int | None, license: str) -> Saliency:
    """A model of given parameters."""
    graphdef, _ = functional.abstract(lambda: SaliencyNetwork(config.model))
    return Saliency(
        config,
        params,
        network_functions(config),
        name=name,
        step=step,
        model_id=model_id(config, params, name, step),
        weight_license=license,
        graphdef=graphdef,
    )


def network_functions(config: Config) -> list[Function]:
    """The network's function for each canvas."""

    def of_canvas(canvas: tuple[int, int]) -> Function:
        turned = dataclasses.replace(config.model, image_height=canvas[0], image_width=canvas[1])
        graphdef, _ = functional.abstract(lambda: SaliencyNetwork(turned))

        def function(params, image, frame, bias):
            return predicted(turned, functional.merge(graphdef, params), image, frame, bias)

        return full_precision(function, config.model.compute_dtype)

    return [of_canvas(canvas) for canvas in canvases(config)]


def predicted(config: SaliencyConfig, model: SaliencyNetwork, image: Any, frame: Any, bias: Any) -> jax.Array:
    """The log-density that a trained model gives: the network's, with `mirrored` and `smoothing` of its config."""
    if config.mirrored:
        image = jnp.concatenate([image, image[:, :, ::-1]])
    return finished(config, model, model.decoded(image), frame, bias)


def finished(config: SaliencyConfig, model: SaliencyNetwork, readout: Any, frame: Any, bias: Any) -> jax.Array:
    """The same from the decoder's readouts: of the pictures and, with `mirrored`, then of their mirror images."""
    if not config.mirrored:
        logs = model.finish(readout, frame, bias)
    else:
        turned = frame.at[:, 1].set(config.grid[1] - frame[:, 1] - frame[:, 3])
        logs = model.finish(readout, jnp.concatenate([frame, turned]), jnp.concatenate([bias, bias]))
        logs = logs.reshape(2, frame.shape[0], *logs.shape[1:])
        logs = jnp.logaddexp(logs[0], logs[1][:, :, ::-1]) - math.log(2)
    if not config.smoothing:
        return logs
    smooth = blurred(jnp.exp(logs), config.smoothing, frame)
    return log_density(jnp.log(jnp.maximum(smooth, _LEAST)), frame)


def model_id(config: Config, params: tree.Params, name: str, step: int | None) -> str:
    """Name, step, and the start of a SHA-256 of network and parameters."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config.model), sort_keys=True).encode())
    for path, leaf in sorted(tree.flatten(params).items()):
        digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return f"{name}-{'unknown' if step is None else step}-{digest.hexdigest()[:12]}"
