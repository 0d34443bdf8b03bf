"""A saliency model from a run directory or a checkpoint of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
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
from rahf.saliency.network import OUTSIDE, SaliencyNetwork, blurred, cells_inside, log_density
from rahf.saliency.predictor import Function, Saliency, canvases, scaled_canvases
from rahf.training import saved_model

_LEAST = 1e-30  # of a density, in front of its logarithm


def load(path: str | os.PathLike, *, dtype: Any = None) -> Saliency:
    """Loads a run directory or one checkpoint.

    Raises:
      CheckpointError: no model there, a damaged one, or one of another family.
      ArgumentError: another dtype than float32 and bfloat16.
    """
    saved = saved_model.find(path, dtype)
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
        parts = at_scales(config.model, canvas)

        def function(params, image, frame, bias):
            logs = []
            for scaled, graphdef in parts:
                network = functional.merge(graphdef, params)
                readout = network.decoded(resized_canvas(image, scaled))
                logs.append(of_readout(scaled, network, readout, scaled_frame(frame, parts[0][0], scaled), bias))
            return joined(parts[0][0], logs, frame)

        return full_precision(function, config.model.compute_dtype)

    return [of_canvas(canvas) for canvas in canvases(config)]


def at_scales(config: SaliencyConfig, canvas: tuple[int, int]) -> list[tuple[SaliencyConfig, Any]]:
    """Configs and structures of the network for the canvases of `config.scales`, the largest first.

    Args:
      config: of training.
      canvas: height and width of the largest.
    """
    parts = []
    for height, width in scaled_canvases(config, canvas):
        scaled = dataclasses.replace(config, image_height=height, image_width=width, scales=(1.0,))
        parts.append((scaled, functional.abstract(lambda scaled=scaled: SaliencyNetwork(scaled))[0]))
    return parts


def resized_canvas(image: Any, config: SaliencyConfig) -> jax.Array:
    """Pictures on the largest canvas, with their mirror images if the config says so, on the canvas of a config.

    Args:
      image: [b,H,W,3], uint8 or float in [0,1].
    """
    size = config.image_height, config.image_width
    if image.shape[1:3] != size:
        pixels = image.astype(jnp.float32) / (255 if jnp.issubdtype(image.dtype, jnp.integer) else 1)
        image = jax.image.resize(pixels, (image.shape[0], *size, 3), "linear", antialias=True)
    return jnp.concatenate([image, image[:, :, ::-1]]) if config.mirrored else image


def scaled_frame(frame: Any, largest: SaliencyConfig, config: SaliencyConfig) -> jax.Array:
    """Frames on the largest canvas → the cells of a smaller one that they touch, int32 [b,4]."""
    if config.grid == largest.grid:
        return frame
    (small, whole), start, size = (np.array([c.grid for c in (config, largest)]), frame[:, :2], frame[:, 2:])
    first = start * small // whole
    return jnp.concatenate([first, -(-(start + size) * small // whole) - first], 1).astype(jnp.int32)


def of_readout(config: SaliencyConfig, model: SaliencyNetwork, readout: Any, frame: Any, bias: Any) -> jax.Array:
    """The log-density from the decoder's readouts: of the pictures, then with `mirrored` of their mirror images."""
    if not config.mirrored:
        return model.finish(readout, frame, bias)
    turned = frame.at[:, 1].set(config.grid[1] - frame[:, 1] - frame[:, 3])
    logs = model.finish(readout, jnp.concatenate([frame, turned]), jnp.concatenate([bias, bias]))
    logs = logs.reshape(2, frame.shape[0], *logs.shape[1:])
    return jnp.logaddexp(logs[0], logs[1][:, :, ::-1]) - math.log(2)


def joined(config: SaliencyConfig, logs: Sequence[jax.Array], frame: Any) -> jax.Array:
    """The log-density that a trained model gives: the mean over its scales, smoothed as its config says.

    Args:
      config: of the largest canvas.
      logs: log-density [b,h,w] on the grid of each canvas, the largest first.
      frame: on the largest canvas.
    """
    if len(logs) == 1 and not config.smoothing:
        return logs[0]
    density = jnp.exp(logs[0])
    for one in logs[1:]:
        # Cells outside of a frame hold no density: of a cell at its edge only the part inside counts.
        size = (*one.shape[:1], *config.grid)
        inside = jax.image.resize((one > OUTSIDE / 2).astype(jnp.float32), size, "linear")
        spread = jax.image.resize(jnp.exp(one), size, "linear") / jnp.maximum(inside, 1e-3)
        spread = jnp.where(cells_inside(frame, config.grid), spread, 0)
        density = density + spread / spread.sum((1, 2), keepdims=True)
    if config.smoothing:
        density = blurred(density, config.smoothing, frame)
    return log_density(jnp.log(jnp.maximum(density / len(logs), _LEAST)), frame)


def model_id(config: Config, params: tree.Params, name: str, step: int | None) -> str:
    """Name, step, and the start of a SHA-256 of network and parameters."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config.model), sort_keys=True).encode())
    for path, leaf in sorted(tree.flatten(params).items()):
        digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return f"{name}-{'unknown' if step is None else step}-{digest.hexdigest()[:12]}"
