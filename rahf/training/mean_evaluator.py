"""Means of what a network computes of each example of a split: the evaluator of families that need no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from rahf.core.errors import NotFinite
from rahf.nn import functional
from rahf.training import multihost, sharding

#: The name of a loss alone.
LOSS: Sequence[str] = ("loss/total",)


@dataclasses.dataclass(frozen=True)
class MeanEvaluation:
    """Means on a split, by name."""

    metrics: dict[str, float]
    count: int  # examples, over all processes


class MeanEvaluator:
    """Compiled once. Values that draw nothing are the same in every evaluation of the same parameters."""

    def __init__(
        self,
        values: Callable[[nnx.Module, Any], jax.Array],
        batches: Callable[[], Iterable[Any]],
        graphdef: nnx.GraphDef,
        mesh: jax.sharding.Mesh,
        names: Sequence[str] = LOSS,
        metrics: Callable[[dict[str, float]], dict[str, float]] = dict,
        shown: Sequence[str] | None = None,
    ):
        """Args:
        values: (network, batch) → float32 [B,n], or [B] of a single name.
        batches: gives this process's batches of the split, with `example_mask` and `index`; called for each evaluation.
        graphdef, mesh: of the run.
        names: of the n values.
        metrics: makes the metrics of the means by name; by default those are the metrics.
        shown: names of the metrics in `summary`; None: all names.
        """
        self._batches, self._mesh, self._names, self._metrics = batches, mesh, tuple(names), metrics
        self._shown = self._names if shown is None else tuple(shown)
        self._step = jax.jit(lambda params, batch: values(functional.merge(graphdef, params), batch))

    def evaluate(self, params: Any, *, thorough: bool = False) -> MeanEvaluation:
        """The means over all examples. Raises NotFinite, naming the example."""
        sums, count = np.zeros(len(self._names)), 0
        for batch in self._batches():
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            values = values.reshape(len(values), -1)
            rows = np.flatnonzero(batch.example_mask)
            bad, columns = np.nonzero(~np.isfinite(values[rows]))
            if bad.size:
                name, index = _label(self._names[columns[0]]), int(batch.index[rows[bad[0]]])
                raise NotFinite(f"the {name} of example {index} of the evaluated split is not finite")
            sums, count = sums + values[rows].astype(np.float64).sum(0), count + len(rows)
        sums, count = jax.tree.map(np.asarray, multihost.total((sums, count)))
        means = (sums / max(int(count), 1)).tolist()
        return MeanEvaluation(self._metrics(dict(zip(self._names, means, strict=True))), int(count))

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The main numbers in one line."""
        return ", ".join(f"{_label(name)} {metrics[name]:.4f}" for name in self._shown)


def _label(name: str) -> str:
    return "loss" if name == "loss/total" else name.rpartition("/")[2]
