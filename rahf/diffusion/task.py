"""The diffusion families as a `Task`: a generator that learns to tell noise and picture apart."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rahf.config import Config
from rahf.core.batch import Batch
from rahf.core.errors import NotFinite, TrainError
from rahf.core.tree import Params
from rahf.diffusion import loss
from rahf.diffusion.networks.pixel_unet import TextToImage
from rahf.nn import functional
from rahf.text.vocabulary import too_many_pieces
from rahf.training import multihost, sharding
from rahf.training import start as start_lib
from rahf.training.record_task import RecordTask
from rahf.training.run_lock import begun
from rahf.training.task import Loss, Start


class PixelDiffusionTask(RecordTask):
    """Trains a generator in pixel space on pictures with prompts; labels are not looked at."""

    @classmethod
    def from_config(cls, config: Config) -> PixelDiffusionTask:
        """The task of a run, with the vocabulary that `config.data.tokenizer` names.

        Raises:
          TrainError, DatasetError: no such vocabulary, or one that does not fit.
        """
        start_lib.check(config)
        if config.start.vision or config.start.text:
            raise TrainError("start.vision, start.text: a diffusion model has no published towers; give start.model")
        fresh = not begun(pathlib.Path(config.workdir))
        tokenizer = start_lib.tokenizer(config, fresh)
        if problem := too_many_pieces(tokenizer, config.model.t5.vocab_size, "t5"):
            raise TrainError(problem)
        if fresh:
            start_lib.check_same_vocabulary(config, tokenizer)
        return cls(config, tokenizer)

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: TextToImage(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        return start_lib.from_model(self.config, shapes) if self.config.start.model else None

    def normalizers(self, batch: Batch) -> jax.Array:
        return jnp.maximum(batch.example_mask.sum(), 1).astype(jnp.float32)

    def loss(
        self,
        model: nnx.Module,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        return Loss(loss.drawn(self.config.model, model, batch, key, normalizers), {})

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> DenoisingEvaluator:
        return DenoisingEvaluator(self, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return ["loss/total"]


@dataclasses.dataclass(frozen=True)
class DenoisingEvaluation:
    """Metrics of a diffusion model on a split: ``loss/total``."""

    metrics: dict[str, float]
    count: int  # examples, over all processes


class DenoisingEvaluator:
    """The denoiser's mean loss on the evaluation split; each example has its own time and noise in every evaluation."""

    def __init__(self, task: PixelDiffusionTask, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        config, self._mesh = task.config, mesh
        self._batches = task.eval_loader(mesh)
        self._step = jax.jit(
            lambda params, batch: loss.repeatable(config.model, functional.merge(graphdef, params), batch)
        )

    def evaluate(self, params: Any, *, thorough: bool = False) -> DenoisingEvaluation:
        """The mean loss over all examples. Raises NotFinite, naming the example."""
        loss_sum, count = 0.0, 0
        for batch in self._batches:
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            rows = np.flatnonzero(batch.example_mask)
            if not np.isfinite(values[rows]).all():
                index = int(batch.index[rows[~np.isfinite(values[rows])][0]])
                raise NotFinite(f"the loss of example {index} of the evaluated split is not finite")
            loss_sum, count = loss_sum + float(values[rows].astype(np.float64).sum()), count + len(rows)
        loss_sum, count = (number.item() for number in map(np.asarray, multihost.total((loss_sum, count))))
        return DenoisingEvaluation({"loss/total": loss_sum / max(count, 1)}, count)

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The loss."""
        return f"loss {metrics['loss/total']:.3f}"
