"""Models as a run has stored them: finding a checkpoint, and reading its parameters without the run's state."""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rahf.core import licenses
from rahf.core.errors import CheckpointError, Damaged
from rahf.nn import functional
from rahf.training import checksum, trainable

#: How Python names the writes that Orbax gives up, unstarted, when another one of the same save has failed.
ABANDONED = r"coroutine '\S*async_serialize\S*' was never awaited"


class Silence:
    """Keeps Orbax from complaining beside us, from `begin` to `end`, in all threads.

    It warns about every checkpoint that it reads, and logs errors that it raises as well, and that we report.
    Whatever it abandons in a failed save is named by Python at any later time, when it collects its garbage.
    """

    def __init__(self) -> None:
        self._hook: Any = None
        self._loggers = (logging.getLogger("absl"), logging.getLogger("asyncio"))

    def begin(self) -> "Silence":
        """Starts to keep quiet."""
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        warnings.filterwarnings("ignore", ABANDONED, RuntimeWarning)
        for logger in self._loggers:
            logger.addFilter(self._wanted)
        return self

    def end(self) -> None:
        """Lets everybody speak again. Not to be called after a failed save: each of hundreds of abandoned writes
        complains at any later time."""
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._hook
        for logger in self._loggers:
            logger.removeFilter(self._wanted)

    def _unraisable(self, unraisable: Any) -> None:
        said = str(unraisable.exc_value)  # a warning comes here where warnings are errors
        if said != "Event loop is closed" and not re.match(ABANDONED, said):
            self._hook(unraisable)

    def _wanted(self, record: logging.LogRecord) -> bool:  # of each instance: they may be nested
        if "orbax" in record.pathname or "tensorstore" in record.pathname:
            return False
        said = record.getMessage()
        return "exception was never retrieved" not in said and "was destroyed but it is pending" not in said


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A `Silence` that lasts as long as what is inside succeeds."""
    silence = Silence().begin()
    yield
    silence.end()  # not reached after a failure


@contextlib.contextmanager
def reading(folder: pathlib.Path, remedy: str = "") -> Iterator[None]:
    """Any failure inside means that the checkpoint in `folder` is damaged: CheckpointError with the remedy."""
    try:
        with quiet():
            yield
    except Exception as error:  # Orbax and TensorStore raise many kinds; all mean: damaged
        raise Damaged(f"{folder}: cannot be read ({error}); the checkpoint is damaged{remedy}") from error


def stored_shapes(folder: pathlib.Path) -> dict[str, Any]:
    """Shapes and dtypes of what a checkpoint's `state` holds, without reading the arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder)
    metadata = getattr(metadata, "item_metadata", metadata)
    tree = getattr(metadata, "tree", metadata)
    if not tree:
        raise ValueError("the list of its arrays is missing or damaged")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), dict(tree))


def stored_checksums(folder: pathlib.Path) -> dict[str, int]:
    """Checksums that were saved with the checkpoint of a step; empty for one of before there were any."""
    file = folder / "checksums" / "metadata"
    return json.loads(file.read_text()) if file.parent.is_dir() else {}


def verify(restored: dict[str, Any], recorded: dict[str, int]) -> None:
    """Raises ValueError if arrays are not what was saved; without checksums, if they are not finite."""
    if recorded:
        bad, what = checksum.differing(checksum.of(restored), recorded), "another checksum than when it was saved"
    else:
        flat = functional.flatten(restored)
        local = {p: [np.asarray(s.data) for s in leaf.addressable_shards] for p, leaf in flat.items()}
        bad = [path for path, parts in local.items() if not all(np.isfinite(x).all() for x in parts)]
        what = "values not finite"
    if bad:
        raise ValueError(f"{bad[0]}{f' and {len(bad) - 1} more arrays' if len(bad) > 1 else ''}: {what}")


def check_fits(found: functional.Params, expected: functional.Params, where: str) -> None:
    """Raises CheckpointError listing every parameter that is missing, extra or of another shape."""
    lines = functional.parameter_differences(found, expected)
    if lines:
        raise CheckpointError(
            f"{where}: the checkpoint belongs to another architecture:\n  " + "\n  ".join(lines) + "\n"
            "Use the configuration it was trained with, or another --workdir."
        )


def find(path: str | pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Finds a model from what a user points at.

    Args:
      path: a run directory (its best checkpoint, else the newest) or one checkpoint of it
        (`RUN/checkpoints/latest/1000`).

    Returns:
      The run directory (with `config.json` and `tokenizer.model`) and the checkpoint's `state` folder.

    Raises:
      CheckpointError: there is no model; says what is there instead.
    """
    given = pathlib.Path(path).resolve()
    if not given.exists():
        raise CheckpointError(f"{path}: no such file or directory; expected a run directory of `rahf train`")
    run = next((p for p in (given, *given.parents[:3]) if (p / "config.json").is_file()), None)
    if run is None:
        there = ", ".join(sorted(p.name for p in given.iterdir())[:8]) if given.is_dir() else "a file"
        raise CheckpointError(
            f"{path}: not a model: expected a run directory with config.json and checkpoints/, "
            f"found {there or 'nothing'}"
        )
    if (given / "state").is_dir():
        return run, given / "state"
    folders = [given] if given.name in ("best", "latest") else [run / "checkpoints" / k for k in ("best", "latest")]
    for folder in folders:
        steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
        if steps:
            return run, folder / str(steps[0]) / "state"
    raise CheckpointError(f"{path}: no finished checkpoint yet; has the run saved one?")


def load_params(state_folder: pathlib.Path, expected: functional.Params, skip: Sequence[str] = ()) -> functional.Params:
    """Reads only the parameters to evaluate (the average if there is one) of a checkpoint; says their licence.

    Args:
      state_folder: as found by `find`.
      expected: shapes (and shardings, if set) of the model.
      skip: parts of the checkpoint (``heatmap_*``) that are not expected and not read.

    Raises:
      CheckpointError: another architecture, or files that cannot be read.
    """
    remedy = ": name another one"
    with reading(state_folder, remedy):
        found = stored_shapes(state_folder)
    partial = trainable.is_part(found)
    which = "ema" if found.get("ema") and not partial else "params"
    left = licenses.matching(found[which], skip)
    check_fits({n: part for n, part in found[which].items() if n not in left}, expected, str(state_folder))
    for folder in state_folder.parents[:4]:
        if (folder / "config.json").is_file():
            licenses.tell(folder)
            break
    # A partial restore: the optimizer's moments, two thirds of the file, stay on disk.
    item = {which: expected}
    if partial:
        item |= _trained(found, expected, left)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    with reading(state_folder, remedy), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        restored = checkpointer.restore(state_folder, args=args)
        verify(restored, stored_checksums(state_folder.parent))
    if not partial:
        return restored[which]
    return trainable.ordinary(restored["params"], restored.get("ema"), restored.get("lora"))


def _trained(found: dict[str, Any], expected: functional.Params, left: Sequence[str]) -> dict[str, Any]:
    """Shapes of averages and adapters of a run that trains a part of its network, without the parts left out."""
    place = getattr(jax.tree.leaves(expected)[0], "sharding", None)
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    trees = {name: found[name] for name in ("ema", "lora") if found.get(name)}
    kept = {p: leaf for p, leaf in functional.flatten(trees).items() if not {*p.split("/")[:4]} & {*left}}
    placed = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for p, leaf in kept.items()}
    return functional.unflatten(placed)
