"""Prepared motion data → batches, through Grain: shuffled for ever for training, in order for evaluation. No JAX.

As in `data_pipelines.loading.loader`, the training stream is a function of the seed alone, and a checkpoint needs only
a position in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.video import read
from data_pipelines.video.records import MotionRecord
from rahf import images
from rahf.core import names, terminal
from rahf.core.errors import ConfigError, DataError


class MotionBatch(NamedTuple):
    """A batch of clips.

    Attributes:
      image: uint8 [B,h,w,3], the first picture.
      spectrum: float32 [B,K,h,w,4], not normalised; the first K terms, as many as were asked for.
      time: int32 [B], a later frame, another one in each epoch.
      target: uint8 [B,h,w,3], the picture at that frame.
      example_mask: bool [B], False for examples that fill up the last batch.
      index: int64 [B], position in the split, -1 for those.
    """

    image: np.ndarray
    spectrum: np.ndarray
    time: np.ndarray
    target: np.ndarray
    example_mask: np.ndarray
    index: np.ndarray


class _Maker:
    """(position, record) → an example; a picture that cannot be decoded is named."""

    def __init__(self, where: str, records: int, terms: int | None):
        self.where, self.records, self.terms = where, records, terms

    def __call__(self, index: int, record: MotionRecord) -> MotionBatch:
        epoch, index = divmod(index, self.records)
        image = images.load_rgb(record.image, what=f"{self.where}: picture of clip {record.uid}")
        spectrum = record.volume.channels[: self.terms]
        if image.shape[:2] != spectrum.shape[1:3]:
            raise DataError(f"{self.where}: clip {record.uid} has a picture of {image.shape[:2]} and a volume of "
                            f"{spectrum.shape[1:3]}; prepare the data again")  # fmt: skip
        if not record.times:
            raise DataError(f"{self.where}: clip {record.uid} keeps no later picture; prepare the data again")
        number = (epoch + index) % len(record.times)
        target = images.load_rgb(record.targets[number], what=f"{self.where}: later picture of clip {record.uid}")
        return MotionBatch(image, spectrum, np.int32(record.times[number]), target, np.bool_(True), np.int64(index))


def stack(examples: list[MotionBatch]) -> MotionBatch:
    """Examples → a batch."""
    return MotionBatch(*(np.stack(field) for field in zip(*examples)))


class TrainLoader:
    """An endless iterator of training batches; see `rahf.training.task.Loader`.

    Attributes:
      report: called with what the user should know.
    """

    def __init__(
        self,
        path: str,
        split: str,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        terms: int | None = None,
    ):
        """Args as of `data_pipelines.loading.loader.train_loader`; only the first `terms` terms, None: all.

        Raises:
          DatasetError: no such data.
          ConfigError: a batch size that the processes cannot share.
        """
        if batch_size < 1 or batch_size % process_count:
            raise ConfigError(
                f"batch size {batch_size}: expected a multiple of the number of processes, {process_count}"
            )
        source = read.open_clips(path, split)
        self._identity = {"seed": int(seed), "records": len(source), "fingerprint": source.fingerprint}
        self._batch_size, self._process, self._examples = batch_size, (process_index, process_count), 0
        numbered = grain.MapDataset.source(_Numbered(source))
        order = int(np.random.SeedSequence([seed % 2**32]).generate_state(1)[0])
        maker = _Maker(f"dataset {path}, split {split!r}", len(source), terms)
        self._stream = numbered.shuffle(order).repeat().map(lambda pair: maker(*pair))
        self._iterator: Iterator[MotionBatch] | None = None
        self.report: Callable[[str], None] = lambda line: terminal.say(names.one_line(line), stderr=True)

    def __next__(self) -> MotionBatch:
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
        return MotionBatch(*map(np.asarray, batch))

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch, and the identity of the data."""
        return {"examples": self._examples, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called.

        Raises:
          DataError: it belongs to other data or another seed.
        """
        saved = {name: state.get(name) for name in self._identity}
        examples = state.get("examples")
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


class _Numbered:
    """A source whose elements know their position."""

    def __init__(self, source: store.RecordSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, MotionRecord]:
        return int(index), self.source[index]

    def __repr__(self) -> str:
        return repr(self.source)


def eval_batches(
    path: str,
    split: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    terms: int | None = None,
) -> Iterator[MotionBatch]:
    """The clips of a split in order, once; the last batch is filled up with examples that do not count.

    Every process gets its part of each batch of `batch_size`; only the first `terms` terms, None: all.
    """
    source = read.open_clips(path, split)
    count = len(source) if limit is None else min(limit, len(source))
    maker, local = _Maker(f"dataset {path}, split {split!r}", len(source), terms), batch_size // process_count
    filler = maker(0, source[0])._replace(example_mask=np.bool_(False), index=np.int64(-1))
    for first in range(process_index * local, max(count, 1) + process_index * local, batch_size):
        numbers = range(first, min(first + local, count))
        examples = [maker(number, source[number]) for number in numbers]
        yield stack(examples + [filler] * (local - len(examples)))
