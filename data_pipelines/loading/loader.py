"""Prepared data → batches, through Grain: shuffled forever for training, in order for evaluation.

The training stream is a function of the seed alone: example number n of the stream is record
``shuffle(seed, epoch)[n mod N]``, augmented with randomness from (seed, epoch, record). Worker processes,
threads and the number of JAX processes only decide who computes it, so a position in the stream is all that a
checkpoint needs to go on exactly, also with other numbers of workers and processes.

A worker that dies is reported with the record it was at, and started again at the same place; only if that happens
again and again the run stops. Workers never import JAX (`data_pipelines.loading.worker`).
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.loading import transforms, worker, worker_failures
from data_pipelines.loading.examples import (
    ExampleMaker,
    Numbered,
    Source,
    example,  # noqa: F401  (part of this module's face)
    filling,
    stack,
)
from rahf.config import DataConfig
from rahf.core.batch import Batch
from rahf.core.errors import ConfigError, DataError
from rahf.text import Tokenizer

_WORKER_BUFFER = 2  # finished batches that a worker process holds


def train_loader(
    config: DataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    source: Source | None = None,
) -> TrainLoader:
    """An endless iterator of training batches, shuffled anew each epoch.

    Args:
      config: where the data lie, sizes, augmentations; `workers` processes decode, or with 0 threads of this
        process, in both cases ahead of the training step.
      image_size: side of image and heatmaps in pixels.
      tokenizer: the vocabulary.
      seed: decides order and augmentations.
      process_index, process_count: this JAX process; it yields its part of each global batch, and all parts
        in order of the processes are the batch that one process alone would yield.
      source: records to use in place of split `config.train_split` of `config.path`.

    Raises:
      data_pipelines.store.DatasetError: no such dataset or split.
      DataError: no records.
      ValueError: a batch size or range of the config that cannot work.
    """
    source = store.open_split(config.path, config.train_split) if source is None else source
    return TrainLoader(config, image_size, tokenizer, seed, process_index, process_count, source)


class TrainLoader:
    """Iterator of `Batch`es of numpy arrays, ``batch_size / process_count`` examples. See `train_loader`."""

    def __init__(
        self,
        config: DataConfig,
        image_size: int,
        tokenizer: Tokenizer,
        seed: int,
        process_index: int,
        process_count: int,
        source: Source,
    ):
        if config.workers < 0:
            raise ConfigError(f"data.workers: expected 0 or more, found {config.workers}")
        if config.augment is not None:
            transforms.check(config.augment)
        self._local = _local_batch(config.batch_size, process_index, process_count)
        self._config, self._process = config, (process_index, process_count)
        where = f"dataset {config.path}, split {config.train_split!r}"
        if not len(source):
            raise DataError(f"{where}: no records")
        self._identity = {"seed": int(seed), "records": len(source), "fingerprint": _fingerprint(source)}
        maker = ExampleMaker(config, image_size, tokenizer, where, seed, len(source))
        shuffle_seed = int(np.random.SeedSequence([seed % 2**32]).generate_state(1)[0])
        self._source, self._where = worker.Noted(Numbered(source)), where
        self._diary: worker_failures.Diary | None = None
        self.report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
        dataset = grain.MapDataset.source(self._source)
        self._stream = dataset.shuffle(shuffle_seed).repeat().map_with_index(maker)
        self._batch_bytes = self._local * sum(field.nbytes for field in filling(config, image_size))
        self._examples = 0  # of the global stream that were handed out
        self._iterator = None

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          DataError: a record cannot be decoded; the message names dataset, split, index and uid.
          data_pipelines.loading.worker_failures.WorkerFailure: worker processes die as often as they are started again.
        """
        batch = None
        for times in range(1, worker_failures.MOST + 1):
            if self._iterator is None:
                self._iterator = self._start()
            try:
                batch = next(self._iterator)
                break
            except DataError as error:
                raise DataError(str(error)) from None  # without Grain's notes on its own inner workings
            except RuntimeError as error:
                self._mourn(error, times)
        self._examples += self._config.batch_size
        return Batch(*(np.asarray(field) for field in batch))  # Grain's arrays know where they are shared

    def _mourn(self, error: RuntimeError, times: int) -> None:
        """Reports a dead worker; all are started again with the next attempt, where this one was."""
        try:
            self.report(worker_failures.explain(error, times, self._diary, self._source.source.source, self._where))
        finally:
            self.close()

    def _start(self) -> Iterator[Batch]:
        index, count = self._process
        batches = self._stream[self._examples :].batch(self._local, drop_remainder=True, batch_fn=stack)
        batches = batches[index::count]
        workers = self._config.workers
        if not workers:
            return iter(batches.to_iter_dataset(_threads()))
        worker.check_shared_memory(self._batch_bytes * workers * (_WORKER_BUFFER + 1), workers)
        worker.install()
        self._diary = worker_failures.Diary(workers)
        self._source.diary = self._diary.path
        alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_WORKER_BUFFER)
        return iter(batches.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=worker.start))

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch that was handed out, and what it refers to, as JSON values."""
        return {"version": 1, "examples": self._examples, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_state` was called, in this or an earlier program.

        Workers, processes and batch size may differ; data and seed may not.

        Raises:
          DataError: the state belongs to other data or another seed.
        """
        try:
            examples, found = int(state["examples"]), {name: state[name] for name in self._identity}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the state of a data loader: {state!r}") from error
        mine, remedy = self._identity, "or start in a new run directory"
        if (found["records"], found["fingerprint"]) != (mine["records"], mine["fingerprint"]):
            raise DataError(
                f"the saved position belongs to other data: {found['records']} records with fingerprint "
                f"{found['fingerprint']}, but {self._config.path}, split {self._config.train_split!r} holds "
                f"{mine['records']} records with fingerprint {mine['fingerprint']}; name the original data, "
                f"{remedy}"
            )
        if found["seed"] != mine["seed"]:
            raise DataError(
                f"the saved position belongs to seed {found['seed']}, this run has seed {mine['seed']}; "
                f"use the same seed, {remedy}"
            )
        self.close()
        self._examples = examples

    def close(self) -> None:
        """Ends worker processes and threads. The next batch starts them again."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()
        if self._diary is not None:
            self._diary.close()
            self._diary = None

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def eval_loader(
    config: DataConfig,
    split: str,
    image_size: int,
    tokenizer: Tokenizer,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    source: Source | None = None,
) -> EvalLoader:
    """The examples of a split in order, once, without augmentation.

    All batches have the same size; the last one is filled up with examples whose masks are all False, so that
    every process gets the same number of batches and nothing is compiled twice.

    Args:
      config: where the data lie, sequence lengths.
      split: name of the split.
      image_size: side of image and heatmaps in pixels.
      tokenizer: the vocabulary.
      batch_size: global, over all processes.
      process_index, process_count: this JAX process; it yields its part of each global batch.
      limit: only the first so many examples.
      source: records to use in place of the split.

    Returns:
      An iterable with a length; each iteration starts from the first example.

    Raises:
      data_pipelines.store.DatasetError: no such dataset or split.
      DataError: no examples; while iterating, a record that cannot be decoded.
      ValueError: the batch size is not a multiple of the number of processes.
    """
    source = store.open_split(config.path, split) if source is None else source
    local = _local_batch(batch_size, process_index, process_count)
    where = f"dataset {config.path}, split {split!r}"
    count = len(source) if limit is None else min(limit, len(source))
    if count < 1:
        raise DataError(f"{where}: " + (f"limit {limit} leaves no examples" if len(source) else "no records"))
    maker = ExampleMaker(config, image_size, tokenizer, where)
    filler = filling(config, image_size)
    part = _EvalPart(Numbered(source), maker, filler, count, batch_size, local, process_index)
    return EvalLoader(grain.MapDataset.range(math.ceil(count / batch_size)).map(part))


class EvalLoader:
    """Iterable of `Batch`es of numpy arrays, ``len`` of them, always from the start. See `eval_loader`."""

    def __init__(self, batches: grain.MapDataset):
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._batches.to_iter_dataset(_threads()))
        try:
            yield from iterator
        except DataError as error:
            raise DataError(str(error)) from None
        finally:
            iterator.close()


class _EvalPart:
    """Number of a global batch → this process's part of it."""

    def __init__(
        self,
        source: Numbered,
        maker: ExampleMaker,
        filler: Batch,
        count: int,
        batch_size: int,
        local: int,
        process_index: int,
    ):
        self.source, self.maker, self.filler, self.count = source, maker, filler, count
        self.batch_size, self.local, self.offset = batch_size, local, process_index * local

    def __call__(self, number: int) -> Batch:
        first = number * self.batch_size + self.offset
        examples = [self.maker(i, self.source[i]) for i in range(first, min(first + self.local, self.count))]
        return stack(examples + [self.filler] * (self.local - len(examples)))


def _local_batch(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch size {batch_size}: expected a multiple of the number of processes, {process_count}")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process {process_index} of {process_count}: no such process")
    return batch_size // process_count


def _threads() -> grain.ReadOptions:
    """One batch per thread, and one more ready. Decoding releases Python's lock, but beyond four threads the
    rest does not keep up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(4, cores))
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)


def _fingerprint(source: Source) -> str:
    """A hash of up to 16 records spread over the split, so that other data are noticed at once."""
    digest = hashlib.sha256()
    for index in sorted({int(i) for i in np.linspace(0, len(source) - 1, 16)}):
        record = source[index]
        text = (record.uid, record.prompt, record.words, record.word_labels)
        digest.update(repr(text).encode() + np.asarray(record.scores, np.float32).tobytes())
        for encoded in (record.image, record.implausibility, record.misalignment):
            digest.update(b"none" if encoded is None else encoded)
    return digest.hexdigest()[:16]
