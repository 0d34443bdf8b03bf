"""The trained renderer as a `Task`: photograph and exact or measured motion in, a later picture out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from data_pipelines.video import loader as loader_lib
from data_pipelines.video import read
from data_pipelines.video.loader import MotionBatch
from rahf.config import Config
from rahf.config.motion import MotionRendererConfig
from rahf.core.errors import CheckpointError, ConfigError, TrainError
from rahf.core.tree import Params
from rahf.motion import losses, splat
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.render import Frames
from rahf.motion.renderer_network import RendererNetwork
from rahf.motion.task import MotionEvaluator
from rahf.nn import functional
from rahf.training import saved_model
from rahf.training import start as start_lib
from rahf.training.task import Loader, Loss, Start, Task


class RendererTask(Task[MotionBatch]):
    """Trains the renderer on pairs of a first and a later picture.

    The loss is the mean absolute error and that of differences of neighbours at four scales. The paper has a perceptual
    loss over a published VGG instead, which is not read here.
    """

    loss_parts = ("l1", "gradient")

    def __init__(self, config: Config, frames: int):
        """Args: the config, and the frames after which the data's motion repeats."""
        super().__init__(config)
        if any(width % config.model.norm_num_groups for width in config.model.block_out_channels):
            raise ConfigError(
                f"model.block_out_channels: {config.model.block_out_channels} cannot be divided into norm_num_groups "
                f"{config.model.norm_num_groups}"
            )
        self.frames = frames

    @classmethod
    def from_config(cls, config: Config) -> RendererTask:
        """The task of a run. Raises TrainError, DatasetError."""
        start_lib.check(config)
        if config.start.vision or config.start.text:
            raise TrainError("start.vision, start.text: a renderer has no published towers; give start.model")
        if len(config.data.paths) > 1:
            raise TrainError(f"data.path: a renderer reads one dataset, found {len(config.data.paths)}")
        return cls(config, read.description(config.data.path).frames)

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: RendererNetwork(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        return start_lib.from_model(self.config, shapes) if self.config.start.model else None

    def train_loader(self) -> Loader:
        data = self.config.data
        processes = jax.process_index(), jax.process_count()
        return loader_lib.TrainLoader(data.path, data.train_split, data.batch_size, self.config.train.seed, *processes)

    def normalizers(self, batch: MotionBatch) -> jax.Array:
        return jnp.maximum(batch.example_mask.sum(), 1).astype(jnp.float32)

    def loss(
        self,
        model: nnx.Module,
        batch: MotionBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: Any,
    ) -> Loss:
        values = jnp.where(batch.example_mask[:, None], self.values(model, batch), 0.0).sum(0) / normalizers
        return Loss(values[0], dict(zip(self.loss_parts, values[1:])))

    def values(self, model: nnx.Module, batch: MotionBatch) -> Float[jax.Array, "b 3"]:
        """Total, absolute error and error of gradients of each pair."""
        spectrum = spectrum_lib.from_channels(jnp.asarray(batch.spectrum))
        flow = jax.vmap(lambda one, time: spectrum_lib.at_time(one, self.frames, time))(spectrum, batch.time)
        importance = jax.vmap(lambda one: splat.mean_motion_of(one, self.frames))(spectrum)
        drawn = model(batch.image.astype(jnp.float32) / 255, flow, importance)
        error = drawn - batch.target.astype(jnp.float32) / 255
        l1, gradient = jnp.abs(error).mean((1, 2, 3)), losses.multi_scale_gradient(error)
        return jnp.stack([l1 + self.config.model.gradient_weight * gradient, l1, gradient], -1)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MotionEvaluator:
        return MotionEvaluator(self.config, self.metric_names(), self.values, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return ["loss/total", *(f"loss/{part}" for part in self.loss_parts)]


def load(path: str | os.PathLike) -> Frames:
    """A trained renderer: `network` of `rahf.motion.render.Renderer`.

    Raises:
      CheckpointError: no model there, or one of another family.
    """
    saved = saved_model.find(path)
    if not isinstance(saved.config.model, MotionRendererConfig):
        raise CheckpointError(
            f"{saved.run}: a {saved.config.model.family}, no renderer of motion; load it with rahf.load"
        )
    build = lambda: RendererNetwork(saved.config.model)  # noqa: E731
    params, (graphdef, _) = saved.params(build), functional.abstract(build)
    draw = jax.jit(lambda params, *inputs: functional.merge(graphdef, params)(*inputs))
    return functools.partial(draw, params)
