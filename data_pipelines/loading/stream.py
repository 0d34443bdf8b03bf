"""Examples → batches: shuffled for ever for training, through Grain, or in order once for evaluation. No JAX.

The training stream is a function of the seed alone, and a checkpoint needs only a position in it. The critic family
has worker processes and a log of damaged pictures besides: `data_pipelines.loading.loader`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from rahf.core import names, terminal
from rahf.core.errors import ConfigError, DataError

BatchT = TypeVar("BatchT")


def shuffle_seed(seed: int) -> int:
    """What Grain shuffles by in a run of this seed."""
    return int(np.random.SeedSequence([seed % 2**32]).generate_state(1)[0])


def local_batch(batch_size: int, process_index: int, process_count: int) -> int:
    """Examples of a process in each batch. Raises ConfigError: the processes cannot share it, or no such process."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch size {batch_size}: expected a multiple of the number of processes, {process_count}")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process {process_index} of {process_count}: no such process")
    return batch_size // process_count


def threads() -> grain.ReadOptions:
    """Options for one batch per thread, and one more ready.

    Decoding releases Python's lock; the rest does not, and is the bottleneck with more than four threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(4, cores))
    return grain.ReadOptions(num_threads=count, prefetch_buffer_size=count + 1)


class StreamLoader(Generic[BatchT]):
    """An endless iterator of training batches; see `rahf.training.task.Loader`.

    Attributes:
      report: called with what the user should know.
    """

    def __init__(
        self,
        stream: grain.MapDataset,
        batch: Callable[[list[Any]], BatchT],
        batch_size: int,
        identity: dict[str, Any],
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Args:
          stream: of examples, shuffled and endless.
          batch: examples without a batch axis → a batch.
          batch_size: global, over all processes.
          identity: of seed and data, as JSON values; a saved position belongs to it.
          process_index, process_count: this JAX process; it yields its part of each global batch.

        Raises:
          ConfigError: a batch size that the processes cannot share.
        """
        self._local = local_batch(batch_size, process_index, process_count)
        self._stream, self._batch, self._identity = stream, batch, identity
        self._batch_size, self._process, self._examples = batch_size, (process_index, process_count), 0
        self._iterator: Iterator[BatchT] | None = None
        self.report: Callable[[str], None] = lambda line: terminal.say(names.one_line(line), stderr=True)

    def __iter__(self) -> StreamLoader[BatchT]:
        return self

    def __next__(self) -> BatchT:
        """The next batch. Raises DataError: a record cannot be decoded; names it."""
        if self._iterator is None:
            index, count = self._process
            batches = self._stream[self._examples :].batch(self._local, drop_remainder=True, batch_fn=self._batch)
            self._iterator = iter(batches[index::count].to_iter_dataset(threads()))
        try:
            batch = next(self._iterator)
        except DataError as error:
            raise DataError(str(error)) from None  # without the notes that Grain adds
        self._examples += self._batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch, and the identity of the data, as JSON values."""
        return {"examples": self._examples, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called. Raises DataError: it belongs to other data or another seed."""
        saved, examples = {name: state.get(name) for name in self._identity}, state.get("examples")
        if saved != self._identity or not isinstance(examples, int) or examples < 0:
            raise DataError(
                f"the saved position {saved} belongs to other data or another seed than {self._identity}; name the "
                "original data and seed, or start in a new run directory"
            )
        self.close()
        self._examples = examples

    def close(self) -> None:
        """Ends its threads; the next batch starts them again."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> StreamLoader[BatchT]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def in_order(
    example: Callable[[int], Any],
    count: int,
    filling: Any,
    batch: Callable[[list[Any]], BatchT],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[BatchT]:
    """Examples 0 to `count` - 1, once; every process gets its part of each batch of `batch_size`.

    Args:
      example: position → example without a batch axis.
      filling: an example that does not count, to fill up the last batch.
      batch: examples → a batch.
    """
    local = local_batch(batch_size, process_index, process_count)
    offset = process_index * local
    for first in range(offset, max(count, 1) + offset, batch_size):
        rows = [example(number) for number in range(first, min(first + local, count))]
        yield batch(rows + [filling] * (local - len(rows)))
