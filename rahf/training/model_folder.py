"""Model directories: what a run leaves for others to use, written for weights that no run of `rahf` trained."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from rahf.config import Config, to_json
from rahf.core.errors import PretrainedError
from rahf.core.files import replacing_folder
from rahf.nn import functional
from rahf.text import Tokenizer
from rahf.training import label_counts
from rahf.training.checkpoint import Checkpointer


def check_free(folder: str | os.PathLike) -> pathlib.Path:
    """The path of a directory that may be written. Raises PretrainedError if it exists and is not empty."""
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PretrainedError(f"{folder}: exists already; choose another directory or remove it")
    return folder


def write_model(
    folder: pathlib.Path,
    config: Config,
    params: functional.Params,
    tokenizer: Tokenizer,
    record: dict[str, Any],
    labels: label_counts.Counts | None = None,
) -> None:
    """Writes a model directory: `config.json`, `tokenizer.model`, `model.json`, `checkpoints/best/0`.

    The directory appears complete or not at all.

    Args:
      folder: its parents are created; must not exist, or be empty.
      config: of the network.
      params: all parameters of the network, on the host.
      tokenizer: whose `model` is stored.
      record: content of `model.json`: origin and license of the weights.
      labels: how many labels each output has learned from, where it is known.
    """
    with replacing_folder(folder) as unfinished:
        (unfinished / "config.json").write_text(to_json(config))
        (unfinished / "tokenizer.model").write_bytes(tokenizer.model)
        (unfinished / "model.json").write_text(json.dumps(record, indent=2) + "\n")
        if labels is not None:
            label_counts.write(unfinished, labels)
        checkpointer = Checkpointer(unfinished, keep=1)
        try:
            checkpointer.save_best(0, params, {})
        finally:
            checkpointer.close()
