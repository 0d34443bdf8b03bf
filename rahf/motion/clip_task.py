"""What tasks share that learn from clips of `rahf prepare motion`: the motion model's stages, and the renderer."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import jax
from flax import nnx

from data_pipelines.video import loader as loader_lib
from data_pipelines.video import read
from data_pipelines.video.loader import MotionBatch
from data_pipelines.video.read import Description
from rahf.config import Config
from rahf.core.errors import TrainError
from rahf.training import sharding
from rahf.training import start as start_lib
from rahf.training.mean_evaluator import MeanEvaluator
from rahf.training.task import Loader, Task


class ClipTask(Task[MotionBatch]):
    """A task whose batches are clips and whose metrics are means of its losses.

    Attributes:
      terms: how many terms of each clip's spectral volume it takes, the first ones; None: all.
    """

    terms: int | None = None
    convolutional = True

    @abc.abstractmethod
    def repeatable(self, model: nnx.Module, batch: MotionBatch) -> jax.Array:
        """The metrics of each clip, float32 [B,n], by `metric_names`; the same whenever they are computed."""

    def train_loader(self) -> Loader:
        data = self.config.data
        seed, processes = self.config.train.seed, (jax.process_index(), jax.process_count())
        return loader_lib.train_loader(data.path, data.train_split, data.batch_size, seed, *processes, terms=self.terms)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        data, processes = self.config.data, (jax.process_index(), jax.process_count())
        size, limit = sharding.rounded_up(data.eval_batch_size, mesh), self.config.train.eval_examples
        batches = lambda: loader_lib.eval_batches(  # noqa: E731
            data.path, data.eval_split, size, *processes, limit, self.terms
        )
        return MeanEvaluator(self.repeatable, batches, graphdef, mesh, self.metric_names())

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
