"""A saliency model from a run directory or an exported file."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from rahf.core import shipped
from rahf.critic.loading import is_exported

if TYPE_CHECKING:
    from rahf.saliency.predictor import Saliency

#: Families that say where people look, and the loaders of their runs, "module:name": importing this file imports none.
RUNS = {"saliency": "rahf.saliency.from_run:load", "augsal": "rahf.saliency.augsal.as_saliency:load"}


def load(path: str | os.PathLike = "saliency-lite", *, dtype: Any = None) -> Saliency:
    """Loads a saliency model: a run directory, a checkpoint, an exported file, or the name of a shipped model. Of a run
    of Augsal it is the readout of saliency.

    Raises:
      CheckpointError, ExportError: no saliency model there, or a damaged one.
    """
    return load_local(shipped.resolve(path), dtype=dtype)


def load_local(path: str | os.PathLike, *, dtype: Any = None) -> Saliency:
    """`load`, of a path on this machine."""
    if is_exported(path):
        # Imported here, because `import rahf` and the help of commands must not load JAX.
        from rahf.saliency.export import read

        return read.read_export(path, dtype=dtype)
    # Imported here, because it imports Flax and Orbax, which are not installed where only exported files are read.
    from rahf.training import saved_model

    family = saved_model.find(path).config.model.family
    module, name = RUNS.get(family, RUNS["saliency"]).split(":")
    return getattr(importlib.import_module(module), name)(path, dtype=dtype)
