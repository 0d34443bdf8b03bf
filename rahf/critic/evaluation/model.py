"""What `rahf evaluate` evaluates: a checkpoint of a run, or an exported file."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rahf import config as config_lib
from rahf.config import Config
from rahf.core import errors, hub, shipped
from rahf.core.batch import Batch
from rahf.critic import families, loading
from rahf.critic.critic import Critic
from rahf.critic.evaluation.eval_step import Evaluated
from rahf.critic.evaluation.evaluator import CriticEvaluation, CriticEvaluator
from rahf.critic.losses import Parts
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.text import Tokenizer, load_tokenizer
from rahf.training import checkpoint, label_counts, run_folder, sharding


class Opened(NamedTuple):
    """A model, ready to be evaluated."""

    config: Config
    tokenizer: Tokenizer
    evaluator: CriticEvaluator
    params: Any
    name: str
    step: int | None
    about: str  # which model it is, in words
    reports: pathlib.Path  # where reports of its splits go by default
    run: pathlib.Path | None  # None: an exported file
    signs: tuple[str, ...] = ()  # that training cannot have changed the weights, in words


def open_model(model: str, data: str | Sequence[str] | None, batch_size: int | None) -> Opened:
    """Loads what a user points at.

    Args:
      model: run directory, checkpoint directory, exported file, or hub id of one of them.
      data: prepared dataset, or several, instead of the one that it was trained on.
      batch_size: over all devices, instead of the config's.

    Raises:
      rahf.training.checkpoint.CheckpointError, rahf.critic.export.read.ExportError: no model.
      ValueError: an export of scores only.
    """
    file = shipped.resolve(model)
    if file is not model:
        opened = _exported(pathlib.Path(file), data, batch_size)
        return opened._replace(reports=pathlib.Path(f"{model}-report"))  # nothing is written into the package
    if hub.is_id(model):
        opened = open_model(str(hub.download(model)), data, batch_size)
        name = model.rsplit("/", 1)[-1]  # nothing is written into the hub's cache
        return opened._replace(name=name, reports=pathlib.Path(f"{name}-report"), run=None)
    if loading.is_exported(model):
        return _exported(pathlib.Path(model), data, batch_size)
    run, state = checkpoint.find(model)
    config = config_lib.read_saved(run / "config.json")
    if not families.is_critic(config.model):
        raise errors.CheckpointError(f"{run}: a {config.model.family} model, no critic; rahf evaluate measures critics")
    config = _placed(config, data, batch_size, len(jax.devices()))
    tokenizer = load_tokenizer(run / "tokenizer.model")
    mesh = sharding.make_mesh(config.mesh)
    graphdef, shapes = functional.abstract(build.build(config.model))
    params = checkpoint.load_params(state, sharding.placed(shapes, mesh))
    outputs = families.outputs(config.model).learnt(label_counts.read(run))
    evaluator = CriticEvaluator(graphdef, config, tokenizer, mesh, outputs)
    step = int(state.parent.name) if state.parent.name.isdigit() else None
    about = f"{state.parent.parent.name} checkpoint of step {state.parent.name}"
    signs = tuple(run_folder.signs_of_no_training(run, state))
    return Opened(config, tokenizer, evaluator, params, run.name, step, about, run / "report", run, signs)


def _exported(file: pathlib.Path, data: str | Sequence[str] | None, batch_size: int | None) -> Opened:
    critic = loading.load(file)
    if critic.network.forward is None:
        raise errors.ArgumentError(f"{file}: was exported with --scores-only; evaluate needs heatmaps and words, too")
    config = _placed(critic.config, data, batch_size, 1)
    evaluator = ExportedEvaluator(critic, config)
    reports = file.with_name(f"{file.stem}-report")
    about = f"{file.name}, {critic.model_id}, exported of step {critic.step}"
    return Opened(config, critic.tokenizer, evaluator, critic.params, critic.name, critic.step, about, reports, None)


def _placed(config: Config, data: str | Sequence[str] | None, batch_size: int | None, devices: int) -> Config:
    paths = () if not data else (data,) if isinstance(data, str) else tuple(data)
    changes: dict[str, Any] = {"path": paths if len(paths) > 1 else paths[0], "mix": ()} if paths else {}
    if batch_size:
        changes["eval_batch_size"] = batch_size
    # One process with one device evaluates what was trained on many.
    mesh = sharding.fitting(config.mesh, devices)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes), mesh=mesh)


class ExportedEvaluator(CriticEvaluator):
    """Evaluates an exported file, on one device: all metrics but losses, words by constrained scoring."""

    def __init__(self, critic: Critic, config: Config):
        self.config, self.tokenizer = config, critic.tokenizer
        self.outputs = critic.outputs
        self.mesh = sharding.make_mesh(config.mesh, jax.local_devices()[:1])
        self._steps = {False: jax.jit(lambda params, batch: _step(critic, params, batch))}

    def run(
        self, params: Any, batches: Any, labels: Any, *, generate: bool = False, **options: Any
    ) -> CriticEvaluation:
        """As `CriticEvaluator.run`, without generated keywords and losses: an export has no decoder and no logits."""
        evaluation = super().run(params, batches, labels, generate=False, **options)
        measured = {name: value for name, value in evaluation.metrics.items() if not name.startswith("loss/")}
        return dataclasses.replace(evaluation, metrics=measured)


def _step(critic: Critic, params: Any, batch: Batch) -> Evaluated:
    arrays = (batch.image, batch.text_ids, batch.text_mask, batch.prompt_ids, batch.word_end)
    prediction, _ = critic.network.forward(params, *arrays)
    # Squared errors stand in for the losses: the report ranks its examples by them.
    maps = jnp.square(prediction.heatmaps - batch.heatmaps / 255.0).mean((1, 2))
    scores = jnp.square(prediction.scores - batch.scores)
    zero = jnp.zeros(len(scores))
    errors = {
        "heatmap": jnp.where(batch.heatmap_mask, maps, 0).mean(1),
        "score": jnp.where(batch.score_mask, scores, 0).mean(1),
    }
    return Evaluated(prediction, None, Parts(**{name: errors.get(name, zero) for name in Parts._fields}))
