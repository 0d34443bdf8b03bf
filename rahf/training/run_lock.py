"""Which run may begin or go on in a run directory: one process, one configuration, one set of saved files."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from rahf import config as config_lib
from rahf.config import Config
from rahf.core import lock
from rahf.core.errors import TrainError
from rahf.core.files import UNFINISHED, read_regular, remove_unfinished, write_atomically
from rahf.training.task import SavedFile

#: What may change between the start and the resumption of a run without changing what it computes.
_FREE = ("workdir", "data.path", "data.workers", "data.eval_batch_size", "train.log_every", "train.eval_every",
         "train.eval_examples", "train.checkpoint_every", "train.keep_checkpoints", "mesh",
         "model.attention", "model.remat", "model.scan_layers")  # fmt: skip
#: What may change too, with a notice: to train longer, or past a breakdown.
_TUNABLE = ("train.steps:", "train.accumulate:", "optimizer.learning_rate:", "optimizer.clip_norm:",
            "feedback.patience:", "feedback.tolerance:")  # fmt: skip
#: What a run leaves that is ended before it has a `config.json`.
_REMAINS = ("config.json.tmp", "tensorboard", lock.LOCK_FILE)  # the first one was left by version 0
_UNFINISHED_CHECKPOINT = ".orbax-checkpoint-tmp"  # in the names of Orbax


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a run directory, which is made. One that was made for nothing goes again.

    Raises:
      FolderInUse: another process trains there.
    """
    existed = workdir.exists()
    with lock.locked(workdir, "trains"):
        yield
    if not existed:
        with contextlib.suppress(OSError):  # it is not empty
            workdir.rmdir()


def check(workdir: pathlib.Path, config: Config, files: Mapping[str, SavedFile]) -> list[str]:
    """Checks that a run may begin or go on in a directory. Writes nothing.

    Until a first checkpoint is saved there is nothing that another configuration could spoil.

    Returns:
      What has changed of what may be tuned, one line for each field.

    Raises:
      TrainError: the directory holds a run with another configuration (lists the fields) or vocabulary, or
        something else than a run.
    """
    file = workdir / "config.json"
    tuned: list[str] = []
    if begun(workdir) and file.exists():
        there = config_lib.read_saved(file)
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
            if target.exists() and read_regular(target) != saved.content:
                raise TrainError(f"{target} differs from {saved.source}; choose another --workdir")
    elif not file.exists() and workdir.exists() and not all(map(_is_remains, workdir.iterdir())):
        raise TrainError(f"{workdir} is not empty and not a run directory; choose another --workdir")
    return tuned


def write(workdir: pathlib.Path, config: Config, files: Mapping[str, SavedFile]) -> None:
    """Writes config and the task's files into the run directory, when everything was checked.

    With several processes the first one writes, then the others check that they see it.

    Raises:
      TrainError: this process does not see what process 0 has written.
    """
    file = workdir / "config.json"
    if jax.process_index() != 0:
        if not file.exists():
            raise TrainError(
                f"{_this_process()} does not see {file}, which process 0 has written; put --workdir on a file system "
                "that all processes share"
            )
        return
    contents = {name: saved.content for name, saved in files.items()}
    workdir.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": config_lib.to_json(config).encode(), **contents}.items():
        remove_unfinished(workdir / name)
        write_atomically(workdir / name, content)


def check_same(config: Config, first: str) -> None:
    """Checks that this process runs what process 0 runs.

    Args:
      config: of this process.
      first: that of process 0, as JSON.

    Raises:
      TrainError: another configuration (lists the fields).
    """
    if different := differences(config_lib.from_json(first, where="process 0"), config):
        raise TrainError(
            f"{_this_process()} has another configuration than process 0:\n  "
            + "\n  ".join(different)
            + "\nGive the same command to all processes."
        )


def _this_process() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _is_remains(path: pathlib.Path) -> bool:
    """Whether a run may have left a file or folder that was ended before its first checkpoint."""
    if path.name == "checkpoints":
        return all(p.name in ("latest", "best") for p in path.glob("*")) and not any(
            _UNFINISHED_CHECKPOINT not in p.name for p in path.glob("*/*")
        )
    return path.name in _REMAINS or path.name.endswith(UNFINISHED)


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
