"""Prepared motion data → batches, through Grain: shuffled for ever for training, in order for evaluation. No JAX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.loading import stream
from data_pipelines.loading.examples import Numbered
from data_pipelines.loading.stream import StreamLoader
from data_pipelines.video import read
from data_pipelines.video.records import MotionRecord
from rahf import images
from rahf.core.errors import DataError


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


def train_loader(
    path: str,
    split: str,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    terms: int | None = None,
) -> StreamLoader[MotionBatch]:
    """The clips of a split, shuffled anew each epoch, for ever.

    Args:
      path, split: of the dataset.
      batch_size, process_index, process_count: as of `StreamLoader`.
      seed: decides the order.
      terms: only the first so many terms of each volume; None: all.

    Raises:
      DatasetError: no such data.
      ConfigError: a batch size that the processes cannot share.
    """
    source = read.open_clips(path, split)
    maker = _Maker(f"dataset {path}, split {split!r}", len(source), terms)
    shuffled = grain.MapDataset.source(Numbered(source)).shuffle(stream.shuffle_seed(seed)).repeat()
    examples = shuffled.map(lambda pair: maker(*pair))
    identity = {"seed": int(seed), "records": len(source), "fingerprint": source.fingerprint}
    return StreamLoader(examples, stack, batch_size, identity, process_index, process_count)


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
    maker = _Maker(f"dataset {path}, split {split!r}", len(source), terms)
    filler = maker(0, source[0])._replace(example_mask=np.bool_(False), index=np.int64(-1))
    one = lambda number: maker(number, source[number])  # noqa: E731
    return stream.in_order(one, count, filler, stack, batch_size, process_index, process_count)
