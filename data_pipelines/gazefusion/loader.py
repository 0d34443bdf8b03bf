"""Crops with saliency maps and captions → batches, through Grain: shuffled for ever, or in order once. No JAX.

As in `data_pipelines.loading.loader`, the training stream is a function of the seed alone, and a checkpoint needs only
a position in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.store.records import Record
from rahf import images
from rahf.core import names, terminal
from rahf.core.errors import ConfigError, DataError
from rahf.images.resize import resize

#: A prompt → int32 [L] for each text tower.
Encode = Callable[[str], tuple[np.ndarray, ...]]


class ControlBatch(NamedTuple):
    """A batch of crops, what a ControlNet reads of them, and their captions.

    Attributes:
      image: uint8 [B,s,s,3].
      hint: float32 [B,s,s], saliency, its largest value 1.
      ids: int32 [B,L] for each text tower.
      example_mask: bool [B], False for examples that fill up the last batch.
      index: int64 [B], position in the split, -1 for those.
    """

    image: Any
    hint: Any
    ids: Any
    example_mask: Any
    index: Any


class Examples:
    """The examples of a split by position, at a picture size."""

    def __init__(self, path: str, split: str, size: int, encode: Encode):
        """Raises DatasetError: no such data, or none with saliency."""
        self.source, self.size, self.encode = store.open_split(path, split), size, encode
        self.where = f"{path}, split {split!r}"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ControlBatch:
        """One example without the batch axis. Raises DataError: it cannot be decoded; names it."""
        record: Record = self.source[int(index)]
        where = f"{self.where}: record {int(index)} (uid {record.uid!r})"
        if record.saliency is None:
            raise DataError(f"{where}: has no saliency; prepare the data with `rahf prepare gazefusion`")
        try:
            picture, hint = images.load_rgb(record.image, what=where), density.decode(record.saliency, where)
        except images.ImageError as error:
            raise DataError(f"{error}; prepare the data again") from error
        if picture.shape[0] != picture.shape[1]:
            raise DataError(f"{where}: expected a square crop, found {picture.shape[1]} x {picture.shape[0]} pixels")
        hint = hint / hint.max()
        shape = self.size, self.size
        picture = picture if picture.shape[:2] == shape else resize(picture, shape)
        hint = hint if hint.shape == shape else np.clip(resize(hint, shape), 0, 1)
        return ControlBatch(
            picture, hint.astype(np.float32), self.encode(record.prompt), np.bool_(True), np.int64(index)
        )

    def __repr__(self) -> str:
        return repr(self.source)


def stack(examples: list[ControlBatch]) -> ControlBatch:
    """Examples → a batch."""
    image, hint, ids, mask, index = zip(*examples)
    return ControlBatch(*map(np.stack, (image, hint)), tuple(map(np.stack, zip(*ids))), np.stack(mask), np.stack(index))


class TrainLoader:
    """An endless iterator of training batches; see `rahf.training.task.Loader`.

    Attributes:
      report: called with what the user should know.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1):
        """Raises ConfigError: a batch size that the processes cannot share."""
        if batch_size < 1 or batch_size % process_count:
            raise ConfigError(
                f"batch size {batch_size}: expected a multiple of the number of processes, {process_count}"
            )
        self._identity = {
            "seed": int(seed),
            "records": len(examples),
            "fingerprint": examples.source.fingerprint,
        }
        self._batch_size, self._process, self._examples = batch_size, (process_index, process_count), 0
        order = int(np.random.SeedSequence([seed % 2**32]).generate_state(1)[0])
        self._stream = grain.MapDataset.source(examples).shuffle(order).repeat()
        self._iterator: Iterator[ControlBatch] | None = None
        self.report: Callable[[str], None] = lambda line: terminal.say(names.one_line(line), stderr=True)

    def __next__(self) -> ControlBatch:
        if self._iterator is None:
            index, count = self._process
            batches = self._stream[self._examples :].batch(
                self._batch_size // count, drop_remainder=True, batch_fn=stack
            )
            options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=3)
            self._iterator = iter(batches[index::count].to_iter_dataset(options))
        try:
            batch = next(self._iterator)
        except DataError as error:
            raise DataError(str(error)) from None  # without the notes that Grain adds
        self._examples += self._batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch, and the identity of the data."""
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

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def eval_batches(
    examples: Examples, batch_size: int, process_index: int = 0, process_count: int = 1, limit: int | None = None
) -> Iterator[ControlBatch]:
    """The examples of a split in order, once; the last batch is filled up with examples that do not count.

    Every process gets its part of each batch of `batch_size`.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    local = batch_size // process_count
    filler = examples[0]._replace(example_mask=np.bool_(False), index=np.int64(-1))
    for first in range(process_index * local, max(count, 1) + process_index * local, batch_size):
        rows = [examples[number] for number in range(first, min(first + local, count))]
        yield stack(rows + [filler] * (local - len(rows)))
