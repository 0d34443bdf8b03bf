"""CLIP from scratch: which prompt belongs to which picture of a batch (Radford et al. 2021). Learns without labels."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from data_pipelines import store
from data_pipelines.loading.examples import RecordSequence, Subset
from rahf.config import ClipBaselineConfig, Config, MeshConfig
from rahf.core.batch import Batch
from rahf.core.errors import ArgumentError, ConfigError, DataError
from rahf.core.tree import Params
from rahf.critic import families
from rahf.critic import start as start_lib
from rahf.critic.networks import build
from rahf.critic.networks.clip import Clip
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.training import saved_model, sharding
from rahf.training.mean_evaluator import MeanEvaluation, MeanEvaluator
from rahf.training.record_task import RecordTask
from rahf.training.task import Loss, Start, Task

#: What an evaluation measures: the loss, and how often the nearest prompt of all those in the evaluated batch is the
#: picture's own, the nearest picture the prompt's own, and the mean of the two.
METRICS = ("loss/total", "recall/image_to_text", "recall/text_to_image", "recall/mean")


class Retrieval(NamedTuple):
    """Of each example of a batch, float32 [B]; 0 for padding."""

    loss: Float[Array, " b"]  # nats, mean of the two directions
    image_to_text: Float[Array, " b"]  # 1: no prompt of the batch is nearer to the picture than its own
    text_to_image: Float[Array, " b"]  # 1: no picture of the batch is nearer to the prompt than its own
    recall: Float[Array, " b"]  # mean of the two


def is_pair(record: store.Record) -> bool:
    """Whether picture and prompt belong together: no word is labelled misaligned. True without labels of words."""
    return record.word_labels is None or all(record.word_labels)


def retrieval(similarity: Float[Array, "b b"], ids: Int[Array, "b l"], examples: Bool[Array, " b"]) -> Retrieval:
    """The symmetric cross-entropy of a batch (Radford et al. 2021, figure 3), and what is nearest.

    Every other picture and prompt of the batch is wrong. Examples of equal prompts are left out of each other's
    comparisons: both pictures show what both prompts say.

    Args:
      similarity: of picture i (row) and prompt j (column), scaled.
      ids: of the prompts.
      examples: False: padding.
    """
    own = jnp.eye(len(ids), dtype=bool)
    others = examples[None] & (ids[:, None] != ids[None]).any(-1)
    losses, hits = [], []
    for logits in (similarity, similarity.T):
        right = jnp.diagonal(logits)
        losses.append(jax.nn.logsumexp(logits, 1, where=others | own) - right)
        hits.append(right >= jnp.where(others, logits, -jnp.inf).max(1))
    values = (sum(losses) / 2.0, *hits, (hits[0] + hits[1].astype(jnp.float32)) / 2.0)
    return Retrieval(*(jnp.where(examples, value, 0).astype(jnp.float32) for value in values))


def measured(model: Clip, batch: Batch, key: jax.Array | None = None) -> Retrieval:
    """`retrieval` of a network and a batch.

    The batch is one array over all devices, so each picture meets the prompts of all devices: under `jit` the compiler
    gathers the embeddings.

    Args:
      key: switches dropout on.
    """
    fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask, key)
    similarity = model.similarity_scale() * jnp.matmul(fused.image, fused.text.T, precision="highest")
    return retrieval(similarity, batch.text_ids, batch.example_mask)


class ContrastiveTask(RecordTask):
    """Trains both towers of a CLIP so that the cosine of a picture and its own prompt is larger than any other."""

    @classmethod
    def from_config(cls, config: Config) -> ContrastiveTask:
        """The task of a run, with the vocabulary that `config.data.tokenizer` names.

        Raises:
          ConfigError: fields that contradict each other.
          TrainError, PretrainedError, DatasetError: no such vocabulary, or one that does not fit.
        """
        check(config)
        return cls(config, start_lib.tokenizer(config))

    def build(self) -> Callable[[], nnx.Module]:
        return build.build(self.config.model)

    def start(self, shapes: Params) -> Start:
        return start_lib.load(self.config, shapes)

    def source(self, path: str, split: str) -> RecordSequence:
        """The records of a split whose picture and prompt belong together, as `loss.contrastive` says.

        Raises:
          DataError: there are none.
        """
        records = super().source(path, split)
        if self.config.loss.contrastive == "all":
            return records
        positions = [number for number in range(len(records)) if is_pair(records[number])]
        if not positions:
            raise DataError(
                f"dataset {path}, split {split!r}: each of {len(records)} prompts has a word labelled misaligned, so "
                "no picture shows what its prompt says; set loss.contrastive to 'all' to learn from them all the same"
            )
        return Subset(records, positions)

    def loss(
        self,
        model: nnx.Module,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        return Loss(measured(model, batch, dropout_key).loss.sum() / normalizers, {})

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        """Of `METRICS`; candidates are the pictures and prompts of one evaluated batch."""
        batches = self.eval_loader(mesh)
        values = lambda model, batch: jnp.stack(measured(model, batch), 1)  # noqa: E731
        return MeanEvaluator(values, lambda: batches, graphdef, mesh, METRICS)

    def metric_names(self) -> Sequence[str]:
        return METRICS

    @property
    def uses_dropout(self) -> bool:
        return self.config.model.vit.dropout > 0


def evaluate(
    path: str | os.PathLike, data: str | None = None, split: str = "test", candidates: int | None = None
) -> MeanEvaluation:
    """`METRICS` of a trained or imported CLIP on a split, of the pairs in it.

    Args:
      path: a run or model directory, or a checkpoint.
      data: folder of a prepared dataset; None: the first one that it was trained on.
      candidates: how many pairs are compared with each other, the size of an evaluated batch; None: as in the config.
        The last pairs of the split meet what is left.

    Raises:
      ArgumentError: no CLIP.
      CheckpointError, DatasetError, DataError: no model, no data, no pairs.
      NotFinite: the network computes NaN or infinity for an example.
    """
    saved = saved_model.find(path)
    config = saved.config
    if not isinstance(config.model, ClipBaselineConfig):
        raise ArgumentError(f"{path}: a model of the family {config.model.family!r}; expected a CLIP, family 'clip'")
    folder, size = data or config.data.paths[0], candidates or config.data.eval_batch_size
    pairs = dataclasses.replace(config.data.only(folder), eval_split=split, eval_batch_size=size)
    whole = dataclasses.replace(config.train, eval_examples=sys.maxsize)
    tokenizer = saved.tokenizer(lambda tokenizer: families.vocabulary_problem(config.model, tokenizer))
    task = ContrastiveTask(dataclasses.replace(config, data=pairs, train=whole), tokenizer)
    graphdef, _ = functional.abstract(task.build())
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    return task.evaluator(graphdef, mesh).evaluate(saved.params(task.build()))


def check(config: Config) -> None:
    """Raises ConfigError for fields that a contrastive loss contradicts."""
    what = f"loss.contrastive {config.loss.contrastive!r}"
    if config.model.clip.scores != "cosine":
        raise ConfigError(
            f"{what} trains the cosine of picture and prompt, and model.clip.scores is {config.model.clip.scores!r}, "
            "whose layers it would leave random; set that to 'cosine', or loss.contrastive to 'none'"
        )
    if config.train.accumulate > 1:
        raise ConfigError(
            f"{what} compares all examples of a batch, and train.accumulate {config.train.accumulate} cuts the batch "
            "into parts; set it to 1, and data.batch_size to what fits into memory"
        )
    if config.train.cache_tower:
        raise ConfigError(f"{what} trains the image tower; set train.cache_tower to False")
    if config.data.batch_size < 2:
        raise ConfigError(f"{what} needs other examples beside each; set data.batch_size to at least 2")


def task(config: Config) -> Task:
    """The task of a CLIP: by `config.loss.contrastive`, a `ContrastiveTask` or a `CriticTask`.

    Raises:
      ConfigError, TrainError, PretrainedError, DatasetError: as the two.
    """
    contrastive = isinstance(config.model, ClipBaselineConfig) and config.loss.contrastive != "none"
    return (ContrastiveTask if contrastive else CriticTask).from_config(config)
