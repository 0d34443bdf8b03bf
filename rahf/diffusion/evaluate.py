"""The denoiser's loss on a split, for `rahf.training.loop`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from rahf.config import Config
from rahf.core.batch import Batch
from rahf.core.errors import NotFinite
from rahf.critic.evaluation.evaluator import Evaluation, _local, _total
from rahf.diffusion import loss
from rahf.nn import functional
from rahf.text import Tokenizer
from rahf.training import sharding


class Evaluator:
    """Like `rahf.critic.evaluation.evaluator.Evaluator`, of which a diffusion model has only ``loss/total``."""

    def __init__(self, graphdef: Any, config: Config, tokenizer: Tokenizer, mesh: jax.sharding.Mesh):
        self.mesh = mesh
        self._step = jax.jit(
            lambda params, batch: loss.repeatable(config.model, functional.merge(graphdef, params), batch)
        )

    def run(
        self,
        params: functional.Params,
        batches: Iterable[Batch],
        labels: Any = None,
        *,
        generate: bool = False,
        intervals: bool = False,
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda x: x,
    ) -> Evaluation:
        """The mean loss over all examples; each has its own time and noise, the same in every evaluation.

        Args:
          params: as trained.
          batches: of one split, in order, equally large.
          labels, generate, intervals: not used.

        Raises:
          NotFinite: the loss of an example is not finite; names it.
        """
        started, total, count = time.perf_counter(), 0.0, 0
        for batch in progress(batches):
            values = np.asarray(_local(self._step(params, sharding.to_devices(batch, self.mesh)), self.mesh))
            rows = np.flatnonzero(batch.example_mask)
            if not np.isfinite(values[rows]).all():
                index = int(batch.index[rows[~np.isfinite(values[rows])][0]])
                raise NotFinite(f"the loss of example {index} of the evaluated split is not finite")
            total, count = total + float(values[rows].astype(np.float64).sum()), count + len(rows)
        everyone = _total(count)
        mean = _sum(total) / max(everyone, 1)
        return Evaluation({"loss/total": mean}, {}, {}, [], everyone, time.perf_counter() - started)


def _sum(value: float) -> float:
    """Over all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(np.sum(multihost_utils.process_allgather(np.array(value))))
