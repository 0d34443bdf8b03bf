"""Prepared data → batches, through Grain: shuffled forever for training, in order for evaluation.

Several sets are shuffled each for itself and interleaved in fixed proportions.

The training stream is a function of the seed alone: example number n of the stream is record
``shuffle(seed, epoch)[n mod N]``, augmented with randomness from (seed, epoch, record). Worker processes, threads and
the number of JAX processes decide only where it is computed. A checkpoint therefore needs only a position in the stream
to go on exactly, also with other numbers of workers and processes.

If a worker process fails, the loader reports the record that it was reading and starts the workers again at the same
position. After three failures without a batch in between the run stops. Workers never import JAX
(`data_pipelines.loading.worker`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines import store
from data_pipelines.loading import transforms, version_0, worker, worker_failures
from data_pipelines.loading.damage import Damage
from data_pipelines.loading.examples import (
    ExampleMaker,
    Joined,
    Numbered,
    RecordSequence,
    decode_square,
    example,  # noqa: F401 - public here
    filling,
    stack,
)
from data_pipelines.loading.stream import local_batch, threads
from rahf.config import DataConfig
from rahf.core import names, terminal
from rahf.core.batch import Batch
from rahf.core.errors import ConfigError, DataError
from rahf.text import Tokenizer

_STATE_VERSION = 2  # 1: JPEG files were decoded at reduced scale
_WORKER_BUFFER = 2  # finished batches that a worker process holds


def train_loader(
    config: DataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    source: RecordSequence | Sequence[RecordSequence] | None = None,
    pixels: bool = True,
) -> TrainLoader:
    """An endless iterator of training batches, shuffled anew each epoch.

    Args:
      config: paths, sizes, augmentations. Examples of several sets are mixed: `config.mix` says in which proportion,
        the seed in which order; `Batch.index` is the position in the example's own set. `workers` processes decode
        ahead of the training step; with 0 threads of this process do.
      image_size: side of image and heatmaps in pixels.
      tokenizer: the vocabulary.
      seed: decides order and augmentations.
      process_index, process_count: this JAX process. It yields its part of each global batch; the parts of all
        processes, in their order, are the batch that one process alone would yield.
      source: records to use in place of split `config.train_split` of `config.path`; or a list, with those of each of
        `config.paths`, which are mixed.
      pixels: False: images are not decoded; see `data_pipelines.loading.examples.example`.

    Raises:
      data_pipelines.store.DatasetError: no such dataset or split.
      DataError: no records.
      ConfigError: a batch size or range of the config that cannot work.
    """
    if source is not None:
        sources = list(source) if isinstance(source, (list, tuple)) else [source]
    else:
        sources = [store.open_split(path, config.train_split) for path in config.paths]
    return TrainLoader(config, image_size, tokenizer, seed, process_index, process_count, *sources, pixels=pixels)


class _Set(NamedTuple):
    """One data set of a stream."""

    source: worker.LoggedSource
    maker: ExampleMaker
    shuffle_seed: int

    def stream(self) -> grain.MapDataset:
        """Its examples, shuffled anew each epoch, for ever."""
        shuffled = grain.MapDataset.source(self.source).shuffle(self.shuffle_seed).repeat()
        return shuffled.map_with_index(self.maker)


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
        *sources: RecordSequence,
        pixels: bool = True,
    ):
        if config.workers < 0:
            raise ConfigError(f"data.workers: expected 0 or more, found {config.workers}")
        if config.augment is not None:
            transforms.check(config.augment)
        self._local = local_batch(config.batch_size, process_index, process_count)
        self._config, self._process = config, (process_index, process_count)
        names = config.paths if len(config.paths) == len(sources) else (config.path,)
        places = [f"dataset {name}, split {config.train_split!r}" for name in names]
        for place, source in zip(places, sources):
            if not len(source):
                raise DataError(f"{place}: no records")
        self._weights = mixing_weights(config.mix, [len(source) for source in sources])
        self._identity = {
            "seed": int(seed),
            "records": sum(map(len, sources)),
            "fingerprint": _fingerprint(sources[0]) if len(sources) == 1 else _fingerprint_of(sources, self._weights),
        }
        self._version = _STATE_VERSION
        self._joined = Joined(sources)
        self._where = places[0] if len(places) == 1 else f"{'; '.join(places)}, counted through all of them"
        self._sets: list[_Set] = []
        for number, (source, first, place) in enumerate(zip(sources, self._joined.starts, places)):
            maker = ExampleMaker(config, image_size, tokenizer, place, seed, len(source), pixels=pixels)
            entropy = [seed % 2**32, *([number] if number else [])]
            shuffle_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            self._sets.append(_Set(worker.LoggedSource(Numbered(source), first), maker, shuffle_seed))
        self._log: worker_failures.ReadLog | None = None
        self._damage = Damage(self._joined, self._where)
        self.report: Callable[[str], None] = _say
        self._unused_squares = [
            f"warning: {place}: its squares have {len(square)} pixels on each side, not {image_size}: they are not "
            f"used, pictures are decoded; compute others: rahf prepare squares --size {image_size}"
            for place, square in zip(places, (source[0].square for source in sources))
            if square is not None and len(square) != image_size
        ]
        self._batch_bytes = self._local * sum(field.nbytes for field in filling(config, image_size))
        self._examples = 0  # number of examples of the global stream that were returned
        self._iterator = None

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          DataError: a record cannot be decoded; the message names dataset, split, index and uid.
          rahf.core.errors.WorkerFailure: worker processes failed three times without a batch in between.
        """
        batch = None
        for times in range(1, worker_failures.MOST_FAILURES + 1):
            if self._iterator is None:
                self._iterator = self._start()
            try:
                batch = next(self._iterator)
                break
            except DataError as error:
                raise DataError(str(error)) from None  # without the notes that Grain adds
            except RuntimeError as error:
                self._report_failure(error, times)
        self._damage.collect(self.report)
        self._examples += self._config.batch_size
        return Batch(*map(np.asarray, batch))  # plain arrays: Grain's refer to shared memory

    @property
    def damaged(self) -> int:
        """Number of records met so far whose JPEG is damaged in the middle and is used as the decoder repairs it."""
        return len(self._damage.records)

    def _report_failure(self, error: RuntimeError, times: int) -> None:
        """Reports a failure and ends all workers; the next attempt starts them again at the same position."""
        try:
            self.report(worker_failures.explain(error, times, self._log, self._joined, self._where))
        finally:
            self.close()

    def _start(self) -> Iterator[Batch]:
        index, count = self._process
        streams = [one.stream() for one in self._sets]
        stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, self._weights)
        batches = stream[self._examples :].batch(self._local, drop_remainder=True, batch_fn=stack)
        batches = batches[index::count]
        while self._unused_squares:
            self.report(self._unused_squares.pop())
        workers = self._config.workers
        for one in self._sets:
            one.maker.damage = self._damage.log(one.source.first, workers > 0)
        if not workers:
            return iter(batches.to_iter_dataset(threads()))
        worker.check_shared_memory(self._batch_bytes * workers * (_WORKER_BUFFER + 1), workers)
        worker.install()
        self._log = worker_failures.ReadLog(workers)
        for one in self._sets:
            one.source.log = self._log.path
        alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_WORKER_BUFFER)
        return iter(batches.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=worker.start))

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch that was returned, and the identity of the data, as JSON values."""
        return {"version": self._version, "examples": self._examples, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_state` was called, in this or an earlier program.

        Workers, processes and batch size may differ; data and seed may not. A stream that version 0 began goes on with
        version 0's squares of JPEG files.

        Raises:
          DataError: the state belongs to other data or another seed.
        """
        try:
            examples, saved = int(state["examples"]), {name: state[name] for name in self._identity}
            version = int(state.get("version", 1))
            if not 0 <= examples < 1 << 63:
                raise ValueError("no number of examples")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"not the state of a data loader: {state!r:.200}") from error
        own, remedy = self._identity, "or start in a new run directory"
        if (saved["records"], saved["fingerprint"]) != (own["records"], own["fingerprint"]):
            raise DataError(
                f"the saved position belongs to other data: {saved['records']} records with fingerprint "
                f"{saved['fingerprint']}, but {', '.join(self._config.paths)}, split {self._config.train_split!r} "
                f"holds {own['records']} records with fingerprint {own['fingerprint']}; name the original data, "
                f"{remedy}"
            )
        if saved["seed"] != own["seed"]:
            raise DataError(
                f"the saved position belongs to seed {saved['seed']}, this run has seed {own['seed']}; "
                f"use the same seed, {remedy}"
            )
        self.close()
        self._examples, self._version = examples, version
        for one in self._sets:
            one.maker.decode_square = version_0.square if version < _STATE_VERSION else decode_square

    def close(self) -> None:
        """Ends worker processes and threads. The next batch starts them again."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        self._damage.close()

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
    source: RecordSequence | None = None,
) -> EvalLoader:
    """The examples of a split in order, once, without augmentation.

    All batches have the same size; the last one is filled up with examples whose masks are all False, so that
    every process gets the same number of batches and nothing is compiled twice.

    Args:
      config: path (of several the first), sequence lengths.
      split: name of the split.
      image_size: side of image and heatmaps in pixels.
      tokenizer: the vocabulary.
      batch_size: global, over all processes.
      process_index, process_count: this JAX process; it yields its part of each global batch.
      limit: number of examples, from the first on; None: all.
      source: records to use in place of the split.

    Returns:
      An iterable with a length; each iteration starts from the first example.

    Raises:
      data_pipelines.store.DatasetError: no such dataset or split.
      DataError: no examples; while iterating, a record that cannot be decoded.
      ConfigError: the batch size is not a multiple of the number of processes.
    """
    source = store.open_split(config.paths[0], split) if source is None else source
    local = local_batch(batch_size, process_index, process_count)
    where = f"dataset {config.paths[0]}, split {split!r}"
    count = len(source) if limit is None else min(limit, len(source))
    if count < 1:
        raise DataError(f"{where}: " + (f"limit {limit} leaves no examples" if len(source) else "no records"))
    maker = ExampleMaker(config, image_size, tokenizer, where)
    damage = Damage(source, where)
    maker.damage = damage.log()
    filler = filling(config, image_size)
    part = _EvalPart(Numbered(source), maker, filler, count, batch_size, local, process_index)
    return EvalLoader(grain.MapDataset.range(math.ceil(count / batch_size)).map(part), damage)


class EvalLoader:
    """Iterable of `Batch`es of numpy arrays, ``len`` of them, always from the start. See `eval_loader`."""

    def __init__(self, batches: grain.MapDataset, damage: Damage):
        self._batches, self._damage = batches, damage

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def damaged(self) -> int:
        """As `TrainLoader.damaged`."""
        return len(self._damage.records)

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._batches.to_iter_dataset(threads()))
        try:
            for batch in iterator:
                self._damage.collect(_say)
                yield batch
        except DataError as error:
            raise DataError(str(error)) from None
        finally:
            iterator.close()


class _EvalPart:
    """Function: number of a global batch → this process's part of it."""

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


def _say(line: str) -> None:
    terminal.say(names.one_line(line), stderr=True)


def mixing_weights(mix: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Share of the examples that each data set gives, as `data.mix` says, or in proportion to their sizes.

    Raises:
      ConfigError: another number of weights than of sets, or a weight that is not a number above 0.
    """
    weights = [float(weight) for weight in (mix or sizes)]
    if len(weights) != len(sizes) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ConfigError(
            f"data.mix: expected {len(sizes)} numbers above 0, one for each folder of data.path, found {list(mix)}"
        )
    return [weight / sum(weights) for weight in weights]


def _fingerprint_of(sources: Sequence[RecordSequence], weights: Sequence[float]) -> str:
    """As `_fingerprint`, of several splits in their order and with their weights."""
    parts = [[len(source), _fingerprint(source), round(weight, 9)] for source, weight in zip(sources, weights)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _fingerprint(source: RecordSequence) -> str:
    """A hash of up to 16 records spread over the split, to recognise other data."""
    digest = hashlib.sha256()
    for index in sorted({int(i) for i in np.linspace(0, len(source) - 1, 16)}):
        record = source[index]
        text = (record.uid, record.prompt, record.words, record.word_labels)
        digest.update(repr(text).encode() + np.asarray(record.scores, np.float32).tobytes())
        for encoded in (record.image, record.implausibility, record.misalignment):
            digest.update(b"none" if encoded is None else encoded)
    return digest.hexdigest()[:16]
