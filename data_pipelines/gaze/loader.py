"""Pictures with fixations → batches, through Grain: shuffled for ever for training, in order for evaluation."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.gaze import examples
from data_pipelines.gaze.examples import GazeBatch
from data_pipelines.loading.examples import Joined, RecordSequence
from rahf.config import Config, ConfigError
from rahf.core.errors import DataError


def training_source(config: Config) -> RecordSequence:
    """The training records of all folders of a run, one behind the other."""
    sources = [store.open_split(path, config.data.train_split) for path in config.data.paths]
    return sources[0] if len(sources) == 1 else Joined(sources)


class GazeTrainLoader:
    """An endless iterator of `GazeBatch`es whose position can be saved.

    Example number n of the stream is record ``shuffle(seed, epoch)[n mod N]``, mirrored by a draw from (seed, n).
    """

    def __init__(
        self, config: Config, source: RecordSequence, process: int = 0, processes: int = 1, pixels: bool = True
    ):
        """Args: the run's config, its records, this JAX process of how many, and whether pictures are decoded.

        Raises:
          ConfigError: a batch size that the processes do not divide.
          DataError: no records.
        """
        if not len(source):
            raise DataError(f"{', '.join(config.data.paths)}: split {config.data.train_split!r} has no records")
        if config.data.batch_size % processes:
            raise ConfigError(f"data.batch_size {config.data.batch_size}: expected a multiple of {processes} processes")
        self.config, self.source, self.pixels = config, source, pixels
        self._part = process, config.data.batch_size // processes, processes
        self._identity = {
            "seed": config.train.seed,
            "records": len(source),
            "fingerprint": fingerprint(source),
        }
        self._examples, self._iterator = 0, None
        self.report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def __iter__(self) -> GazeTrainLoader:
        return self

    def __next__(self) -> GazeBatch:
        """The next batch. Raises DataError: a record cannot be decoded; names it."""
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except DataError as error:
            raise DataError(str(error)) from None  # without the notes that Grain adds
        self._examples += self.config.data.batch_size
        return GazeBatch(*map(np.asarray, batch))

    def _start(self) -> Iterator[GazeBatch]:
        process, local, processes = self._part
        seed = int(np.random.SeedSequence([self.config.train.seed]).generate_state(1)[0])
        numbered = grain.MapDataset.range(len(self.source)).shuffle(seed).repeat().map_with_index(self._example)
        batches = numbered[self._examples :].batch(local, drop_remainder=True, batch_fn=examples.stack)
        return iter(batches[process::processes].to_iter_dataset(_threads()))

    def _example(self, number: int, index: int) -> GazeBatch:
        flip = self.config.model.flip and bool(np.random.default_rng([self.config.train.seed, number]).integers(2))
        return examples.example(self.source[int(index)], int(index), self.config.model, flip, self.pixels)

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch, and the identity of the data, as JSON values."""
        return {"examples": self._examples, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called. Raises DataError: the state belongs to other data or another seed."""
        try:
            position, saved = int(state["examples"]), {name: state[name] for name in self._identity}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the state of a data loader: {state!r:.200}") from error
        if saved != self._identity or position < 0:
            raise DataError(
                f"the saved position belongs to {saved}, this run reads {self._identity}; name the original data and "
                "seed, or start in a new run directory"
            )
        self.close()
        self._examples = position

    def close(self) -> None:
        """Ends the threads. The next batch starts them again."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> GazeTrainLoader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class GazeEvalLoader:
    """The examples of a split in order, once, all batches of one size; the last one is filled up."""

    def __init__(
        self, config: Config, source: RecordSequence, batch_size: int, process: int, processes: int, limit: int
    ):
        self.config, self.source = config, source
        self.count = min(len(source), limit)
        self._batch, self._process, self._processes = batch_size, process, processes

    def __iter__(self) -> Iterator[GazeBatch]:
        local = self._batch // self._processes
        filler = examples.filling(self.config.model)
        for first in range(0, self.count, self._batch):
            start = first + self._process * local
            rows = range(start, min(start + local, self.count))
            made = [examples.example(self.source[index], index, self.config.model) for index in rows]
            yield examples.stack(made + [filler] * (local - len(made)))


def _threads() -> grain.ReadOptions:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(4, cores))
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)


def fingerprint(source: RecordSequence) -> str:
    """A hash of up to 16 records spread over the split, to recognise other data."""
    digest = hashlib.sha256()
    for index in sorted({int(i) for i in np.linspace(0, len(source) - 1, 16)}):
        record = source[index]
        digest.update(record.uid.encode() + record.image + (record.saliency or b"none"))
        digest.update(b"none" if record.fixations is None else record.fixations.tobytes())
    return digest.hexdigest()[:16]
