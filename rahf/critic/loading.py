"""What is a model: a run directory, a checkpoint of it, or an exported file."""

from __future__ import annotations

import os
import pathlib
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rahf.critic.critic import Critic


def load(path: str | os.PathLike, *, dtype: Any = None) -> Critic:
    """Loads a trained model.

    Args:
      path: a run directory (its best checkpoint, else the newest), one checkpoint of it
        (`RUN/checkpoints/latest/1000`), or a file of `rahf export`.
      dtype: "float32" or "bfloat16" to compute in; None: as it was trained. Parameters stay float32. An
        exported file computes as it was exported.

    Raises:
      rahf.training.checkpoint.CheckpointError: no model there, a damaged one, or one of another architecture
        than its `config.json` says (lists the shapes that differ).
      rahf.critic.export.read.ExportError: an exported file that was changed, or is too new for this reader.
      rahf.config.ConfigError: `config.json` has an unknown field.
      ValueError: another dtype.
    """
    if is_exported(path):
        from rahf.critic.export import read as exported

        return exported.load(path, dtype=dtype)
    from rahf.critic import from_run  # Flax and Orbax; an exported file does without

    return from_run.load(path, dtype=dtype)


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a path is to be read as a file of `rahf export`: any file named so, or any zip."""
    file = pathlib.Path(path)
    return file.is_file() and (file.suffix == ".rahf" or zipfile.is_zipfile(file))
