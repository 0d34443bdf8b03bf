"""The trained renderer as a `Task`: photograph and exact or measured motion in, a later picture out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from data_pipelines.video.loader import MotionBatch
from rahf.config import Config
from rahf.config.motion import MotionRendererConfig
from rahf.core.errors import CheckpointError, ConfigError
from rahf.core.tree import Params
from rahf.motion import features, losses, splat
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.clip_task import ClipTask, checked
from rahf.motion.render import Frames
from rahf.motion.renderer_network import RendererNetwork
from rahf.nn import functional
from rahf.training import saved_model
from rahf.training import start as start_lib
from rahf.training.task import Loss, Start


class RendererTask(ClipTask):
    """Trains the renderer on pairs of a first and a later picture.

    The loss is the mean absolute error, that of differences of neighbours at four scales, and, with
    `config.model.perceptual`, that of the features of a fixed network. The paper has the features of VGG alone.
    """

    def __init__(self, config: Config, frames: int):
        """Args: the config, and the frames after which the data's motion repeats."""
        super().__init__(config)
        model = config.model
        for name in ("gradient_weight", "perceptual_weight"):
            if not (np.isfinite(getattr(model, name)) and getattr(model, name) >= 0):
                raise ConfigError(f"model.{name}: expected 0 or more, found {getattr(model, name)}")
        self.perceptual = features.load(model.perceptual) if model.perceptual else None
        self.loss_parts = ("l1", "gradient", *(["perceptual"] if self.perceptual else []))
        if any(width % config.model.norm_num_groups for width in config.model.block_out_channels):
            raise ConfigError(
                f"model.block_out_channels: {config.model.block_out_channels} cannot be divided into norm_num_groups "
                f"{config.model.norm_num_groups}"
            )
        self.frames = frames

    @classmethod
    def from_config(cls, config: Config) -> RendererTask:
        """The task of a run.

        Raises:
          TrainError, DatasetError: as `rahf.motion.clip_task.checked`.
          PretrainedError, ArgumentError, CheckpointError, ExportError: no network for the perceptual loss.
        """
        return cls(config, checked(config, "a renderer").frames)

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: RendererNetwork(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        return start_lib.from_model(self.config, shapes) if self.config.start.model else None

    def loss(
        self,
        model: nnx.Module,
        batch: MotionBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: Any,
    ) -> Loss:
        values = jnp.where(batch.example_mask[:, None], self.repeatable(model, batch), 0.0).sum(0) / normalizers
        return Loss(values[0], dict(zip(self.loss_parts, values[1:])))

    def repeatable(self, model: nnx.Module, batch: MotionBatch) -> Float[jax.Array, "b n"]:
        """Total, absolute error, error of gradients and perhaps of features of each pair."""
        spectrum = spectrum_lib.from_channels(jnp.asarray(batch.spectrum))
        flow = jax.vmap(lambda one, time: spectrum_lib.at_time(one, self.frames, time))(spectrum, batch.time)
        importance = jax.vmap(lambda one: splat.mean_motion_of(one, self.frames))(spectrum)
        drawn = model(batch.image.astype(jnp.float32) / 255, flow, importance)
        target, config = batch.target.astype(jnp.float32) / 255, self.config.model
        parts = [jnp.abs(drawn - target).mean((1, 2, 3)), losses.multi_scale_gradient(drawn - target)]
        total = parts[0] + config.gradient_weight * parts[1]
        if self.perceptual is not None:
            parts.append(self.perceptual.difference(drawn, target))
            total = total + config.perceptual_weight * parts[2]
        return jnp.stack([total, *parts], -1)


def load(path: str | os.PathLike) -> Frames:
    """A trained renderer: `network` of `rahf.motion.render.Renderer`.

    Raises:
      CheckpointError: no model there, or one of another family.
    """
    saved = saved_model.find(path, expected="a run directory of the family motion-renderer")
    if not isinstance(saved.config.model, MotionRendererConfig):
        raise CheckpointError(
            f"{saved.run}: a {saved.config.model.family}, no renderer of motion; load it with rahf.load"
        )
    build = lambda: RendererNetwork(saved.config.model)  # noqa: E731
    params, (graphdef, _) = saved.params(build), functional.abstract(build)
    draw = jax.jit(lambda params, *inputs: functional.merge(graphdef, params)(*inputs))
    return functools.partial(draw, params)
