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
from typing import SupportsIndex

import numpy as np

from data_pipelines.store import tf_example
from data_pipelines.store.layout import INFO_FILE, METADATA_FILE, check_file, listing, split_infos, splits
from data_pipelines.store.records import Record
from rahf.core import errors
from rahf.core.batch import SCORES
from rahf.core.errors import DatasetError

_FIELDS = (
    "uid", "prompt", "words", "word_labels", "image", "implausibility", "misalignment", "scores",
    "has_word_labels", "has_implausibility", "has_misalignment",
)  # fmt: skip


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
        except (errors.ExampleError, RuntimeError, ValueError, IndexError, OSError) as error:
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
    infos = split_infos(folder)
    if split not in infos:
        raise DatasetError(f"{folder} has no split {split!r}; it has {listing(splits(folder))}")
    files = infos[split]
    if not sum(count for _, count in files):
        raise DatasetError(f"{folder}: split {split!r} is empty; the dataset has {listing(splits(folder))}")
    for file, count in files:
        check_file(file, count)
    return RecordSource(str(folder), split, files, _fingerprint(folder, split))


def _fingerprint(folder: pathlib.Path, split: str) -> str:
    """Start of the digest of the split's records, or of the description if another program wrote it."""
    try:
        return json.loads((folder / METADATA_FILE).read_text())[split][:12]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return hashlib.sha256((folder / INFO_FILE).read_bytes()).hexdigest()[:12]
