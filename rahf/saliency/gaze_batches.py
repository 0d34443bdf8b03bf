"""What tasks that learn from pictures with gaze read: training sets that have densities, and the evaluation split."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from data_pipelines import store
from data_pipelines.gaze import loader as loader_lib
from rahf.config import Config
from rahf.core.errors import DatasetError
from rahf.training import sharding


def check_densities(paths: Sequence[str]) -> None:
    """Raises DatasetError for a data set that is absent or has no densities."""
    for path in paths:
        if not store.has_field(path, "saliency"):
            store.splits(path)  # an absent data set has its own message
            raise DatasetError(f"{path}: has no densities; make the data with `rahf prepare saliency`")


def eval_loader(config: Config, mesh: jax.sharding.Mesh, split: str | None = None) -> loader_lib.GazeEvalLoader:
    """The evaluation split of a run's first data set, at most `train.eval_examples` of it.

    Args:
      config: whose model has the canvas of the saliency family.
      mesh: of the run; batches are a multiple of its devices.
      split: another split.
    """
    data = config.data
    source = store.open_split(data.paths[0], split or data.eval_split)
    size, processes = sharding.rounded_up(data.eval_batch_size, mesh), (jax.process_index(), jax.process_count())
    return loader_lib.GazeEvalLoader(config, source, size, *processes, config.train.eval_examples)
