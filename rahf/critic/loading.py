"""What counts as a model: a run directory, a checkpoint of it, an exported file, or a hub id of one of them."""

from __future__ import annotations

import os
import pathlib
import zipfile
from typing import TYPE_CHECKING, Any

from rahf.core import hub, shipped

if TYPE_CHECKING:
    from rahf.critic.critic import Critic


def load(path: str | os.PathLike, *, dtype: Any = None, revision: str | None = None) -> Critic:
    """Loads a trained model.

    Args:
      path: a run directory (its best checkpoint, else the newest), one checkpoint of it
        (`RUN/checkpoints/latest/1000`), a file of `rahf export`, the name of a model that comes with rahf ("lite"), or
        the id of a Hugging Face repository that holds a run directory or one exported file ("owner/name"; downloaded
        once). A local path that exists always wins.
      dtype: "float32" or "bfloat16" to compute in; None: as it was trained. Parameters stay float32. An
        exported file computes as it was exported.
      revision: branch, tag or commit of the repository; None: its main branch.

    Raises:
      rahf.core.errors.CheckpointError: no model there, a damaged one, or one of another architecture than its
        `config.json` says (lists the shapes that differ); or a repository that cannot be downloaded.
      rahf.core.errors.ExportError: an exported file that was changed, or is too new for this reader.
      rahf.config.ConfigError: `config.json` has an unknown field.
      ValueError: another dtype, or a revision of a local path.
    """
    path = shipped.resolve(path)
    downloaded = hub.is_id(path, revision)
    local = hub.download(str(path), revision) if downloaded else path
    return load_local(local, dtype=dtype, downloaded=downloaded)


def load_local(path: str | os.PathLike, *, dtype: Any = None, downloaded: bool = False) -> Critic:
    """`load`, of a path on this machine.

    Args:
      downloaded: the path is a folder of the hub's cache, whose name is no name for a critic.
    """
    if is_exported(path):
        # Imported here, because `import rahf` and the help of commands must not load JAX.
        from rahf.critic.export import read

        return read.read_export(path, dtype=dtype)
    # Imported here, because it imports Flax and Orbax, which are not installed where only exported files are read.
    from rahf.critic import from_run

    return from_run.load(path, dtype=dtype, name_from_config=downloaded)


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a path is to be read as a file of `rahf export`: any file with that suffix, or any zip file."""
    file = pathlib.Path(path)
    return file.is_file() and (file.suffix == ".rahf" or zipfile.is_zipfile(file))
