"""Checkpoints of a run: parameters, optimizer, step and data position together, written by Orbax.

`checkpoints/latest` holds the newest few for resuming, `checkpoints/best` the best one by the declared
metric. Orbax writes in the background, into a temporary folder that it renames at the end, and only then removes
what is no longer kept. A run that dies or a disk that fills while saving leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rahf.core import errors, json_text
from rahf.core.errors import CheckpointError
from rahf.core.files import write_atomically
from rahf.nn import functional
from rahf.training import checksum, multihost, orbax_silence, run_folder
from rahf.training.run_folder import check_fits, find, load_params
from rahf.training.state import TrainState

_ITEMS = ("state", "data", "metrics", "checksums")


def _manager(folder: pathlib.Path, keep: int | None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(folder, options=options, item_names=_ITEMS)


def _as_tree(state: TrainState) -> dict[str, Any]:
    # The optimizer's named tuples become lists on disk; restoring goes through the same shape.
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    tree = {"step": state.step, "params": state.params, "opt_state": leaves}
    return tree | {name: part for name in ("ema", "lora") if (part := getattr(state, name)) is not None}


def _from_tree(tree: dict[str, Any], like: TrainState) -> TrainState:
    structure = jax.tree.structure(like.opt_state)
    leaves = [tree["opt_state"][str(i)] for i in range(structure.num_leaves)]
    return TrainState(tree["step"], tree["params"], structure.unflatten(leaves), tree.get("ema"), tree.get("lora"))


def _forget_folder(checkpoints: pathlib.Path, step: pathlib.Path) -> None:
    """Removes the path of this machine from the files by which Orbax marks a checkpoint as complete.

    Newer versions of Orbax write it there. Only whether such a file exists is read.
    """
    for file in (*step.glob("commit_success.txt"), *step.glob("*/commit_success.txt")):
        with contextlib.suppress(OSError):  # the checkpoint is complete without it
            write_atomically(file, file.read_text().replace(f"{checkpoints}{os.sep}", ""))


class Checkpointer:
    """Saves and restores the state of a run in `workdir/checkpoints`.

    Saving returns as soon as the arrays are copied to the host; files are written meanwhile. All processes of a run
    call every method, in the same order.

    Attributes:
      folder: `workdir/checkpoints`.
      notices: what a person should know of the last `restore`, one line each.
    """

    def __init__(self, workdir: pathlib.Path, keep: int):
        """Opens or creates the checkpoint folders, removing unfinished ones of a run that died.

        Raises:
          ConfigError: `keep`, the number of newest checkpoints to hold, is less than 1.
        """
        if keep < 1:
            raise errors.ConfigError(f"train.keep_checkpoints: expected at least 1, found {keep}")
        self.folder = pathlib.Path(workdir).resolve() / "checkpoints"
        self.notices: list[str] = []
        self._failed = self._abandoned = False
        self._writing: dict[ocp.CheckpointManager, int] = {}  # step
        self._silence = orbax_silence.Silence().begin()
        self._latest = _manager(self.folder / "latest", keep)
        # The best checkpoint is not always the newest, so this class decides which one to keep.
        self._best = _manager(self.folder / "best", None)
        self._best_step = self._best.latest_step()
        self._drop_other_best()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none. Waits for one that is being written."""
        self._finish(self._latest)
        return self._latest.latest_step()

    def best_metrics(self) -> dict[str, float] | None:
        """Metrics stored with the best checkpoint, None if there is none. Raises CheckpointError: damaged."""
        self._finish(self._best)
        if self._best_step is None:
            return None
        args = ocp.args.Composite(metrics=ocp.args.JsonRestore())
        folder = self.folder / "best" / str(self._best_step)
        with run_folder.reading(folder, ": remove that folder, and the next evaluation is the best again"):
            stored = self._best.restore(self._best_step, args=args)["metrics"]
            metrics = {name: json_text.finite(value) for name, value in stored.items()}
        return {name: value for name, value in metrics.items() if value is not None}

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Begins to save for resuming; the state may be donated as soon as this returns.

        Raises:
          CheckpointError: the files of this or of the checkpoint before cannot be written (a full disk, no
            permission). An error of this one may also come from the next call, or from `wait`.
        """
        step = int(state.step)
        if self._latest.latest_step() == step:
            return
        # A run that resumes from this state must find the best checkpoint of before it, or it would end differently.
        self._finish(self._best)
        tree = _as_tree(state)
        self._save(self._latest, step, tree, data=ocp.args.JsonSave(data_state))

    def save_best(self, step: int, params: functional.Params, metrics: dict[str, float]) -> None:
        """Begins to save the parameters of the best evaluation so far; when they are safe, the previous best goes."""
        self.wait()  # for the other folder, too: both would use the same names for Orbax's barriers
        if step in self._best.all_steps():
            # A resumed run has evaluated this step again, with another result. Only then is there no best for a moment.
            self._best.delete(step)
        finite = {k: v for k, v in metrics.items() if v == v and abs(v) != float("inf")}
        self._save(self._best, step, {"params": params}, metrics=ocp.args.JsonSave(finite))
        self._best_step = step  # only now: `_finish` deletes every other one as soon as nothing is being written

    def _save(self, manager: ocp.CheckpointManager, step: int, tree: dict[str, Any], **items: Any) -> None:
        self._finish(manager)
        try:
            items |= {"state": ocp.args.StandardSave(tree), "checksums": ocp.args.JsonSave(checksum.of_arrays(tree))}
            self._writing[manager] = step
            manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # Orbax and TensorStore raise many kinds; all mean: not saved
            raise self._not_saved(manager, error) from error

    def wait(self) -> None:
        """Until everything is written. Raises CheckpointError if something cannot be."""
        self._finish(self._latest)
        self._finish(self._best)

    def _finish(self, manager: ocp.CheckpointManager) -> None:
        try:
            manager.wait_until_finished()
        except Exception as error:
            raise self._not_saved(manager, error) from error
        step = self._writing.pop(manager, None)
        if step is not None and jax.process_index() == 0:
            _forget_folder(self.folder, pathlib.Path(manager.directory) / str(step))
        if manager is self._best:
            self._drop_other_best()

    def _drop_other_best(self) -> None:
        for step in [s for s in self._best.all_steps() if s != self._best_step]:
            self._best.delete(step)

    def _not_saved(self, manager: ocp.CheckpointManager, error: Exception) -> CheckpointError:
        self._failed = True
        manager.reload()
        last = manager.latest_step()
        if manager is self._best:
            self._best_step = last
        kept = "there is none yet" if last is None else f"step {last} is complete and usable"
        return CheckpointError(
            f"cannot save the checkpoint of step {self._writing[manager]} under {manager.directory}: {error}\n"
            f"Previous checkpoint: {kept}. "
            "Free disk space or mend the permissions, then run the same command again."
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state that is not damaged, laid out like `like`, and the data position.

        Damaged checkpoints newer than it are moved to `checkpoints/damaged`, and `notices` names them.

        Args:
          like: shapes and shardings. Each device is given its share only.

        Raises:
          CheckpointError: no checkpoint, only damaged ones, or one of another architecture (says which
            parameters differ).
        """
        self._finish(self._latest)
        steps = sorted(self._latest.all_steps(), reverse=True)
        if not steps:
            raise CheckpointError(f"no checkpoint under {self.folder}")
        damaged: list[tuple[int, str]] = []
        for step in steps:
            restored, problem = self._try(step, like)
            if multihost.all_agree(restored is not None):
                self._set_aside(damaged, step)
                return restored
            damaged.append((step, problem or "another process cannot read it"))
        raise CheckpointError(
            "\n".join(problem for _, problem in damaged) + f"\nNo checkpoint under {self.folder / 'latest'} can be "
            "read; restore them from a copy, or remove that folder to begin again."
        )

    def _try(self, step: int, like: TrainState) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        folder = self.folder / "latest" / str(step)
        try:
            with run_folder.reading(folder):
                shapes = run_folder.stored_shapes(folder / "state")
            check_fits(shapes["params"], like.params, f"{self.folder}, step {step}")
            args = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(like)), data=ocp.args.JsonRestore())
            with run_folder.reading(folder):
                restored = self._latest.restore(step, args=args)
                run_folder.verify(restored["state"], run_folder.stored_checksums(folder))
            return (_from_tree(restored["state"], like), restored["data"]), ""
        except errors.Damaged as error:
            return None, str(error)

    def _set_aside(self, damaged: list[tuple[int, str]], good: int) -> None:
        """Moves damaged checkpoints away, or the run could not save these steps again. They are not deleted."""
        self.notices = []
        for step, problem in damaged:
            target = self.folder / "damaged" / str(step)
            if jax.process_index() == 0:
                target.parent.mkdir(exist_ok=True)
                while target.exists():
                    target = target.with_name(target.name + "-again")
                os.replace(self.folder / "latest" / str(step), target)
            self.notices.append(f"warning: {problem}; moved to {target}; going on from step {good} instead")
        if damaged:
            multihost.barrier("rahf:set-aside")
            self._latest.reload()

    def discard(self, step: int) -> None:
        """Removes the checkpoint of a step, if there is one."""
        self._finish(self._latest)
        if step in self._latest.all_steps():
            self._latest.delete(step)

    def abandon(self) -> None:
        """Makes `close` wait for nothing: other processes, on which a save depends, may be gone."""
        self._abandoned = True

    def close(self) -> None:
        """Waits for everything to be written. Raises CheckpointError if something cannot be, unless that was raised."""
        if self._abandoned:
            return
        try:
            if not self._failed:
                self.wait()
        finally:
            for manager in (self._latest, self._best):
                with contextlib.suppress(Exception):  # it repeats the failure of a save, which was raised
                    manager.close()
            if not self._failed:
                self._silence.end()


__all__ = ["CheckpointError", "Checkpointer", "check_fits", "find", "load_params"]
