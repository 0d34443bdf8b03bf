"""What tasks share that learn from prepared records (`data_pipelines.store`) with a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from data_pipelines import store
from data_pipelines.loading.examples import RecordSequence
from data_pipelines.loading.loader import EvalLoader, eval_loader, train_loader
from rahf.config import Config
from rahf.core.batch import Batch
from rahf.text import Tokenizer
from rahf.training import sharding
from rahf.training.task import Loader, SavedFile, Task


class RecordTask(Task[Batch]):
    """A task whose batches are pictures with prompts and labels.

    Attributes:
      tokenizer: the vocabulary; None: losses can be computed, but nothing can be loaded, evaluated or saved. For
        measurements of the step.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer | None):
        super().__init__(config)
        self.tokenizer = tokenizer

    def saved_files(self) -> Mapping[str, SavedFile]:
        source = f"the data's vocabulary {self.tokenizer.source}"
        return {"tokenizer.model": SavedFile(self.tokenizer.model, source)}

    def source(self, path: str, split: str) -> RecordSequence:
        """The records of a split that the task learns from and is evaluated on: all."""
        return store.open_split(path, split)

    def train_loader(self) -> Loader:
        return train_loader(
            self.config.data,
            self.config.model.image_size,
            self.tokenizer,
            self.config.train.seed,
            jax.process_index(),
            jax.process_count(),
            [self.source(path, self.config.data.train_split) for path in self.config.data.paths],
        )

    def eval_loader(self, mesh: jax.sharding.Mesh, path: str | None = None) -> EvalLoader:
        """The evaluation split of a data set, at most `train.eval_examples` of it.

        Args:
          mesh: whose devices can share a batch.
          path: the data set; None: the first one of the run.
        """
        path = path or self.config.data.paths[0]
        return eval_loader(
            self.config.data.only(path),
            self.config.data.eval_split,
            self.config.model.image_size,
            self.tokenizer,
            sharding.rounded_up(self.config.data.eval_batch_size, mesh),
            jax.process_index(),
            jax.process_count(),
            limit=self.config.train.eval_examples,
            source=self.source(path, self.config.data.eval_split),
        )
