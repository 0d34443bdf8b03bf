"""The saliency readout of an Augsal run as a saliency model: `rahf evaluate`, `rahf look` and judges take it as one."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax.numpy as jnp

from rahf.config import AugsalConfig, Config, SaliencyConfig
from rahf.core.errors import ArgumentError, CheckpointError
from rahf.core.tree import Params
from rahf.critic.from_run import weight_license
from rahf.diffusion.pipeline_inputs import tokens
from rahf.nn import functional
from rahf.saliency import frozen_pipeline
from rahf.saliency.augsal import features
from rahf.saliency.augsal.readouts import AugsalNetwork
from rahf.saliency.from_run import model_id
from rahf.saliency.network import log_density
from rahf.saliency.predictor import Function, Saliency
from rahf.text import ClipTokenizer
from rahf.training import saved_model

_LEAST = 1e-30  # of a readout, in front of its logarithm


def canvas(config: Config) -> Config:
    """The run's config as a saliency model's: a square canvas, one cell per cell of the readouts."""
    model = config.model
    side, stride = model.image_size, model.image_size // model.resolution
    gaze = SaliencyConfig(image_height=side, image_width=side, stride=stride, flip=model.flip)
    return dataclasses.replace(config, model=gaze)


def load(path: str | os.PathLike, *, dtype: Any = None) -> Saliency:
    """The saliency model of a trained run: its density is the readout divided by its sum over the picture.

    It holds no centre bias of its own, so that `center_bias="none"` is refused; nor can it be adapted or exported.

    Raises:
      CheckpointError: no run of Augsal there, or a damaged one.
      ArgumentError: a dtype.
    """
    if dtype is not None:
        raise ArgumentError(f"dtype: readouts compute in the dtype of their pipeline, asked for {dtype}")
    saved = saved_model.find(path, expected="a run directory of the family augsal")
    config = saved.config
    if not isinstance(config.model, AugsalConfig):
        raise CheckpointError(f"{saved.run}: a model of the family {config.model.family!r}, no Augsal; use rahf.load")
    params = saved.params(lambda: AugsalNetwork(config.model))
    function = _function(config, frozen_pipeline.tokenizer_of(saved, config.model.pipeline))
    name, step = saved.run.name, saved.step
    return Saliency(
        canvas(config),
        params,
        [function],
        name=name,
        step=step,
        model_id=model_id(config, params, name, step),
        weight_license=weight_license(saved.run),
        center_biased=False,
    )


def _function(config: Config, tokenizer: ClipTokenizer) -> Function:
    model = config.model
    pipeline, side = model.pipeline, model.image_size
    graphdef, _ = functional.abstract(lambda: AugsalNetwork(model))
    plan = features.steps_of(pipeline.scheduler, model.num_inference_steps, model.times)
    tokenizers = [tokenizer.with_special(number) for number in pipeline.pad_token_ids]
    empty = tokens([""], tokenizers, pipeline.text_encoder.positions, pipeline.pad_token_ids)

    def function(params: Params, pictures, frame, bias):
        network, b = functional.merge(graphdef, params), len(pictures)
        base, readouts = network.base, network.readouts
        conditions, _ = base.conditions([jnp.repeat(jnp.asarray(ids), b, 0) for ids in empty], None, (side, side))
        back = features.inverted(base, base.encode(pictures), conditions, plan)
        seen = features.collect(base, back.trajectory[:-1], plan.timestep, conditions)
        logs = jnp.log(jnp.maximum(readouts.saliency(readouts.low(seen), readouts.high(seen)), _LEAST))
        return log_density(logs, frame)

    return function
