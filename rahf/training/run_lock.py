"""Which run may begin or go on in a run directory: one configuration, one set of saved files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from rahf import config as config_lib
from rahf.config import Config
from rahf.core.errors import TrainError
from rahf.core.files import UNFINISHED, remove_unfinished, write_atomically
from rahf.training.task import SavedFile

#: What may change between the start and the resumption of a run without changing what it computes.
_FREE = ("workdir", "data.path", "data.workers", "data.eval_batch_size", "train.log_every", "train.eval_every",
         "train.eval_examples", "train.checkpoint_every", "train.keep_checkpoints", "mesh",
         "model.attention", "model.remat", "model.scan_layers")  # fmt: skip
#: What may change too, with a notice: to train longer, or past a breakdown.
_TUNABLE = ("train.steps:", "train.accumulate:", "optimizer.learning_rate:", "optimizer.clip_norm:")
#: What a run leaves that is ended before it has a `config.json`.
_REMAINS = ("config.json.tmp", "tensorboard")  # the first one was left by version 0


def acquire(workdir: pathlib.Path, config: Config, files: Mapping[str, SavedFile]) -> list[str]:
    """Writes config and the task's files into the run directory, if they may go on with what is already there.

    Until a first checkpoint is saved there is nothing that another configuration could spoil. With several
    processes the first one writes, then the others check that theirs is the same run.

    Returns:
      What has changed of what may be tuned, one line for each field.

    Raises:
      TrainError: the directory holds a run with another configuration (lists the fields) or vocabulary, or
        something else than a run.
    """
    file = workdir / "config.json"
    if jax.process_index() != 0:
        return _follow(file, config)
    contents = {name: saved.content for name, saved in files.items()}
    tuned: list[str] = []
    if begun(workdir) and file.exists():
        there = config_lib.from_json(file.read_text(), where=str(file))
        different = differences(there, config)
        tuned = [line for line in different if line.startswith(_TUNABLE)]
        different = [line for line in different if line not in tuned]
        if different:
            raise TrainError(
                f"{workdir} holds a run with another configuration:\n  " + "\n  ".join(different) + "\n"
                "Choose another --workdir, or give the same configuration to resume."
            )
        for name, saved in files.items():
            target = workdir / name
            if target.exists() and target.read_bytes() != saved.content:
                raise TrainError(f"{target} differs from {saved.source}; choose another --workdir")
    elif not file.exists() and workdir.exists() and any(not _is_remains(p.name) for p in workdir.iterdir()):
        raise TrainError(f"{workdir} is not empty and not a run directory; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": config_lib.to_json(config).encode(), **contents}.items():
        remove_unfinished(workdir / name)
        write_atomically(workdir / name, content)
    return tuned


def _follow(file: pathlib.Path, config: Config) -> list[str]:
    """Process 0 has written the directory; the others check that they see it and run the same."""
    process = f"process {jax.process_index()} of {jax.process_count()}"
    if not file.exists():
        raise TrainError(
            f"{process} does not see {file}, which process 0 has written; put --workdir on a file system that all "
            "processes share"
        )
    there = config_lib.from_json(file.read_text(), where=str(file))
    if different := differences(there, config):
        raise TrainError(
            f"{process} has another configuration than process 0, which has written {file}:\n  "
            + "\n  ".join(different)
            + "\nGive the same command to all processes."
        )
    return []


def _is_remains(name: str) -> bool:
    return name in _REMAINS or name.endswith(UNFINISHED)


def begun(workdir: pathlib.Path) -> bool:
    """Whether a run has saved a checkpoint, and so goes on instead of starting."""
    return any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*/*"))


def differences(there: Config, here: Config) -> list[str]:
    """Fields in which two configs differ, apart from those that may change on resumption."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(tree, dict):
            return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}{name}.").items()}
        return {prefix[:-1]: tree}

    old, new = flat(dataclasses.asdict(there)), flat(dataclasses.asdict(here))
    free = lambda name: any(name == f or name.startswith(f + ".") for f in _FREE)  # noqa: E731
    return [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} given"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not free(name)
    ]
