"""Evaluation during a run: the measures of the loss on the evaluation split, on the network's grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.gaze.examples import GazeBatch
from data_pipelines.gaze.loader import GazeEvalLoader
from rahf.config import Config
from rahf.saliency import losses
from rahf.training.mean_evaluator import MeanEvaluator

_NAMES = ("kld", "cc", "sim", "nss", "information_gain")
#: Measures of fixations, which are means over the pictures that have some.
_OF_FIXATIONS = ("nss", "likelihood")


def metric_names() -> Sequence[str]:
    """Of an evaluation during a run; `saliency/information_gain` is over the uniform density, bits a fixation."""
    return ["loss/total", *(f"saliency/{name}" for name in _NAMES)]


def evaluator(
    config: Config, batches: GazeEvalLoader, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
) -> MeanEvaluator:
    """The evaluator of a run."""
    factors = losses.weights(config.model.loss)

    def metrics(means: Mapping[str, float]) -> dict[str, float]:
        fixated = means["fixated"] or 1.0
        of = {name: means[name] / (fixated if name in _OF_FIXATIONS else 1.0) for name in losses.PARTS}
        return {
            **{f"saliency/{name}": of[name] for name in ("kld", "cc", "sim", "nss")},
            "saliency/information_gain": of["likelihood"] / math.log(2),
            "loss/total": sum(factors[name] * of[name] for name in losses.PARTS),
        }

    return MeanEvaluator(
        _columns,
        lambda: batches,
        graphdef,
        mesh,
        names=(*losses.PARTS, "fixated"),
        metrics=metrics,
        shown=[f"saliency/{name}" for name in _NAMES],
    )


def _columns(model: nnx.Module, batch: GazeBatch) -> jax.Array:
    measures = losses.measures(model(batch.image, batch.frame), batch)
    fixated = (batch.counts.sum((1, 2)) > 0).astype(jnp.float32)
    return jnp.stack([*(measures[name] for name in losses.PARTS), fixated], -1)
