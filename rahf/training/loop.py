"""One training run, from an empty or interrupted run directory to the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from rahf import config as config_lib
from rahf.config import Config
from rahf.core.errors import NotFinite, TrainError, WorkerFailure
from rahf.core.names import suggest
from rahf.training import distributed, label_counts, run_lock, sharding
from rahf.training import optimizer as optimizer_lib
from rahf.training import state as state_lib
from rahf.training.checkpoint import Checkpointer
from rahf.training.prefetch import Prefetch
from rahf.training.progress import Reporter, read_rows
from rahf.training.step import StepMetrics, make_train_step
from rahf.training.task import Loader, SavedFile, Task

_STOPPING = "\n{}: stopping after this step, with a checkpoint; Ctrl-C now ends at once, without one\n"


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a run ended."""

    step: int
    metrics: dict[str, float]  # of the last evaluation
    interrupted_by: int | None  # signal number; the run goes on when the same command is given again


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that the loop looks at between steps. A second Ctrl-C ends at once.

    With several processes SIGTERM is left to JAX, which passes it on, so that all stop at the same step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            # Not by print: the handler may run in the middle of one, and streams cannot be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING.format(signal.Signals(number).name).encode())
        self.signal = number
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def at(self, step: int) -> bool:
        """Whether the run is to stop after `step`. All processes ask after every step and get the same answer."""
        if not distributed.reached_stop(step, self.signal is not None):
            return False
        self.signal = self.signal or signal.SIGTERM
        return True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(task: Task) -> Finished:
    """Trains to `train.steps` of the task's config, resuming if its `workdir` holds an interrupted run.

    Writes `config.json`, the task's files (`tokenizer.model`), `checkpoints/`, `metrics.jsonl` and TensorBoard events
    there, and `start.json` if it starts from other parameters. Only this process writes there until it ends. What is
    there stays as it is if the run is refused.

    Raises:
      FolderInUse: another process trains in the run directory.
      DiskFull: no space left for the metrics.
      TrainError: a non-finite loss (names the step, the part and the last good checkpoint), a run directory
        that belongs to another configuration, an unknown `train.best_metric`, or a vocabulary or start that
        does not fit.
      PretrainedError: published towers that cannot be read or do not fit.
      DatasetError: no data.
      CheckpointError: a checkpoint cannot be written or read.
    """
    config = task.config
    workdir = pathlib.Path(config.workdir)
    _check_metric(task)
    setup = state_lib.setup(task)
    files = task.saved_files()
    process, processes = jax.process_index(), jax.process_count()
    with contextlib.ExitStack() as stack:
        changes = distributed.first_then_others("run lock", lambda: _enter(stack, task, files))
        run_lock.check_same(config, distributed.of_first("config", config_lib.to_json(config)))
        checkpoints = Checkpointer(workdir, config.train.keep_checkpoints)
        stack.callback(checkpoints.close)
        report_failure = lambda kind, error, trace: _fail(checkpoints, error) if processes > 1 else None  # noqa: E731
        stack.push(report_failure)
        loader = stack.enter_context(task.train_loader())
        begin, labels = None, {}
        if checkpoints.latest_step is None:
            begin = task.start(setup.shapes.params)
            state = state_lib.create(task, setup, begin and begin.params)
            labels = dict(task.labels_at_start(begin)) if begin else {}
        else:
            state, data_state = checkpoints.restore(setup.shapes)
            loader.set_state(data_state)
            # A run of a version that did not count goes on without: nobody knows what its outputs have learned from.
            labels = label_counts.read(workdir) or None
        first_step = int(state.step)
        run = _Run(task, setup, checkpoints, loader, labels)
        stack.callback(run.batches.close)
        # Nothing is left that could refuse the run: only now it changes what the directory says.
        distributed.first_then_others("run files", lambda: run_lock.write(workdir, config, files))
        run.reporter = reporter = Reporter(workdir, config.train.steps, first_step, process == 0)
        stack.callback(reporter.close)
        loader.report = reporter.say
        reporter.say(sharding.describe(setup.shapes.params, setup.mesh))
        reporter.say(f"{'resuming at step ' + str(first_step) if first_step else 'starting'} in {workdir}")
        for notice in checkpoints.notices:
            reporter.say(notice)
        for change in changes:
            reporter.say(f"  with another {change}")
        if begin is not None:
            begin.note(workdir, reporter.say if process == 0 else None)
        task.before_steps(setup.graphdef, state.params, reporter.say)
        stack.push(report_failure)  # before anything is closed
        with Interrupt() as interrupt:
            return run.steps(state, interrupt)


def _enter(stack: contextlib.ExitStack, task: Task, files: Mapping[str, SavedFile]) -> list[str]:
    """Locks the run directory until the stack unwinds; returns what has changed of what may be tuned."""
    if jax.process_index() != 0:
        return []
    workdir = pathlib.Path(task.config.workdir)
    stack.enter_context(run_lock.held(workdir))
    return run_lock.check(workdir, task.config, files)


def _fail(checkpoints: Checkpointer, error: BaseException | None) -> None:
    """Lets a process that fails end without waiting for the others, and the others without waiting for it."""
    if error is not None:
        checkpoints.abandon()
        distributed.report_failure(error)


class _Run:
    """What stays the same from step to step."""

    reporter: Reporter
    labels: label_counts.Counts | None = None  # None: they are not counted

    def __init__(
        self,
        task: Task,
        setup: state_lib.Setup,
        checkpoints: Checkpointer,
        loader: Loader,
        labels: label_counts.Counts | None,
    ):
        self.task, self.config, self.checkpoints, self.loader = task, task.config, checkpoints, loader
        self.batches = Prefetch(loader, lambda batch: sharding.to_devices(batch, setup.mesh))
        self.step_function = make_train_step(task, setup)
        self.learning_rate = optimizer_lib.schedule(self.config.optimizer, self.config.train.steps)
        self.evaluator = task.evaluator(setup.graphdef, setup.mesh)
        self.pending: list[StepMetrics] = []
        self.workdir, self.labels = pathlib.Path(task.config.workdir), labels
        self.best = _value(self.config, checkpoints.best_metrics() or {})

    def steps(self, state: state_lib.TrainState, interrupt: Interrupt) -> Finished:
        """Runs until the last step or an interrupt; nothing waits for the device but log points."""
        train = self.config.train
        step, metrics, stopped = int(state.step), {}, False
        self.evaluations = _evaluations(self.workdir, step)
        if reason := self.task.stop_reason(self.evaluations):
            self.reporter.say(f"the run ended at step {step}: {reason}")
        elif step >= train.steps:
            self.reporter.say(f"the run is complete at step {step}; raise train.steps to go on")
            metrics = self.evaluate(step, state) if self.checkpoints.best_metrics() is None else {}
        while not reason and not (stopped := interrupt.at(step)) and step < train.steps:
            batch = self.next_batch(step, state)
            step += 1
            if step < train.steps:
                self.batches.fetch()
            state, measured = self.step_function(state, batch)
            self.pending.append(measured)
            last = step == train.steps
            if step % train.log_every == 0 or last:
                self.log(step)
            if last or (train.eval_every and step % train.eval_every == 0):
                self.log(step)
                metrics = self.evaluate(step, state)
                self.evaluations.append(metrics)
                if reason := self.task.stop_reason(self.evaluations):
                    self.reporter.say(f"ending at step {step}: {reason}")
            if last or reason or step % train.checkpoint_every == 0:
                self.save(step, state)
        if stopped:
            name = signal.Signals(interrupt.signal).name
            self.save(step, state)
            self.checkpoints.wait()
            self.reporter.say(f"{name}: saved step {step} and stopped; the same command goes on from there")
        return Finished(step, metrics, interrupt.signal if stopped else None)

    def next_batch(self, step: int, state: state_lib.TrainState) -> Any:
        """The next batch; if the data workers are beyond help, what was trained is saved before the run stops."""
        try:
            return self.batches.take()
        except WorkerFailure:
            if jax.process_count() == 1:  # saving takes all processes
                self.save(step, state)
            raise

    def log(self, step: int) -> None:
        """Fetches the metrics of all steps since the last point, checks and reports them."""
        if not self.pending:
            return
        fetched = jax.device_get(self.pending)
        first = step - len(fetched) + 1
        self.pending = []
        for number, metrics in enumerate(fetched, first):
            self.check(number, metrics)
        if self.labels is not None:
            self.labels = label_counts.added(self.labels, [self._learned_from(metrics) for metrics in fetched])
        values = {"loss/total": float(np.mean([metrics.total for metrics in fetched]))}
        values |= {f"loss/{name}": _mean_of_part(name, fetched) for name in self.task.loss_parts}
        values["gradient_norm"] = float(np.mean([metrics.gradient_norm for metrics in fetched]))
        values["parameter_norm"] = fetched[-1].parameter_norm.item()
        values["learning_rate"] = float(self.learning_rate(step))
        if damaged := getattr(self.loader, "damaged", 0):  # of this process
            values["damaged_pictures"] = float(damaged)
        self.reporter.train(step, values, len(fetched) * self.config.data.batch_size)

    def _learned_from(self, metrics: StepMetrics) -> dict[str, int]:
        """Numbers of labels of a step; 0 where the loss does not weigh them."""
        unweighted = self.task.unweighted_parts
        return {n: 0 if _part(n) in unweighted else int(count) for n, count in metrics.labels.items()}

    def _write_labels(self) -> None:
        """Notes beside the parameters which outputs have learned from labels."""
        if self.labels and jax.process_index() == 0:
            label_counts.write(self.workdir, self.labels)

    def check(self, step: int, metrics: StepMetrics) -> None:
        """Stops the run at a loss, gradient or update that is not finite."""
        named = {f"{name} loss": metrics.parts[name] for name in self.task.loss_parts} | {"total loss": metrics.total}
        named |= {"gradient norm": metrics.gradient_norm, "parameter norm": metrics.parameter_norm}
        bad = [name for name, value in named.items() if not np.isfinite(value)]
        if bad:
            if bad != ["parameter norm"]:  # the rest was computed with the parameters of the step before:
                self.checkpoints.discard(step - 1)  # a checkpoint of those leads nowhere
            self.stop(step, f"{bad[0]} is not finite ({', '.join(f'{n} {v:.4g}' for n, v in named.items())})")

    def stop(self, step: int, what: str) -> NoReturn:
        """Ends a run that has broken down."""
        good = self.checkpoints.latest_step
        if good is None:
            where, then = "there is no checkpoint yet", "begin again"
        else:
            where = f"last good checkpoint: step {good}, {self.checkpoints.folder / 'latest' / str(good)}"
            then = "go on from there"
        raise TrainError(
            f"step {step}: {what}; {where}. Give the same command with a lower optimizer.learning_rate or "
            f"optimizer.clip_norm to {then}."
        )

    def evaluate(self, step: int, state: state_lib.TrainState) -> dict[str, float]:
        """Evaluates, reports, and keeps the parameters if they are the best so far."""
        train = self.config.train
        thorough = step == train.steps or self.task.needs_thorough(train.best_metric)
        try:
            evaluation = self.evaluator.evaluate(state.best_params, thorough=thorough)
        except NotFinite as error:
            self.stop(step, str(error))
        self.reporter.write(step, {f"eval/{name}": value for name, value in evaluation.metrics.items()})
        value = _value(self.config, evaluation.metrics)
        better = np.isfinite(value) and (not np.isfinite(self.best) or _better(self.config, value, self.best))
        self.reporter.say(
            f"  evaluated {evaluation.count} of {self.config.data.eval_split} at step {step}: "
            f"{self.evaluator.summary(evaluation.metrics)}{'  best so far' if better else ''}"
        )
        if better:
            self.best = value
            self._write_labels()
            self.checkpoints.save_best(step, state.best_params, evaluation.metrics)
        self.reporter.pause()
        return evaluation.metrics

    def save(self, step: int, state: state_lib.TrainState) -> None:
        """Saves for resuming; whatever was not checked yet is checked first, so no bad state is kept."""
        self.log(step)
        self._write_labels()
        self.checkpoints.save(state, self.batches.get_state())
        self.reporter.pause()


def _evaluations(workdir: pathlib.Path, step: int) -> list[dict[str, float]]:
    """Metrics of the evaluations of a run up to a step, in order; NaN where `metrics.jsonl` has none."""
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= step]
    named = [{n.removeprefix("eval/"): v for n, v in row.items() if n.startswith("eval/")} for row in rows]
    return [{n: float("nan") if v is None else v for n, v in metrics.items()} for metrics in named if metrics]


def _value(config: Config, metrics: dict[str, float]) -> float:
    """The metric that decides; NaN if there is none yet, or nothing to measure it by."""
    return float(metrics.get(config.train.best_metric, float("nan")))


def _mean_of_part(part: str, steps: list[StepMetrics]) -> float:
    """Mean loss of a part over the steps whose batch has labels of it; NaN if none has."""
    names = [name for name in steps[0].labels if _part(name) == part]
    values = [m.parts[part] for m in steps if not names or any(m.labels[name] > 0 for name in names)]
    return float(np.mean(values)) if values else float("nan")


def _part(label_name: str) -> str:
    """The part of the loss that compares a label of `Task.label_counts`."""
    return label_name.split("/")[0]


def _check_metric(task: Task) -> None:
    name, names = task.config.train.best_metric, task.metric_names()
    if name not in names:
        raise TrainError(
            f"train.best_metric: no metric {name!r} of a {task.config.model.family} model configured like this."
            f"{suggest(name, names)}"
        )


def _better(config: Config, value: float, best: float) -> bool:
    return value > best if config.train.best_mode == "max" else value < best


__all__ = ["Finished", "TrainError", "train"]
