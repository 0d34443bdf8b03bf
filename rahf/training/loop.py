"""One training run, from an empty or interrupted run directory to the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
import threading
from typing import Any, NoReturn

import jax
import numpy as np

from data_pipelines import store
from data_pipelines.loading.labels import Labels
from data_pipelines.loading.loader import TrainLoader, eval_loader, train_loader
from rahf.config import Config
from rahf.core.batch import Batch
from rahf.core.errors import NotFinite, TrainError
from rahf.core.errors import WorkerFailure as WorkerFailure
from rahf.core.names import suggest
from rahf.critic import label_prompts, losses
from rahf.critic import start as start_lib
from rahf.critic.evaluation.evaluator import Evaluator, metric_names, summary_line
from rahf.critic.losses import OF_LABELS, Parts
from rahf.critic.networks import kinds
from rahf.diffusion.evaluate import Evaluator as DiffusionEvaluator
from rahf.text import Tokenizer
from rahf.training import distributed, sharding
from rahf.training import optimizer as optimizer_lib
from rahf.training import state as state_lib
from rahf.training.checkpoint import Checkpointer
from rahf.training.prefetch import Prefetch
from rahf.training.progress import Reporter
from rahf.training.run_lock import claim
from rahf.training.step import StepMetrics, make_train_step


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


def train(config: Config) -> Finished:
    """Trains to `config.train.steps`, resuming if `config.workdir` holds an interrupted run.

    Writes `config.json`, `tokenizer.model`, `checkpoints/`, `metrics.jsonl` and TensorBoard events there, and
    `start.json` if it starts from other parameters.

    Raises:
      TrainError: a non-finite loss (names the step, the part and the last good checkpoint), a run directory
        that belongs to another configuration, an unknown `train.best_metric`, or a vocabulary or start that
        does not fit.
      rahf.pretrained.PretrainedError: published towers that cannot be read or do not fit.
      data_pipelines.store.DatasetError: no data.
      CheckpointError: a checkpoint cannot be written or read.
    """
    workdir = pathlib.Path(config.workdir)
    tokenizer = start_lib.tokenizer(config)
    config = label_prompts.resolve(config, tokenizer)
    _check_metric(config)
    losses.check(config)
    made = state_lib.setup(config)
    changes = distributed.first_then_others("claim", lambda: claim(workdir, config, tokenizer))
    process, processes = jax.process_index(), jax.process_count()
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpointer(workdir, config.train.keep_checkpoints)
        stack.callback(checkpoints.close)
        loader = stack.enter_context(
            train_loader(config.data, config.model.image_size, tokenizer, config.train.seed, process, processes)
        )
        begin = None
        if checkpoints.latest_step is None:
            begin = start_lib.load(config, made)
            state = state_lib.create(config, made, begin.params)
        else:
            state, data_state = checkpoints.restore(made.shapes)
            loader.set_state(data_state)
        start = int(state.step)
        reporter = Reporter(workdir, config.train.steps, start, process == 0)
        stack.callback(reporter.close)
        loader.report = reporter.say
        reporter.say(sharding.describe(made.shapes.params, made.mesh))
        reporter.say(f"{'resuming at step ' + str(start) if start else 'starting'} in {workdir}")
        for notice in checkpoints.notices:
            reporter.say(notice)
        for change in changes:
            reporter.say(f"  with another {change}")
        if begin is not None:
            begin.note(workdir, reporter.say if process == 0 else None)
        run = _Run(config, made, tokenizer, checkpoints, loader, reporter)
        stack.callback(run.batches.close)
        if processes > 1:
            stack.push(lambda kind, error, trace: _fail(checkpoints, error))  # before anything is closed
        with Interrupt() as interrupt:
            return run.steps(state, interrupt)


def _fail(checkpoints: Checkpointer, error: BaseException | None) -> None:
    """A process that fails waits for no other, and none for it."""
    if error is not None:
        checkpoints.abandon()
        distributed.tell(error)


class _Run:
    """What stays the same from step to step."""

    def __init__(self, config: Config, made, tokenizer: Tokenizer, checkpoints, loader: TrainLoader, reporter):
        self.config, self.made, self.checkpoints = config, made, checkpoints
        self.batches = Prefetch(loader, lambda batch: sharding.to_devices(batch, made.mesh))
        self.reporter = reporter
        self.step_function = make_train_step(config, made, tokenizer.suffix_ids[0])
        self.learning_rate = optimizer_lib.schedule(config.optimizer, config.train.steps)
        evaluator = DiffusionEvaluator if config.model.kind == "diffusion" else Evaluator
        self.evaluator = evaluator(made.graphdef, config, tokenizer, made.mesh)
        self.eval_batches = eval_loader(
            config.data,
            config.data.eval_split,
            config.model.image_size,
            tokenizer,
            config.data.eval_batch_size,
            jax.process_index(),
            jax.process_count(),
            limit=config.train.eval_examples,
        )
        self.eval_labels = Labels(store.open_split(config.data.path, config.data.eval_split))
        self.pending: list[StepMetrics] = []
        self.best = _value(config, checkpoints.best_metrics() or {})

    def steps(self, state: state_lib.TrainState, interrupt: Interrupt) -> Finished:
        """Runs until the last step or an interrupt; nothing waits for the device but log points."""
        train = self.config.train
        step, metrics = int(state.step), {}
        if step >= train.steps:
            self.reporter.say(f"the run is complete at step {step}; raise train.steps to go on")
            metrics = self.evaluate(step, state) if self.checkpoints.best_metrics() is None else {}
        while not (stopped := interrupt.at(step)) and step < train.steps:
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
            if last or step % train.checkpoint_every == 0:
                self.save(step, state)
        if stopped:
            name = signal.Signals(interrupt.signal).name
            self.save(step, state)
            self.checkpoints.wait()
            self.reporter.say(f"{name}: saved step {step} and stopped; the same command goes on from there")
        return Finished(step, metrics, interrupt.signal if stopped else None)

    def next_batch(self, step: int, state: state_lib.TrainState) -> Batch:
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
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *fetched)
        shown = Parts._fields if self.config.model.tag_head else OF_LABELS
        if self.config.model.kind == "diffusion":  # its loss has no parts
            shown = ()
        values = {"loss/total": mean.total, **{f"loss/{n}": getattr(mean.parts, n) for n in shown}}
        values |= {"gradient_norm": mean.gradient_norm, "parameter_norm": fetched[-1].parameter_norm.item()}
        values["learning_rate"] = float(self.learning_rate(step))
        self.reporter.train(step, values, len(fetched) * self.config.data.batch_size)

    def check(self, step: int, metrics: StepMetrics) -> None:
        """Stops the run at a loss, gradient or update that is not finite."""
        named = {f"{n} loss": v for n, v in [*zip(Parts._fields, metrics.parts), ("total", metrics.total)]}
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
        generate = step == train.steps or train.best_metric.startswith("keywords/")
        try:
            found = self.evaluator.run(
                state.best_params, self.eval_batches, self.eval_labels, generate=generate, intervals=False
            )
        except NotFinite as error:
            self.stop(step, str(error))
        self.reporter.write(step, {f"eval/{name}": value for name, value in found.metrics.items()})
        value = _value(self.config, found.metrics)
        better = np.isfinite(value) and (not np.isfinite(self.best) or _better(self.config, value, self.best))
        self.reporter.say(
            f"  evaluated {found.count} of {self.config.data.eval_split} at step {step}: "
            f"{summary_line(found.metrics)}{'  best so far' if better else ''}"
        )
        if better:
            self.best = value
            self.checkpoints.save_best(step, state.best_params, found.metrics)
        self.reporter.pause()
        return found.metrics

    def save(self, step: int, state: state_lib.TrainState) -> None:
        """Saves for resuming; whatever was not checked yet is checked first, so no bad state is kept."""
        self.log(step)
        self.checkpoints.save(state, self.batches.get_state())
        self.reporter.pause()


def _value(config: Config, metrics: dict[str, float]) -> float:
    """The metric that decides; NaN if there is none yet, or nothing to measure it by."""
    return float(metrics.get(config.train.best_metric, float("nan")))


def _check_metric(config: Config) -> None:
    name, known = config.train.best_metric, metric_names()
    if name not in known:
        raise TrainError(f"train.best_metric: no metric {name!r}.{suggest(name, known)}")
    if not kinds.outputs(config.model).covers(name):
        raise TrainError(
            f"train.best_metric: a network of kind {config.model.kind!r} configured like this does not predict what "
            f"{name} measures; choose another, such as loss/total with train.best_mode min"
        )


def _better(config: Config, value: float, best: float) -> bool:
    return value > best if config.train.best_mode == "max" else value < best


__all__ = ["Finished", "TrainError", "train"]
