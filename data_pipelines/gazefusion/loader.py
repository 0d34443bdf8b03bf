"""Crops with saliency maps and captions → batches, through Grain: shuffled for ever, or in order once. No JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.loading import stream
from data_pipelines.loading.stream import StreamLoader
from data_pipelines.store.records import Record
from rahf import images
from rahf.core.errors import DataError
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


def train_loader(
    examples: Examples, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> StreamLoader[ControlBatch]:
    """The examples, shuffled anew each epoch, for ever. Raises ConfigError: as `StreamLoader`."""
    shuffled = grain.MapDataset.source(examples).shuffle(stream.shuffle_seed(seed)).repeat()
    identity = {"seed": int(seed), "records": len(examples), "fingerprint": examples.source.fingerprint}
    return StreamLoader(shuffled, stack, batch_size, identity, process_index, process_count)


def eval_batches(
    examples: Examples, batch_size: int, process_index: int = 0, process_count: int = 1, limit: int | None = None
) -> Iterator[ControlBatch]:
    """The examples of a split in order, once; the last batch is filled up with examples that do not count."""
    count = len(examples) if limit is None else min(limit, len(examples))
    filler = examples[0]._replace(example_mask=np.bool_(False), index=np.int64(-1))
    return stream.in_order(examples.__getitem__, count, filler, stack, batch_size, process_index, process_count)
