"""Evaluation during a run: the measures of the loss on the evaluation split, on the network's grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipelines.gaze.loader import GazeEvalLoader
from rahf.config import Config
from rahf.core.errors import NotFinite
from rahf.nn import functional
from rahf.saliency import losses
from rahf.training import multihost, sharding

_NAMES = ("kld", "cc", "sim", "nss", "information_gain")


def metric_names() -> Sequence[str]:
    """Of an evaluation during a run."""
    return ["loss/total", *(f"saliency/{name}" for name in _NAMES)]


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """Means over the evaluation split; `saliency/information_gain` is over the uniform density, bits a fixation."""

    metrics: dict[str, float]
    count: int


class RunEvaluator:
    """Evaluates parameters; compiled once."""

    def __init__(self, config: Config, batches: GazeEvalLoader, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        self._config, self._batches, self._mesh = config, batches, mesh

        def step(params, batch):
            return losses.measures(functional.merge(graphdef, params)(batch.image, batch.frame), batch)

        self._step = jax.jit(step)

    def evaluate(self, params: Any, *, thorough: bool = False) -> RunEvaluation:
        """The means. Raises NotFinite, naming the example."""
        sums, count, fixated = dict.fromkeys(losses.PARTS, 0.0), 0, 0
        for batch in self._batches:
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            rows = np.flatnonzero(batch.example_mask)
            for name in losses.PARTS:
                bad = rows[~np.isfinite(values[name][rows])]
                if bad.size:
                    raise NotFinite(
                        f"{name} of example {int(batch.index[bad[0]])} of the evaluated split is not finite"
                    )
                sums[name] += float(values[name][rows].astype(np.float64).sum())
            count += len(rows)
            fixated += int((batch.counts[rows].sum((1, 2)) > 0).sum())
        sums, count, fixated = jax.tree.map(lambda x: np.asarray(x).item(), multihost.total((sums, count, fixated)))
        of = lambda name: sums[name] / max(fixated if name in ("nss", "likelihood") else count, 1)
        means = {name: of(name) for name in losses.PARTS}
        factors = losses.weights(self._config.model.loss)
        metrics = {f"saliency/{name}": means[name] for name in ("kld", "cc", "sim", "nss")}
        metrics["saliency/information_gain"] = means["likelihood"] / math.log(2)
        metrics["loss/total"] = sum(factors[name] * means[name] for name in losses.PARTS)
        return RunEvaluation(metrics, count)

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The main numbers in one line."""
        return "  ".join(f"{name} {metrics[f'saliency/{name}']:.3f}" for name in _NAMES)
