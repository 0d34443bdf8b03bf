"""Reads prepared datasets: the records of a split by position, images and maps still encoded."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any, SupportsIndex

from data_pipelines.store import array_record_library, squares, tf_example
from data_pipelines.store.kinds import FEEDBACK, Kind
from data_pipelines.store.layout import INFO_FILE, METADATA_FILE, check_file, listing, split_infos, splits
from rahf.core import json_text
from rahf.core.errors import DatasetError, ExampleError
from rahf.core.files import read_regular


class RecordSource:
    """The records of one split, by position. A Grain data source; cheap to pickle into worker processes.

    Returned by `open_split`.
    """

    def __init__(self, path: str, split: str, files: list[tuple[str, int]], fingerprint: str, kind: Kind = FEEDBACK):
        self.path, self.split, self.files, self.fingerprint, self.kind = path, split, files, fingerprint, kind
        self._length = sum(count for _, count in files)
        self._reader = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Record number `index` (negative: from the end); a `Record`, or what the dataset's kind has.

        Raises:
          IndexError: no such record.
          DatasetError: the file is damaged or the record lacks a field.
        """
        position = index.__index__()
        position += self._length if position < 0 else 0
        if not 0 <= position < self._length:
            raise IndexError(f"{self}: no record {index.__index__()}")
        try:
            return self.kind.from_example(tf_example.parse(self._read(position)))
        except KeyError as error:
            raise DatasetError(
                f"{self._where(position)} has no field {error.args[0]!r}; it was written by another version "
                "or another program: prepare the data again"
            ) from error
        except (ExampleError, RuntimeError, ValueError, IndexError, OSError) as error:
            raise DatasetError(
                f"{self._where(position)} cannot be read ({error}): the file is damaged or cut off; "
                "copy it again or prepare the data again"
            ) from error

    def _read(self, position: int) -> bytes:
        if self._reader is None:
            array_record_data_source = array_record_library.load("array_record_data_source")
            self._reader = array_record_data_source.ArrayRecordDataSource(
                [f"{file}[0:{count}]" for file, count in self.files]
            )
        return self._reader[position]

    def _where(self, position: int) -> str:
        """File and number of a record, for messages."""
        before = position
        for file, count in self.files:
            if before < count:
                return f"{file}: record {before} (number {position} of split {self.split!r})"
            before -= count
        return f"{self.path}: record {position} of split {self.split!r}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_reader": None}

    def __repr__(self) -> str:
        # Grain compares this text when it resumes an iterator: it must not change when the files are moved.
        return f"RecordSource(split={self.split!r}, records={self._length}, fingerprint={self.fingerprint!r})"


def open_split(path: str | os.PathLike, split: str, kind: Kind = FEEDBACK, old_squares: bool = False) -> RecordSource:
    """Opens one split of a prepared dataset for random access.

    Args:
      path: directory written by `write_dataset`.
      split: name of the split, e.g. ``"train"``.
      kind: of its records.
      old_squares: whether the dataset may hold squares of another definition, which must then not be used.

    Raises:
      DatasetError: not a prepared dataset, no such split, an empty split, a damaged file, or squares of another
        definition than this program's.
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
    if not old_squares:
        squares.check(folder)
    return RecordSource(str(folder), split, files, _fingerprint(folder, split), kind)


def prompts(path: str | os.PathLike, split: str) -> list[str]:
    """The different prompts of a split, sorted; pictures are not decoded.

    Raises:
      DatasetError: as `open_split` and as the source's records.
    """
    source = open_split(path, split)
    return sorted({source[position].prompt for position in range(len(source))})


def _fingerprint(folder: pathlib.Path, split: str) -> str:
    """Start of the digest of the split's records, or of the description if another program wrote it."""
    try:
        return str(json_text.parse(read_regular(folder / METADATA_FILE))[split])[:12]
    except (OSError, ValueError, KeyError, TypeError):
        return hashlib.sha256(read_regular(folder / INFO_FILE)).hexdigest()[:12]
