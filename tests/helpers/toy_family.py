"""A family of models that rahf knows nothing of: it learns a linear map, in the lines that a new family needs."""

import contextlib
import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf import registry
from rahf.config import FamilyConfig
from rahf.nn import functional, layers
from rahf.training.task import Loss, Task


@dataclasses.dataclass(frozen=True)
class ToyConfig(FamilyConfig):
    family: Literal["toy"] = "toy"
    width: int = 256


class ToyBatch(NamedTuple):
    x: np.ndarray  # [B, 128], drawn from the number of the batch
    y: np.ndarray  # [B, width], twice the first input


class ToyLoader(contextlib.nullcontext):
    def __init__(self, config, number=0):
        super().__init__(self)
        self.config, self.number, self.report = config, number, print

    def __next__(self):
        self.number += 1
        x = np.random.default_rng(self.number).normal(size=(self.config.data.batch_size, 128)).astype(np.float32)
        return ToyBatch(x, np.repeat(2 * x[:, :1], self.config.model.width, 1))

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


class ToyEvaluation(NamedTuple):
    metrics: dict[str, float]
    count: int


class ToyEvaluator:
    def __init__(self, task, graphdef):
        self.batch = next(ToyLoader(task.config, 1000))
        self.step = jax.jit(lambda p, b: task.loss(functional.merge(graphdef, p), b, None, None, 0, None).total)

    def evaluate(self, params, *, thorough):
        return ToyEvaluation({"loss/total": float(self.step(params, self.batch))}, len(self.batch.x))

    def summary(self, metrics):
        return f"loss {metrics['loss/total']:.3f}"


class ToyTask(Task[ToyBatch]):
    loss_parts = ("square",)

    def build(self):
        return lambda: layers.Linear(128, self.config.model.width, bias=True, std=0.1, dtype=jnp.dtype("float32"))

    def train_loader(self):
        return ToyLoader(self.config)

    def loss(self, model, batch, key, dropout_key, step, normalizers):
        square = jnp.square(model(batch.x) - batch.y).mean() / self.config.train.accumulate
        return Loss(square, {"square": square})

    def evaluator(self, graphdef, mesh):
        return ToyEvaluator(self, graphdef)

    def metric_names(self):
        return ["loss/total"]


ENTRY = registry.Family(ToyConfig, ToyTask, load=lambda path: f"toy at {path}")
