"""Means of what a network computes of each example of a split: the evaluator of families without other metrics."""

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
    ):
        """Args:
        values: (network, batch) → float32 [B,n], or [B] of a single name.
        batches: gives this process's batches of the split, with `example_mask` and `index`; called for each evaluation.
        graphdef, mesh: of the run.
        names: of the n values.
        """
        self._batches, self._mesh, self._names = batches, mesh, names
        self._step = jax.jit(lambda params, batch: values(functional.merge(graphdef, params), batch))

    def evaluate(self, params: Any, *, thorough: bool = False) -> MeanEvaluation:
        """The means over all examples. Raises NotFinite, naming the example."""
        sums, count = np.zeros(len(self._names)), 0
        for batch in self._batches():
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            values = values.reshape(len(values), -1)
            rows = np.flatnonzero(batch.example_mask)
            bad = rows[~np.isfinite(values[rows]).all(-1)]
            if bad.size:
                raise NotFinite(f"the loss of example {int(batch.index[bad[0]])} of the evaluated split is not finite")
            sums, count = sums + values[rows].astype(np.float64).sum(0), count + len(rows)
        sums, count = jax.tree.map(np.asarray, multihost.total((sums, count)))
        means = (sums / max(int(count), 1)).tolist()
        return MeanEvaluation(dict(zip(self._names, means, strict=True)), int(count))

    def summary(self, metrics: Mapping[str, float]) -> str:
        """All means in one line."""
        label = lambda name: "loss" if name == "loss/total" else name.rpartition("/")[2]  # noqa: E731
        return ", ".join(f"{label(name)} {metrics[name]:.4f}" for name in self._names)
