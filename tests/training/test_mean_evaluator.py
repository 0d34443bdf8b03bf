"""Means over a split: filling does not count, every value has its name, and what is not finite is named."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rahf.config import MeshConfig
from rahf.core.errors import NotFinite
from rahf.nn import functional, layers
from rahf.training import sharding
from rahf.training.mean_evaluator import MeanEvaluator


class Examples(NamedTuple):
    x: np.ndarray
    example_mask: np.ndarray
    index: np.ndarray


class Scale(nnx.Module):
    def __init__(self):
        self.factor = layers.parameter(1, fill=2.0)


def batches():
    yield Examples(np.float32([1, 2]), np.array([True, True]), np.int64([0, 1]))
    yield Examples(np.float32([6, np.nan]), np.array([True, False]), np.int64([2, -1]))


def evaluator(values, **names):
    graphdef, _ = functional.abstract(Scale)
    return MeanEvaluator(values, batches, graphdef, sharding.make_mesh(MeshConfig(), jax.devices()[:1]), **names)


def test_means():
    params = functional.init(Scale, 0)
    loss = evaluator(lambda model, batch: model.factor[...] * batch.x)
    for _ in range(2):  # the batches are read anew
        result = loss.evaluate(params)
        assert result.metrics == {"loss/total": 6.0} and result.count == 3
    assert loss.summary(result.metrics) == "loss 6.0000"
    both = evaluator(lambda model, batch: jnp.stack([batch.x, batch.x**2], -1), names=("loss/total", "loss/square"))
    assert both.evaluate(params).metrics == pytest.approx({"loss/total": 3.0, "loss/square": 41 / 3})
    with pytest.raises(NotFinite, match="loss of example 2 of the evaluated split"):
        evaluator(lambda model, batch: jnp.where(batch.x > 5, jnp.inf, batch.x)).evaluate(params)
    # Metrics that are computed of the means; the value that is not finite is named.
    root = evaluator(
        lambda model, batch: jnp.stack([batch.x, batch.x**2], -1),
        names=("mean", "square"),
        metrics=lambda means: {"deviation": (means["square"] - means["mean"] ** 2) ** 0.5},
        shown=("deviation",),
    )
    assert root.summary(root.evaluate(params).metrics) == f"deviation {(41 / 3 - 9) ** 0.5:.4f}"
    with pytest.raises(NotFinite, match="the square of example 1 of the evaluated split"):
        values = lambda model, batch: jnp.stack([batch.x, jnp.where(batch.x == 2, jnp.nan, 0.0)], -1)
        evaluator(values, names=("mean", "square")).evaluate(params)
