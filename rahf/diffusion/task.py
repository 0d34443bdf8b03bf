"""The diffusion families as a `Task`: a generator that learns to tell noise and picture apart."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from rahf.config import Config
from rahf.core.batch import Batch
from rahf.core.errors import TrainError
from rahf.core.tree import Params
from rahf.diffusion import loss
from rahf.diffusion.networks.pixel_unet import TextToImage
from rahf.text.vocabulary import too_many_pieces
from rahf.training import start as start_lib
from rahf.training.mean_evaluator import LOSS, MeanEvaluator
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

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        """Of the denoiser's loss; each example has its own time and noise in every evaluation."""
        batches = self.eval_loader(mesh)
        repeatable = lambda model, batch: loss.repeatable(self.config.model, model, batch)  # noqa: E731
        return MeanEvaluator(repeatable, lambda: batches, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return LOSS
