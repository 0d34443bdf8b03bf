"""Pictures with fixations → batches, through Grain: shuffled for ever for training, in order for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.gaze import examples
from data_pipelines.gaze.examples import GazeBatch
from data_pipelines.loading import stream, transforms
from data_pipelines.loading.examples import Joined, RecordSequence
from data_pipelines.loading.stream import StreamLoader
from rahf.config import Config
from rahf.core.errors import ConfigError, DataError


def training_source(config: Config) -> RecordSequence:
    """The training records of all folders of a run, one behind the other."""
    sources = [store.open_split(path, config.data.train_split) for path in config.data.paths]
    return sources[0] if len(sources) == 1 else Joined(sources)


def train_loader(
    config: Config, source: RecordSequence, process: int = 0, processes: int = 1, pixels: bool = True
) -> StreamLoader[GazeBatch]:
    """An endless iterator of batches.

    Example number n of the stream is record ``shuffle(seed, epoch)[n mod N]``, mirrored, cropped and coloured
    (`data.augment`) by draws from (seed, n).

    Args:
      config: of the run.
      source: its records.
      process, processes: this JAX process of how many.
      pixels: whether pictures are decoded.

    Raises:
      ConfigError: a batch size that the processes do not divide, or augmentations that cannot be drawn.
      DataError: no records.
    """
    if not len(source):
        raise DataError(f"{', '.join(config.data.paths)}: split {config.data.train_split!r} has no records")
    seed, augment = config.train.seed, config.data.augment
    if augment is not None:
        transforms.check(augment)
        if augment.flip_probability:
            raise ConfigError(
                "data.augment.flip_probability: saliency models mirror pictures by model.flip; set it to 0"
            )

    def example(number: int, index: int) -> GazeBatch:
        rng = np.random.default_rng([seed, number])
        flip = config.model.flip and bool(rng.integers(2))
        return examples.example(source[int(index)], int(index), config.model, flip, pixels, augment, rng)

    shuffled = grain.MapDataset.range(len(source)).shuffle(stream.shuffle_seed(seed)).repeat()
    identity = {"seed": seed, "records": len(source), "fingerprint": fingerprint(source)}
    numbered = shuffled.map_with_index(example)
    return StreamLoader(numbered, examples.stack, config.data.batch_size, identity, process, processes)


class GazeEvalLoader:
    """The examples of a split in order, once, all batches of one size; the last one is filled up."""

    def __init__(
        self, config: Config, source: RecordSequence, batch_size: int, process: int, processes: int, limit: int
    ):
        self.config, self.source = config, source
        self.count = min(len(source), limit)
        self._batch, self._process, self._processes = batch_size, process, processes

    def __iter__(self) -> Iterator[GazeBatch]:
        one = lambda index: examples.example(self.source[index], index, self.config.model)  # noqa: E731
        filler = examples.filling(self.config.model)
        return stream.in_order(one, self.count, filler, examples.stack, self._batch, self._process, self._processes)


def fingerprint(source: RecordSequence) -> str:
    """A hash of up to 16 records spread over the split, to recognise other data."""
    digest = hashlib.sha256()
    for index in sorted({int(i) for i in np.linspace(0, len(source) - 1, 16)}):
        record = source[index]
        digest.update(record.uid.encode() + record.image + (record.saliency or b"none"))
        digest.update(b"none" if record.fixations is None else record.fixations.tobytes())
    return digest.hexdigest()[:16]
