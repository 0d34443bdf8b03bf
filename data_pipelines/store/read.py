"""The prepared dataset on disk: ArrayRecord files described by TFDS metadata, without TensorFlow.

`write_dataset` makes a directory that `tfds.builder_from_directory` understands: ``features.json``,
``dataset_info.json``, ArrayRecord shards, and beside them ``tokenizer.model``. `open_split` reads a split
with random access and leaves image and maps encoded. Equal input gives equal bytes.

Reading imports neither JAX nor TFDS: data workers start fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Callable, Iterable, Mapping, SupportsIndex

import numpy as np

from data_pipelines import tf_example
from data_pipelines.records import Record
from rahf.batch import SCORES

NAME, VERSION = "rich_feedback", "1.0.0"
INFO_FILE, METADATA_FILE, TOKENIZER_FILE = "dataset_info.json", "metadata.json", "tokenizer.model"
_FIELDS = (
    "uid", "prompt", "words", "word_labels", "image", "implausibility", "misalignment", "scores",
    "has_word_labels", "has_implausibility", "has_misalignment",
)  # fmt: skip


class DatasetError(ValueError):
    """A prepared dataset cannot be read or written; the message says what is wrong and what to do."""


def write_dataset(
    out: str | os.PathLike,
    splits: Mapping[str, Iterable[Record]],
    description: str,
    tokenizer: bytes | None = None,
    extra: Mapping[str, bytes | str | Callable[[], bytes | str]] | None = None,
) -> dict[str, int]:
    """Writes records as a TFDS dataset in ArrayRecord files. Order is kept; nothing is held in memory.

    The directory is built beside `out` under a temporary name and renamed when complete, so `out` is
    always either absent, the old dataset, or the whole new one.

    Args:
      out: directory to make. A dataset or an empty directory in its place is replaced.
      splits: records by split name, e.g. ``{"train": …, "dev": …}``; iterables are consumed once, in order.
      description: a sentence for ``dataset_info.json``.
      tokenizer: serialized SentencePiece model to put beside the data.
      extra: further files, content by file name; a function is called when every record has been written.

    Returns:
      Number of records per split.

    Raises:
      DatasetError: `out` is something else, no split has a record, or a record is malformed.
    """
    from data_pipelines import store_writer

    return store_writer.write(out, splits, description, tokenizer, extra or {})


def load_writer() -> None:
    """Imports what `write_dataset` needs. To be called before a progress bar starts.

    While TFDS is loading it replaces Python's import by one that refuses relative imports, in all threads;
    that of a progress bar would fail.
    """
    import rich.markup  # noqa: F401
    import tensorflow_datasets as tfds

    _ = tfds.features.FeaturesDict, tfds.core.SequentialWriter  # loads what is loaded lazily


class RecordSource:
    """The records of one split, by position. A Grain data source; cheap to pickle into worker processes.

    Images and maps stay encoded. Made by `open_split`.
    """

    def __init__(self, path: str, split: str, files: list[tuple[str, int]], fingerprint: str):
        self.path, self.split, self.files, self.fingerprint = path, split, files, fingerprint
        self._length = sum(count for _, count in files)
        self._reader = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Record number `index` (negative: from the end).

        Raises:
          IndexError: no such record.
          DatasetError: the file is damaged or the record lacks a field.
        """
        position = index.__index__()
        position += self._length if position < 0 else 0
        if not 0 <= position < self._length:
            raise IndexError(f"{self}: no record {index.__index__()}")
        try:
            example = tf_example.parse(self._read(position))
            return _from_example(example)
        except KeyError as error:
            raise DatasetError(
                f"{self._where(position)} has no field {error.args[0]!r}; it was written by another version "
                "or another program: prepare the data again"
            ) from error
        except (tf_example.ExampleError, RuntimeError, ValueError, IndexError, OSError) as error:
            raise DatasetError(
                f"{self._where(position)} cannot be read ({error}): the file is damaged or cut off; "
                "copy it again or prepare the data again"
            ) from error

    def _read(self, position: int) -> bytes:
        if self._reader is None:
            from array_record.python import array_record_data_source

            self._reader = array_record_data_source.ArrayRecordDataSource(
                [f"{file}[0:{count}]" for file, count in self.files]
            )
        return self._reader[position]

    def _where(self, position: int) -> str:
        before = position
        for file, count in self.files:
            if before < count:
                return f"{file}: record {before} (number {position} of split {self.split!r})"
            before -= count
        return f"{self.path}: record {position} of split {self.split!r}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_reader": None}

    def __repr__(self) -> str:
        # Grain compares this text when an iterator is resumed: it names the data, not where they lie.
        return f"RecordSource(split={self.split!r}, records={self._length}, fingerprint={self.fingerprint!r})"


def _from_example(example: dict[str, tf_example.Values]) -> Record:
    for name in _FIELDS:
        if name not in example:
            raise KeyError(name)
    scores = np.array(example["scores"], np.float32)
    if scores.shape != (len(SCORES),):
        raise ValueError(f"scores have shape {scores.shape}")
    return Record(
        uid=example["uid"][0].decode(),
        prompt=example["prompt"][0].decode(),
        words=tuple(word.decode() for word in example["words"]),
        word_labels=tuple(example["word_labels"]) if example["has_word_labels"][0] else None,
        image=example["image"][0],
        implausibility=example["implausibility"][0] if example["has_implausibility"][0] else None,
        misalignment=example["misalignment"][0] if example["has_misalignment"][0] else None,
        scores=scores,
    )


def open_split(path: str | os.PathLike, split: str) -> RecordSource:
    """Opens one split of a prepared dataset for random access.

    Args:
      path: directory written by `write_dataset`.
      split: name of the split, e.g. ``"train"``.

    Raises:
      DatasetError: not a prepared dataset, no such split, an empty split, or a damaged file.
    """
    folder = pathlib.Path(path)
    infos = _split_infos(folder)
    if split not in infos:
        raise DatasetError(f"{folder} has no split {split!r}; it has {listing(splits(folder))}")
    files = infos[split]
    if not sum(count for _, count in files):
        raise DatasetError(f"{folder}: split {split!r} is empty; the dataset has {listing(splits(folder))}")
    for file, count in files:
        _check_file(file, count)
    return RecordSource(str(folder), split, files, _fingerprint(folder, split))


def _fingerprint(folder: pathlib.Path, split: str) -> str:
    """Start of the digest of the split's records, or of the description if another program wrote it."""
    try:
        return json.loads((folder / METADATA_FILE).read_text())[split][:12]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return hashlib.sha256((folder / INFO_FILE).read_bytes()).hexdigest()[:12]


def splits(path: str | os.PathLike) -> dict[str, int]:
    """Number of records of each split of a prepared dataset. Raises DatasetError as `open_split`."""
    return {name: sum(count for _, count in files) for name, files in _split_infos(pathlib.Path(path)).items()}


def tokenizer_path(path: str | os.PathLike) -> pathlib.Path:
    """The vocabulary beside the data. Raises DatasetError if there is none."""
    _split_infos(pathlib.Path(path))
    file = pathlib.Path(path) / TOKENIZER_FILE
    if not file.is_file():
        raise DatasetError(f"{path} has no {TOKENIZER_FILE}; prepare the data again, or name a vocabulary file")
    return file


def _split_infos(folder: pathlib.Path) -> dict[str, list[tuple[str, int]]]:
    """Files of each split with their numbers of records, from ``dataset_info.json``."""
    file = folder / INFO_FILE
    remedy = "make one with `rahf prepare synthetic|richhf18k|feedback … --out DIR`"
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'a file' if folder.exists() else 'not there'}; "
                           f"expected a prepared dataset directory: {remedy}")  # fmt: skip
    if not file.is_file():
        raise DatasetError(f"{folder} is not a prepared dataset: no {INFO_FILE}, {contents(folder)}; {remedy}")
    try:
        info = json.loads(file.read_text())
        if info["fileFormat"] != "array_record":
            raise DatasetError(f"{file}: the records are {info['fileFormat']!r}, expected 'array_record'; {remedy}")
        return {split["name"]: _files(folder, info, split) for split in info["splits"]}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} is not the description of a TFDS dataset ({error!r}); {remedy}") from error


def _files(folder: pathlib.Path, info: dict, split: dict) -> list[tuple[str, int]]:
    lengths = [int(length) for length in split.get("shardLengths", [])]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    files = []
    for number, length in enumerate(lengths):
        name = template.format(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT="array_record",
            SHARD_INDEX=f"{number:05d}",
            NUM_SHARDS=f"{len(lengths):05d}",
            SHARD_X_OF_Y=f"{number:05d}-of-{len(lengths):05d}",
        )
        files.append((str(folder / name), length))
    return files


def _check_file(file: str, count: int) -> None:
    """A file that was cut off or replaced is noticed before the first batch."""
    from array_record.python import array_record_module

    remedy = "copy the dataset again or prepare it again"
    if not os.path.isfile(file):
        raise DatasetError(f"{file} is missing, {INFO_FILE} says it holds {count} records; {remedy}")
    try:
        reader = array_record_module.ArrayRecordReader(file)
        found = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        raise DatasetError(f"{file} is cut off or damaged ({error}); {remedy}") from error
    if found != count:
        raise DatasetError(f"{file} holds {found} records, {INFO_FILE} says {count}; {remedy}")


def contents(folder: pathlib.Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "the directory is empty"
    return "it holds " + ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} records)" for name, count in counts.items()) or "no split"
