"""Checkpoints of a run: parameters, optimizer, step and data position together, written by Orbax.

`checkpoints/latest` holds the newest few for resuming, `checkpoints/best` the best one by the declared
metric. Orbax writes into a temporary folder and renames it, so a run that dies or a disk that fills while
saving leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from rahf.models import functional
from rahf.train.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or does not fit the model; the message says what to do."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs a warning about every checkpoint that it reads, and errors that it raises as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _one_complaint() -> Iterator[None]:
    """After a failure, which is raised, each of hundreds of abandoned writes complains to stderr, at any later time."""
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")

    def without_abandoned(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = without_abandoned
    logger.addFilter(_not_abandoned)
    yield
    sys.unraisablehook = hook  # not reached after a failure
    logger.removeFilter(_not_abandoned)


def _not_abandoned(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return "exception was never retrieved" not in said and "was destroyed but it is pending" not in said


def _manager(folder: pathlib.Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder, options=options, item_names=("state", "data", "metrics"))


def _as_tree(state: TrainState) -> dict[str, Any]:
    # The optimizer's named tuples become lists on disk; restoring goes through the same shape.
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    tree = {"step": state.step, "params": state.params, "opt_state": leaves}
    return tree if state.ema is None else {**tree, "ema": state.ema}


def _from_tree(tree: dict[str, Any], like: TrainState) -> TrainState:
    structure = jax.tree.structure(like.opt_state)
    leaves = [tree["opt_state"][str(i)] for i in range(structure.num_leaves)]
    return TrainState(tree["step"], tree["params"], structure.unflatten(leaves), tree.get("ema"))


class Checkpointer:
    """Saves and restores the state of a run in `workdir/checkpoints`."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        """Opens or creates the checkpoint folders, removing unfinished ones of a run that died."""
        self.folder = pathlib.Path(workdir).resolve() / "checkpoints"
        with _quiet():
            self._latest = _manager(self.folder / "latest", keep)
            self._best = _manager(self.folder / "best", 1)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._latest.latest_step()

    def best_metrics(self) -> dict[str, float] | None:
        """Metrics stored with the best checkpoint, None if there is none."""
        step = self._best.latest_step()
        if step is None:
            return None
        with _quiet():
            return self._best.restore(step, args=ocp.args.Composite(metrics=ocp.args.JsonRestore()))["metrics"]

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves for resuming.

        Raises:
          CheckpointError: the files cannot be written (a full disk, no permission).
        """
        if self._latest.latest_step() == int(state.step):
            return
        self._save(self._latest, int(state.step), state=ocp.args.StandardSave(_as_tree(state)), data=ocp.args.JsonSave(data_state))

    def save_best(self, step: int, params: functional.Params, metrics: dict[str, float]) -> None:
        """Saves the parameters of the best evaluation so far, replacing the previous best."""
        for later in [s for s in self._best.all_steps() if s >= step]:
            self._best.delete(later)  # of before the run was resumed; Orbax would keep it as the newest
        finite = {k: v for k, v in metrics.items() if v == v and abs(v) != float("inf")}
        self._save(self._best, step, state=ocp.args.StandardSave({"params": params}), metrics=ocp.args.JsonSave(finite))

    def _save(self, manager: ocp.CheckpointManager, step: int, **items: Any) -> None:
        try:
            with _quiet(), _one_complaint():
                manager.save(step, args=ocp.args.Composite(**items), force=True)
                manager.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore raise many kinds; all mean: not saved
            manager.reload()
            last = manager.latest_step()
            kept = "there is none yet" if last is None else f"step {last} is complete and usable"
            raise CheckpointError(
                f"cannot save the checkpoint of step {step} under {manager.directory}: {error}\n"
                f"Previous checkpoint: {kept}. "
                "Free disk space or mend the permissions, then run the same command again."
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, laid out like the shapes and shardings of `like`, and the data position.

        Raises:
          CheckpointError: no checkpoint, or one of another architecture (says which parameters differ).
        """
        step = self._latest.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint under {self.folder}")
        folder = self.folder / "latest" / str(step)
        remedy = "remove that folder to go on from the checkpoint before it"
        with _reading(folder, remedy):
            found = _stored_shapes(folder / "state")
        check_fits(found["params"], like.params, f"{self.folder}, step {step}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(like)), data=ocp.args.JsonRestore())
        with _reading(folder, remedy):
            restored = self._latest.restore(step, args=args)
        return _from_tree(restored["state"], like), restored["data"]

    def discard(self, step: int) -> None:
        """Removes the checkpoint of a step, if there is one."""
        if step in self._latest.all_steps():
            self._latest.delete(step)

    def close(self) -> None:
        """Waits for everything to be written."""
        self._latest.close()
        self._best.close()


@contextlib.contextmanager
def _reading(folder: pathlib.Path, remedy: str) -> Iterator[None]:
    try:
        with _quiet(), _one_complaint():
            yield
    except Exception as error:  # Orbax and TensorStore raise many kinds; all mean: damaged
        raise CheckpointError(f"{folder}: cannot be read ({error}); the checkpoint is damaged: {remedy}") from error


def _stored_shapes(folder: pathlib.Path) -> dict[str, Any]:
    """Shapes and dtypes of what a checkpoint's `state` holds, without reading the arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder)
    metadata = getattr(metadata, "item_metadata", metadata)
    tree = getattr(metadata, "tree", metadata)
    if not tree:
        raise ValueError("the list of its arrays is missing or damaged")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), dict(tree))


def check_fits(found: functional.Params, expected: functional.Params, where: str) -> None:
    """Raises CheckpointError listing every parameter that is missing, extra or of another shape."""
    lines = functional.differences(found, expected)
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
            f"{path}: not a model: expected a run directory with config.json and checkpoints/, found {there or 'nothing'}"
        )
    if (given / "state").is_dir():
        return run, given / "state"
    folders = [given] if given.name in ("best", "latest") else [run / "checkpoints" / k for k in ("best", "latest")]
    for folder in folders:
        steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
        if steps:
            return run, folder / str(steps[0]) / "state"
    raise CheckpointError(f"{path}: no finished checkpoint yet; has the run saved one?")


def load_params(state_folder: pathlib.Path, expected: functional.Params) -> functional.Params:
    """Reads only the parameters to evaluate (the average if there is one) of a checkpoint.

    Args:
      state_folder: as found by `find`.
      expected: shapes (and shardings, if set) of the model.

    Raises:
      CheckpointError: another architecture, or files that cannot be read.
    """
    remedy = "name another one"
    with _reading(state_folder, remedy):
        found = _stored_shapes(state_folder)
    which = "ema" if found.get("ema") else "params"
    check_fits(found[which], expected, str(state_folder))
    # A partial restore: the optimizer's moments, two thirds of the file, stay on disk.
    item = {which: expected}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    with _reading(state_folder, remedy), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        return checkpointer.restore(state_folder, args=args)[which]
