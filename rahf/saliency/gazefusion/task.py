"""A ControlNet by saliency maps as a `Task`. Everything but the ControlNet stays as it is published."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines import store
from data_pipelines.gazefusion import loader as loader_lib
from data_pipelines.gazefusion.loader import ControlBatch
from rahf.config import Config, GazeFusionConfig
from rahf.core.errors import CheckpointError, ConfigError, DatasetError
from rahf.core.tree import Params
from rahf.diffusion import controlnet as controlnet_lib
from rahf.diffusion.networks.stable_diffusion import latent_channels, vae_scale_factor
from rahf.diffusion.pipeline import Pipeline
from rahf.saliency import frozen_pipeline
from rahf.saliency.frozen_pipeline import FrozenPipelineTask
from rahf.saliency.gazefusion import loss as loss_lib
from rahf.saliency.gazefusion.loss import GazeFusionNetwork
from rahf.text import ClipTokenizer
from rahf.training import saved_model, sharding
from rahf.training import start as start_lib
from rahf.training.mean_evaluator import LOSS, MeanEvaluator
from rahf.training.task import Loader, Loss, Start

#: What is trained.
TRAINABLE = ("controlnet/*",)


class GazeFusionTask(FrozenPipelineTask[ControlBatch]):
    """Trains a ControlNet on crops with saliency maps and captions; the pipeline beside it gets no gradient."""

    trainable = TRAINABLE

    def __init__(self, config: Config, tokenizer: ClipTokenizer):
        """Args: a complete config, and the vocabulary of the pipeline's text towers.

        Raises:
          ConfigError: a picture size that is no multiple of the latents' cells, or other parameters to be trained.
        """
        super().__init__(config, tokenizer)
        model: GazeFusionConfig = config.model
        cell = vae_scale_factor(model.pipeline)
        if model.image_size % cell:
            raise ConfigError(
                f"model.image_size: expected a multiple of {cell}, a cell of the latents, found {model.image_size}"
            )
        self.empty_ids = self.encode("")

    @classmethod
    def from_config(cls, config: Config) -> GazeFusionTask:
        """The task of a run, completed by the config and the vocabulary of `start.model`, or by its own if it goes on.

        Raises:
          TrainError, CheckpointError: as `frozen_pipeline.completed`.
        """
        config, tokenizer = frozen_pipeline.completed(config, cls.trainable)
        controlnet = controlnet_lib.of_base(config.model.pipeline)
        return cls(
            dataclasses.replace(config, model=dataclasses.replace(config.model, controlnet=controlnet)), tokenizer
        )

    def encode(self, prompt: str) -> tuple[np.ndarray, ...]:
        """A caption → int32 [L] for each text tower."""
        return tuple(row[0] for row in self.tokens([prompt]))

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: GazeFusionNetwork(self.config.model)

    def start(self, shapes: Params) -> Start:
        """The pipeline's parameters, and those that the ControlNet takes from its U-Net."""
        model = self.config.model
        base, record = self.base_params()
        network = controlnet_lib.network(model.controlnet, model.pipeline)
        params = {
            "base": base,
            "controlnet": controlnet_lib.copied(model.controlnet, network, base["unet"]),
        }
        return Start(params, {"model": record} | start_lib.shares(shapes, params))

    def examples(self, split: str) -> loader_lib.Examples:
        """The crops of a split. Raises DatasetError: data without saliency."""
        path = self.config.data.paths[0]
        if not store.has_field(path, "saliency"):
            store.splits(path)  # an absent data set has its own message
            raise DatasetError(f"{path}: has no saliency; make the data with `rahf prepare gazefusion`")
        return loader_lib.Examples(path, split, self.config.model.image_size, self.encode)

    def train_loader(self) -> Loader:
        data = self.config.data
        processes = jax.process_index(), jax.process_count()
        examples = self.examples(data.train_split)
        return loader_lib.train_loader(examples, data.batch_size, self.config.train.seed, *processes)

    def loss(
        self,
        model: nnx.Module,
        batch: ControlBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: Any,
    ) -> Loss:
        config, b = self.config.model, len(batch.image)
        when, first, second, which = jax.random.split(key, 4)
        # Spread evenly over all times (Kingma et al. 2021), which lowers the gradient's variance.
        spread = (jax.random.uniform(when) + jnp.arange(b) / b) % 1.0
        noises = [jax.random.normal(one, (b, *self._latents)) for one in (first, second)]
        ids = self.dropped_ids(batch.ids, which, config.prompt_dropout)
        values = loss_lib.per_example(config, model, batch, ids, self._timesteps(spread), *noises)
        return Loss(jnp.where(batch.example_mask, values, 0.0).sum() / normalizers, {})

    def dropped_ids(self, ids: Sequence[jax.Array], key: jax.Array, share: float) -> tuple[jax.Array, ...]:
        """The captions int32 [B,L] of each tower, of which a random share is replaced by the empty one."""
        dropped = jax.random.bernoulli(key, share, (len(ids[0]), 1))
        return tuple(jnp.where(dropped, empty, row) for empty, row in zip(self.empty_ids, ids))

    def repeatable(self, model: nnx.Module, batch: ControlBatch) -> jax.Array:
        """The evaluation loss, float32 [B]: time and noise follow from an example's position in the split alone."""
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(batch.index.astype(jnp.uint32))
        noises = jax.vmap(lambda key: jax.random.normal(key, (2, *self._latents)))(keys)
        spread = (batch.index.astype(jnp.float32) * 0.6180339887) % 1.0  # the golden ratio spreads any number evenly
        ids = tuple(batch.ids)
        return loss_lib.per_example(
            self.config.model, model, batch, ids, self._timesteps(spread), noises[:, 0], noises[:, 1]
        )

    @property
    def _latents(self) -> tuple[int, int, int]:
        pipeline = self.config.model.pipeline
        side = self.config.model.image_size // vae_scale_factor(pipeline)
        return side, side, latent_channels(pipeline)

    def _timesteps(self, share: jax.Array) -> jax.Array:
        count = self.config.model.pipeline.scheduler.num_train_timesteps
        return jnp.clip((share * count).astype(jnp.int32), 0, count - 1)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        """Each example has its own time and noise in every evaluation."""
        data, processes = self.config.data, (jax.process_index(), jax.process_count())
        examples, size = self.examples(data.eval_split), sharding.rounded_up(data.eval_batch_size, mesh)
        limit = self.config.train.eval_examples
        batches = lambda: loader_lib.eval_batches(examples, size, *processes, limit)  # noqa: E731
        return MeanEvaluator(self.repeatable, batches, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return LOSS


def load(path: str | os.PathLike) -> Pipeline:
    """The pipeline of a run with its trained ControlNet; `rahf.diffusion.save_controlnet` writes that alone.

    Raises:
      CheckpointError: no model there, or one of another family.
    """
    saved = saved_model.find(path, expected="a run directory of the family gazefusion")
    model = saved.config.model
    if not isinstance(model, GazeFusionConfig):
        raise CheckpointError(f"{saved.run}: a model of the family {model.family!r}, no GazeFusion; use rahf.load")
    params = saved.params(lambda: GazeFusionNetwork(model))
    tokenizer = frozen_pipeline.tokenizer_of(saved, model.pipeline)
    license = frozen_pipeline.license_of(saved)
    control = controlnet_lib.ControlNet(model.controlnet, params["controlnet"], str(saved.run), license)
    return Pipeline(dataclasses.replace(saved.config, model=model.pipeline), params["base"], tokenizer, control)
