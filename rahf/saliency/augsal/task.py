"""Augsal's readouts as a `Task`. The diffusion model beside them stays as it is published.

The pictures' features are those of the empty prompt: no set of this project holds captions beside gaze.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.gaze import loader as loader_lib
from data_pipelines.gaze.examples import GazeBatch
from rahf.config import AugsalConfig, AugsalLossConfig, Config
from rahf.core.errors import ConfigError
from rahf.core.tree import Params
from rahf.diffusion.networks.stable_diffusion import StableDiffusion, latent_channels, vae_scale_factor
from rahf.nn.boxes import regions
from rahf.saliency import frozen_pipeline, gaze_batches
from rahf.saliency.augsal import as_saliency, features, latent_edits, losses
from rahf.saliency.augsal.properties import PROPERTIES, properties
from rahf.saliency.augsal.readouts import AugsalNetwork, Readings
from rahf.saliency.frozen_pipeline import FrozenPipelineTask
from rahf.saliency.gazefusion.loss import locked
from rahf.saliency.network import cells_inside
from rahf.text import ClipTokenizer
from rahf.training import start as start_lib
from rahf.training.mean_evaluator import MeanEvaluator
from rahf.training.task import Loader, Loss, Start

#: What is trained.
TRAINABLE = ("readouts/*",)
#: Parts of the loss, unweighted.
PARTS = ("kld", "cc", *PROPERTIES, "edit")


class AugsalTask(FrozenPipelineTask[GazeBatch]):
    """Trains the readouts on pictures with densities; the pipeline beside them gets no gradient."""

    loss_parts = PARTS
    trainable = TRAINABLE

    def __init__(self, config: Config, tokenizer: ClipTokenizer):
        """Args: a complete config, and the vocabulary of the pipeline's text towers.

        Raises:
          ConfigError: sizes that do not fit each other, a gamma for other latents, other parameters to be trained, or a
            class readout, for which no set of this project has labels.
        """
        super().__init__(config, tokenizer)
        model: AugsalConfig = config.model
        check(model)
        self.empty_ids = self.tokens([""])
        self.plan = features.steps_of(model.pipeline.scheduler, model.num_inference_steps, model.times)
        self.unweighted_parts = tuple(name for name, weight in weights(model.loss).items() if not weight)

    @classmethod
    def from_config(cls, config: Config) -> AugsalTask:
        """The task of a run, completed by the config and the vocabulary of `start.model`, or by its own if it goes on.

        Raises:
          TrainError, CheckpointError: as `frozen_pipeline.completed`.
        """
        return cls(*frozen_pipeline.completed(config, cls.trainable))

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: AugsalNetwork(self.config.model)

    def start(self, shapes: Params) -> Start:
        """The pipeline's parameters; the readouts start at random."""
        base, record = self.base_params()
        return Start({"base": base}, {"model": record} | start_lib.shares(shapes, {"base": base}))

    @functools.cached_property
    def canvas(self) -> Config:
        """The run's config as the loader of gaze reads it."""
        return as_saliency.canvas(self.config)

    def train_loader(self) -> Loader:
        gaze_batches.check_densities(self.config.data.paths)
        source = loader_lib.training_source(self.canvas)
        return loader_lib.train_loader(self.canvas, source, jax.process_index(), jax.process_count())

    def loss(
        self,
        model: nnx.Module,
        batch: GazeBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        config = self.config.model
        of_boxes, of_edits = jax.random.split(key)
        boxes = random_boxes(of_boxes, batch.frame, config.patch_sides, config.resolution)
        base, latents, pictures = self._seen(model, batch)
        if not (config.edit_probability and config.loss.edit_weight):
            readings = self._readings(base, model, latents, pictures, boxes)
            values = parts(config.loss, readings, pictures, boxes, batch)
            values["edit"] = jnp.zeros(len(pictures))
        else:
            # Edited copies go through the networks in the same batch.
            chosen, edited = self._edited(of_edits, latents, boxes)
            both = [jnp.concatenate(pair) for pair in ((latents, edited), (pictures, pictures), (boxes, boxes))]
            twice = self._readings(base, model, *both)
            readings, after = (Readings(*halves) for halves in zip(*(jnp.split(x, 2) for x in twice)))
            values = parts(config.loss, readings, pictures, boxes, batch)
            values["edit"] = chosen * losses.edit(
                readings.saliency,
                after.saliency,
                regions(boxes, readings.saliency.shape[1:]),
                config.loss.edit_loss,
                config.loss.margin,
            )
        mask = batch.example_mask.astype(jnp.float32)
        sums = {name: (value * mask).sum() / normalizers for name, value in values.items()}
        factors = weights(config.loss)
        return Loss(sum(factors[name] * sums[name] for name in PARTS), sums)

    def measured(self, model: nnx.Module, batch: GazeBatch) -> dict[str, jax.Array]:
        """The parts of the evaluation loss, float32 [B]; the region is the middle half of the picture. No edits."""
        boxes = middle_boxes(batch.frame, self.config.model.resolution)
        base, latents, pictures = self._seen(model, batch)
        readings = self._readings(base, model, latents, pictures, boxes)
        return parts(self.config.model.loss, readings, pictures, boxes, batch)

    def _seen(self, model: AugsalNetwork, batch: GazeBatch) -> tuple[StableDiffusion, jax.Array, jax.Array]:
        base = locked(model.base)
        pictures = batch.image.astype(jnp.float32) / 255
        return base, jax.lax.stop_gradient(base.encode(pictures)), pictures

    def _readings(self, base: StableDiffusion, model: AugsalNetwork, latents, pictures, boxes) -> Readings:
        """All readouts of latents; nothing behind the features is differentiated."""
        config, b = self.config.model, len(latents)
        size = pictures.shape[1:3]
        conditions, _ = base.conditions([jnp.repeat(jnp.asarray(ids), b, 0) for ids in self.empty_ids], None, size)
        back = features.inverted(base, latents, conditions, self.plan)
        seen = features.collect(base, back.trajectory[:-1], self.plan.timestep, conditions)
        seen = jax.tree.map(jax.lax.stop_gradient, seen)
        return model.readouts(seen, pictures, boxes, regions(boxes, (config.resolution,) * 2))

    def _edited(self, key: jax.Array, latents: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which are edited, float32 [B], and the latents of all with more brightness or contrast inside the box."""
        config, b = self.config.model, len(latents)
        which, how, strength = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(which, config.edit_probability, (b,)).astype(jnp.float32)
        low, high = config.edit_strength
        alpha = jax.random.uniform(strength, (b,), minval=low, maxval=high)
        mask = regions(boxes, latents.shape[1:3])
        gamma = jnp.asarray(config.gamma or latent_edits.known_gamma(config.pipeline), jnp.float32)
        edited = jnp.where(
            jax.random.bernoulli(how, 0.5, (b, 1, 1, 1)),
            latent_edits.brightness(latents, mask, alpha, gamma),
            latent_edits.contrast(latents, mask, alpha, gamma),
        )
        return chosen, edited

    def eval_loader(self, mesh: jax.sharding.Mesh) -> loader_lib.GazeEvalLoader:
        """As `gaze_batches.eval_loader`."""
        return gaze_batches.eval_loader(self.canvas, mesh)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        """CC and KLD of the saliency readout, and the errors of the properties of the middle of each picture."""
        return MeanEvaluator(
            self._measured_columns,
            lambda: self.eval_loader(mesh),
            graphdef,
            mesh,
            names=PARTS[:-1],
            metrics=self._metrics,
            shown=("saliency/cc", "saliency/kld"),
        )

    def _measured_columns(self, model: nnx.Module, batch: GazeBatch) -> jax.Array:
        values = self.measured(model, batch)
        return jnp.stack([values[name] for name in PARTS[:-1]], -1)

    def _metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        factors = weights(self.config.model.loss)
        return {
            "loss/total": sum(factors[name] * value for name, value in means.items()),
            **{f"saliency/{name}": means[name] for name in ("kld", "cc")},
            **{f"properties/{name}/rmse": math.sqrt(means[name]) for name in PROPERTIES},
        }

    def metric_names(self) -> Sequence[str]:
        return ["loss/total", "saliency/kld", "saliency/cc", *(f"properties/{name}/rmse" for name in PROPERTIES)]


def parts(
    config: AugsalLossConfig, readings: Readings, pictures: jax.Array, boxes: jax.Array, batch: GazeBatch
) -> dict[str, jax.Array]:
    """Equations 3 and 4 without their weights: KLD, CC, and the squared error of each property, float32 [B]."""
    inside = cells_inside(batch.frame, readings.saliency.shape[1:]).astype(jnp.float32)
    stride = pictures.shape[1] // inside.shape[1]
    whole = jnp.repeat(jnp.repeat(inside, stride, 1), stride, 2)
    truth = properties(pictures, regions(boxes, pictures.shape[1:3]), config.global_contrast, whole)
    errors = losses.squared_error(readings.properties, truth)
    return {
        "kld": losses.kld(readings.saliency, batch.density, inside=inside),
        "cc": losses.cc(readings.saliency, batch.density, inside=inside),
        **{name: errors[:, column] for column, name in enumerate(PROPERTIES)},
    }


def weights(config: AugsalLossConfig) -> dict[str, float]:
    """Of each part in the loss; negative for what grows with agreement."""
    return {
        "kld": config.kld_weight,
        "cc": -config.cc_weight,
        **dict.fromkeys(("red", "green", "blue"), config.color_weight),
        "brightness": config.brightness_weight,
        "local_contrast": config.local_contrast_weight,
        "global_contrast": config.global_contrast_weight,
        "edit": config.edit_weight,
    }


def random_boxes(key: jax.Array, frame: Any, sides: tuple[float, float], resolution: int) -> jax.Array:
    """One box inside each picture's frame, float32 [B,4]: left, top, right, bottom in shares of the canvas.

    Args:
      frame: int32 [B,4] of `rahf.images.letterbox.Frame`, in cells.
      sides: smallest and largest side, in shares of the frame's.
      resolution: cells along a side of the canvas.
    """
    b = len(frame)
    of_side, of_place = jax.random.split(key)
    side = jax.random.uniform(of_side, (b, 2), minval=sides[0], maxval=sides[1])
    start = jax.random.uniform(of_place, (b, 2)) * (1 - side)
    return _in_frame(jnp.concatenate([start, start + side], 1), frame, resolution)


def middle_boxes(frame: Any, resolution: int) -> jax.Array:
    """The middle half of each frame along both sides, as `random_boxes`."""
    return _in_frame(jnp.tile(jnp.asarray([0.25, 0.25, 0.75, 0.75]), (len(frame), 1)), frame, resolution)


def _in_frame(boxes: jax.Array, frame: Any, resolution: int) -> jax.Array:
    top, left, rows, columns = jnp.asarray(frame, jnp.float32).T
    scale = jnp.stack([columns, rows, columns, rows], 1)
    return (boxes * scale + jnp.stack([left, top, left, top], 1)) / resolution


def check(model: AugsalConfig) -> None:
    """Raises ConfigError for sizes that do not fit each other, a gamma for other latents, or a class readout."""
    cell = vae_scale_factor(model.pipeline)
    for name, unit in (("resolution", model.resolution), ("a cell of the latents", cell)):
        if model.image_size % unit:
            raise ConfigError(f"model.image_size: expected a multiple of {unit} ({name}), found {model.image_size}")
    stride = model.image_size // model.resolution
    if stride & (stride - 1):
        raise ConfigError(f"model.resolution: expected image_size divided by a power of 2, found {model.resolution}")
    if model.classes:
        raise ConfigError(
            "model.classes: no prepared set of pictures with gaze has regions with classes to learn from; set it to 0"
        )
    channels = latent_channels(model.pipeline)
    if len(gamma := model.gamma or latent_edits.known_gamma(model.pipeline)) != channels:
        raise ConfigError(f"model.gamma: expected {channels} numbers, one per channel of the latents, found {gamma}")
    for name in ("patch_sides", "edit_strength"):
        low, high = getattr(model, name)
        if not 0 < low <= high:
            raise ConfigError(f"model.{name}: expected the smallest, above 0, and the largest, found {low} and {high}")
