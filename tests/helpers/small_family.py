"""A family that trains through the real loader, but whose network compiles in a moment: scores from a 16 x 16 picture.

For tests of the training loop (resumption, kills, signals, several processes), which knows no family: the critic
takes half a minute to compile and seconds to trace in every process. Dropout, noise of the step's own key and labels
that are missing are there, so that a resumed run has to go on exactly with all of them.
"""

import dataclasses
import pathlib
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf import registry
from rahf.config import FamilyConfig
from rahf.nn import functional, layers
from rahf.training import multihost, run_lock, sharding
from rahf.training import start as start_lib
from rahf.training.record_task import RecordTask
from rahf.training.task import Loss


@dataclasses.dataclass(frozen=True)
class SmallConfig(FamilyConfig):
    family: Literal["small"] = "small"
    image_size: int = 32
    dropout: float = 0.1


class SmallEvaluation(NamedTuple):
    metrics: dict[str, float]
    count: int


class SmallTask(RecordTask):
    loss_parts = ("score",)
    uses_dropout = True

    @classmethod
    def from_config(cls, config):
        fresh = not run_lock.begun(pathlib.Path(config.workdir))
        return cls(config, start_lib.tokenizer(config, fresh))

    def build(self):
        return lambda: layers.Linear(768, 4, bias=True, std=0.1, dtype=jnp.dtype("float32"))

    def normalizers(self, batch):
        return jnp.maximum(batch.score_mask.sum(), 1).astype(jnp.float32)

    def loss(self, model, batch, key, dropout_key, step, normalizers):
        pixels = _pooled(batch.image)
        kept = jax.random.bernoulli(dropout_key, 1 - self.config.model.dropout, pixels.shape)
        pixels = pixels * kept + 0.1 * jax.random.normal(key, pixels.shape)
        score = _squares(model(pixels), batch).sum() / normalizers
        return Loss(score, {"score": score})

    def evaluator(self, graphdef, mesh):
        return SmallEvaluator(self, graphdef, mesh)

    def metric_names(self):
        return ["loss/total"]


class SmallEvaluator:
    def __init__(self, task, graphdef, mesh):
        self.batches, self.mesh = task.eval_loader(mesh), mesh
        self.step = jax.jit(
            lambda params, batch: _squares(functional.merge(graphdef, params)(_pooled(batch.image)), batch).sum(1)
        )

    def evaluate(self, params, *, thorough):
        sums, count = 0.0, 0
        for batch in self.batches:
            values = multihost.local_rows(self.step(params, sharding.to_devices(batch, self.mesh)), self.mesh)
            sums += float(values[batch.example_mask].astype(np.float64).sum())
            count += int(batch.example_mask.sum())
        sums, count = (number.item() for number in map(np.asarray, multihost.total((sums, count))))
        return SmallEvaluation({"loss/total": sums / count}, count)

    def summary(self, metrics):
        return f"loss {metrics['loss/total']:.3f}"


def _pooled(image):
    """The picture of 16 x 16 pixels, flat and in -1..1: uint8 [B,H,W,3] -> float32 [B,768]."""
    batch, side = image.shape[:2]
    cells = image.astype(jnp.float32).reshape(batch, 16, side // 16, 16, side // 16, 3)
    return cells.mean((2, 4)).reshape(batch, -1) / 127.5 - 1


def _squares(scores, batch):
    return jnp.square(scores - batch.scores) * batch.score_mask


ENTRY = registry.Family(SmallConfig, SmallTask.from_config, load=lambda path: f"small at {path}")
registry.FAMILIES.setdefault("small", ENTRY)  # on import, so that a config file can bring it into any process

#: A config file as a user with a family of his own would write it.
CONFIG = """
from rahf.config import *
from tests.helpers.small_family import SmallConfig

def config():
    return Config(
        workdir="runs/small",
        data=DataConfig(path={data!r}, batch_size=8, eval_batch_size=8, max_prompt_tokens=24, max_target_tokens=28),
        model=SmallConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4, schedule="rsqrt", ema_decay=0.9),
        train=TrainConfig(
            steps=12, log_every=2, eval_every=6, eval_examples=8, checkpoint_every=4,
            best_metric="loss/total", best_mode="min",
        ),
    )
"""
