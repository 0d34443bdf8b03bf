"""One training run, from an empty or interrupted run directory to the last step."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import threading
from typing import Any

import jax
import numpy as np

from data_pipelines import store
from data_pipelines.labelled import Labels
from data_pipelines.loader import TrainLoader, eval_loader, train_loader
from rahf import config as config_lib
from rahf.config import Config
from rahf.evaluate import Evaluator, summary_line
from rahf.losses import Parts
from rahf.models import functional
from rahf.text import Tokenizer
from rahf.train import sharding
from rahf.train import state as state_lib
from rahf.train.checkpoint import CheckpointError, Checkpointer
from rahf.train.progress import Reporter
from rahf.train.step import StepMetrics, make_train_step


class TrainError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a run ended."""

    step: int
    metrics: dict[str, float]  # of the last evaluation
    interrupted_by: int | None  # signal number; the run goes on when the same command is given again


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that the loop looks at between steps. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(config: Config) -> Finished:
    """Trains to `config.train.steps`, resuming if `config.workdir` holds an interrupted run.

    Writes `config.json`, `tokenizer.model`, `checkpoints/`, `metrics.jsonl` and TensorBoard events there.

    Raises:
      TrainError: a non-finite loss (names the step, the part and the last good checkpoint), or a run directory
        that belongs to another configuration.
      data_pipelines.store.DatasetError: no data.
      CheckpointError: a checkpoint cannot be written or read.
    """
    workdir = pathlib.Path(config.workdir)
    tokenizer = Tokenizer.load(_tokenizer_file(config))
    _check_vocabulary(config, tokenizer)
    made = state_lib.setup(config)
    _claim(workdir, config, tokenizer)
    checkpoints = Checkpointer(workdir, config.train.keep_checkpoints)
    loader = train_loader(
        config.data, config.model.image_size, tokenizer, config.train.seed, jax.process_index(), jax.process_count()
    )
    if checkpoints.latest_step is None:
        state = state_lib.create(config, made)
    else:
        state, data_state = checkpoints.restore(made.shapes)
        loader.set_state(data_state)
    start = int(state.step)
    reporter = Reporter(workdir, config.train.steps, start, jax.process_index() == 0)
    reporter.say(sharding.describe(made.shapes.params, made.mesh))
    reporter.say(f"{'resuming at step ' + str(start) if start else 'starting'} in {workdir}")
    run = _Run(config, made, tokenizer, checkpoints, loader, reporter)
    try:
        with loader, Interrupt() as interrupt:
            return run.steps(state, interrupt)
    finally:
        reporter.close()
        checkpoints.close()


class _Run:
    """What stays the same from step to step."""

    def __init__(self, config: Config, made, tokenizer: Tokenizer, checkpoints, loader: TrainLoader, reporter):
        self.config, self.made, self.checkpoints = config, made, checkpoints
        self.loader, self.reporter = loader, reporter
        self.step_function = make_train_step(config, made)
        self.evaluator = Evaluator(made.graphdef, config, tokenizer, made.mesh)
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
        while step < train.steps and interrupt.signal is None:
            batch = sharding.to_devices(next(self.loader), self.made.mesh)
            state, measured = self.step_function(state, batch)
            step += 1
            self.pending.append(measured)
            last = step == train.steps
            if step % train.log_every == 0 or last:
                self.log(step)
            if last or (train.eval_every and step % train.eval_every == 0):
                self.log(step)
                metrics = self.evaluate(step, state)
            if last or step % train.checkpoint_every == 0:
                self.save(step, state)
        if interrupt.signal is not None:
            name = signal.Signals(interrupt.signal).name
            self.save(step, state)
            self.reporter.say(f"{name}: saved step {step} and stopped; the same command goes on from there")
        return Finished(step, metrics, interrupt.signal)

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
        values = {"loss/total": mean.total, **{f"loss/{n}": v for n, v in zip(Parts._fields, mean.parts)}}
        self.reporter.train(
            step, values | {"gradient_norm": mean.gradient_norm}, len(fetched) * self.config.data.batch_size
        )

    def check(self, step: int, metrics: StepMetrics) -> None:
        """Stops the run at a loss or gradient that is not finite."""
        named = [*zip(Parts._fields, metrics.parts), ("total", metrics.total), ("gradient", metrics.gradient_norm)]
        bad = [name for name, value in named if not np.isfinite(value)]
        if not bad:
            return
        good = self.checkpoints.latest_step
        where = "there is no checkpoint yet" if good is None else f"last good checkpoint: step {good}, {self.checkpoints.folder / 'latest' / str(good)}"
        raise TrainError(
            f"step {step}: {bad[0]} {'norm' if bad[0] == 'gradient' else 'loss'} is not finite "
            f"({', '.join(f'{n} {float(v):.4g}' for n, v in named)}); {where}. "
            "Lower optimizer.learning_rate or set optimizer.clip_norm, then run the same command to go on from there."
        )

    def evaluate(self, step: int, state: state_lib.TrainState) -> dict[str, float]:
        """Evaluates, reports, and keeps the parameters if they are the best so far."""
        last = step == self.config.train.steps
        found = self.evaluator.run(
            state.best_params, self.eval_batches, self.eval_labels, generate=last, intervals=False
        )
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
        self.checkpoints.save(state, self.loader.get_state())
        self.reporter.pause()


def _value(config: Config, metrics: dict[str, float]) -> float:
    """The metric that decides; NaN if there is none yet."""
    name = config.train.best_metric
    if metrics and name not in metrics and not any(k.startswith(name.rsplit("/", 1)[0]) for k in metrics):
        raise TrainError(f"train.best_metric: no metric {name!r}.{config_lib.suggest(name, list(metrics))}")
    return float(metrics.get(name, float("nan")))


def _better(config: Config, value: float, best: float) -> bool:
    return value > best if config.train.best_mode == "max" else value < best


def _tokenizer_file(config: Config) -> pathlib.Path:
    if config.data.tokenizer == "dataset":
        return store.tokenizer_path(config.data.path)
    file = pathlib.Path(config.data.tokenizer)
    if not file.is_file():
        raise TrainError(f"data.tokenizer: no file {file}; give a SentencePiece model or 'dataset'")
    return file


def _check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.t5.vocab_size:
        raise TrainError(
            f"the vocabulary {tokenizer.source} has {tokenizer.vocab_size} pieces, model.t5.vocab_size is only "
            f"{config.model.t5.vocab_size}; set it to at least that"
        )


def _claim(workdir: pathlib.Path, config: Config, tokenizer: Tokenizer) -> None:
    """Writes config and vocabulary into the run directory, or checks that they are the ones already there."""
    file, words = workdir / "config.json", workdir / "tokenizer.model"
    if file.exists():
        there = config_lib.from_json(file.read_text(), where=str(file))
        different = differences(there, config)
        if different:
            raise TrainError(
                f"{workdir} holds a run with another configuration:\n  " + "\n  ".join(different) + "\n"
                "Choose another --workdir, or give the same configuration to resume."
            )
        if words.exists() and words.read_bytes() != tokenizer.model:
            raise TrainError(f"{words} differs from the data's vocabulary {tokenizer.source}; choose another --workdir")
    elif workdir.exists() and any(p.name != "tensorboard" for p in workdir.iterdir()):
        raise TrainError(f"{workdir} is not empty and not a run directory; choose another --workdir")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        for target, content in ((words, tokenizer.model), (file, config_lib.to_json(config).encode())):
            unfinished = target.with_name(target.name + ".tmp")
            unfinished.write_bytes(content)
            os.replace(unfinished, target)


#: What may change between the start and the resumption of a run without changing what it computes.
_FREE = ("workdir", "data.path", "data.workers", "data.eval_batch_size", "train.steps", "train.log_every",
         "train.eval_every", "train.eval_examples", "train.checkpoint_every", "train.keep_checkpoints", "mesh")  # fmt: skip


def differences(there: Config, given: Config) -> list[str]:
    """Fields in which two configs differ, apart from those that may change on resumption."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(tree, dict):
            return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}{name}.").items()}
        return {prefix[:-1]: tree}

    old, new = flat(dataclasses.asdict(there)), flat(dataclasses.asdict(given))
    free = lambda name: any(name == f or name.startswith(f + ".") for f in _FREE)  # noqa: E731
    return [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} given"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not free(name)
    ]


__all__ = ["CheckpointError", "Finished", "TrainError", "differences", "functional", "train"]
