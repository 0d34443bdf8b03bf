"""Models in repositories of the Hugging Face hub, downloaded once; later, and without a network, from its cache."""

from __future__ import annotations

import os
import pathlib
import re

from rahf.core.errors import ArgumentError, CheckpointError

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_id(path: str | os.PathLike, revision: str | None = None) -> bool:
    """Whether a model is to be taken from the hub: text like "owner/name", and no such path here.

    "runs/demo" is a path, too, where there is a folder "runs"; a revision says that the hub is meant.

    Raises:
      ValueError: a revision of something that is not a hub id.
    """
    local = not isinstance(path, str) or not _ID.fullmatch(path) or os.path.exists(path)
    if local and revision is not None:
        raise ArgumentError(f"revision: {revision!r} has a meaning for hub ids only (owner/name), not for {path}")
    return not local and (revision is not None or not os.path.isdir(path.split("/")[0]))


def download(repository: str, revision: str | None = None) -> pathlib.Path:
    """Downloads a repository, if the cache does not have it.

    Args:
      repository: "owner/name".
      revision: branch, tag or commit; None: the main branch.

    Returns:
      The run directory, or the exported file, inside of the cache.

    Raises:
      CheckpointError: the repository cannot be downloaded and is not in the cache, or holds no model.
    """
    at = f"{repository} at revision {revision}" if revision else repository
    try:
        # Imported here: optional where only exported files are read.
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{at}: no such file or directory; to load it from the hub, pip install huggingface_hub"
        ) from error
    try:
        folder = pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision))
    except Exception as error:  # errors of the hub and of the network library that it uses
        raise CheckpointError(
            f"{at}: no such file or directory, and it cannot be downloaded from the Hugging Face hub: {error}\n"
            f"Check the name{_no_folder(repository)}. A private repository needs `hf auth login`. Without a network, "
            f"run `hf download {repository}` where there is one, and copy its cache here (HF_HOME)."
        ) from error
    return _model(folder, at)


def _no_folder(path: str) -> str:
    """That a name which may be a path begins with a folder that does not exist."""
    first = path.split("/")[0]
    return "" if os.path.isdir(first) else f": there is no folder {first!r} in {os.getcwd()}"


def _model(folder: pathlib.Path, where: str) -> pathlib.Path:
    exported = sorted(folder.glob("*.rahf"))
    if len(exported) == 1:
        return exported[0]
    if exported:
        names = ", ".join(file.name for file in exported)
        raise CheckpointError(
            f"{where}: several exported files ({names}); download the repository and load one of them"
        )
    if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        return folder
    raise CheckpointError(
        f"{where}: not a model: expected a run directory (config.json, tokenizer.model, checkpoints/) or one file of "
        f"`rahf export` (*.rahf) in the repository, found {', '.join(sorted(os.listdir(folder))[:8]) or 'nothing'}"
    )
