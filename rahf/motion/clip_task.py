"""What tasks share that learn from clips of `rahf prepare motion`: the motion model's stages, and the renderer."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.video import loader as loader_lib
from data_pipelines.video import read
from data_pipelines.video.loader import MotionBatch
from data_pipelines.video.read import Description
from rahf.config import Config
from rahf.core.errors import NotFinite, TrainError
from rahf.nn import functional
from rahf.training import multihost, sharding
from rahf.training import start as start_lib
from rahf.training.task import Loader, Task


class ClipTask(Task[MotionBatch]):
    """A task whose batches are clips and whose metrics are means of its losses.

    Attributes:
      terms: how many terms of each clip's spectral volume it takes, the first ones; None: all.
    """

    terms: int | None = None

    @abc.abstractmethod
    def repeatable(self, model: nnx.Module, batch: MotionBatch) -> jax.Array:
        """The metrics of each clip, float32 [B,n], by `metric_names`; the same whenever they are computed."""

    def train_loader(self) -> Loader:
        data = self.config.data
        seed, processes = self.config.train.seed, (jax.process_index(), jax.process_count())
        return loader_lib.TrainLoader(data.path, data.train_split, data.batch_size, seed, *processes, terms=self.terms)

    def normalizers(self, batch: MotionBatch) -> jax.Array:
        return jnp.maximum(batch.example_mask.sum(), 1).astype(jnp.float32)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> ClipEvaluator:
        return ClipEvaluator(self, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return ["loss/total", *(f"loss/{part}" for part in self.loss_parts)]


def checked(config: Config, what: str) -> Description:
    """The description of a run's data.

    Args:
      config: of the run.
      what: trains, for errors: "a motion model".

    Raises:
      TrainError: a start with published towers, or several datasets.
      DatasetError: no motion data.
    """
    start_lib.check(config)
    if config.start.vision or config.start.text:
        raise TrainError(f"start.vision, start.text: {what} has no published towers; give start.model")
    if len(config.data.paths) > 1:
        raise TrainError(f"data.path: {what} reads one dataset, found {len(config.data.paths)}")
    return read.description(config.data.path)


@dataclasses.dataclass(frozen=True)
class ClipEvaluation:
    """Metrics on a split: ``loss/total``, and the parts of the loss."""

    metrics: dict[str, float]
    count: int  # examples, over all processes


class ClipEvaluator:
    """Mean losses on the evaluation split."""

    def __init__(self, task: ClipTask, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        """Args: the task whose losses are meant, its network's structure, and the devices."""
        self._config, self._terms, self._names, self._mesh = task.config, task.terms, task.metric_names(), mesh
        self._step = jax.jit(lambda params, batch: task.repeatable(functional.merge(graphdef, params), batch))

    def evaluate(self, params: Any, *, thorough: bool = False) -> ClipEvaluation:
        """The means over all clips. Raises NotFinite, naming the clip."""
        config, sums, count = self._config, np.zeros(len(self._names)), 0
        batches = loader_lib.eval_batches(
            config.data.path,
            config.data.eval_split,
            sharding.rounded_up(config.data.eval_batch_size, self._mesh),
            jax.process_index(),
            jax.process_count(),
            config.train.eval_examples,
            self._terms,
        )
        for batch in batches:
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            rows = np.flatnonzero(batch.example_mask)
            bad = rows[~np.isfinite(values[rows]).all(-1)]
            if len(bad):
                raise NotFinite(f"the loss of clip {int(batch.index[bad[0]])} of the evaluated split is not finite")
            sums, count = sums + values[rows].astype(np.float64).sum(0), count + len(rows)
        sums, count = jax.tree.map(np.asarray, multihost.total((sums, count)))
        means = (sums / max(int(count), 1)).tolist()
        return ClipEvaluation(dict(zip(self._names, means)), int(count))

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The loss."""
        return ", ".join(f"{name.split('/')[1]} {metrics[name]:.4f}" for name in self._names)
