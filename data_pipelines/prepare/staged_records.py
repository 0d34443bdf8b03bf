"""Records on their way from the first pass to the second, on disk: an interrupted preparation goes on.

``OUT.partial`` holds the plan (a digest of all inputs) and, per unit of work, the finished records and a small file of
counts. A unit's small file is written last and atomically: a unit without it is done again.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from data_pipelines.prepare.datasheet import SMALL_SHAPE
from data_pipelines.store import schema, tf_example
from data_pipelines.store.layout import contents
from data_pipelines.store.records import Record
from rahf.core import json_text
from rahf.core.batch import HEATMAPS
from rahf.core.errors import DatasetError
from rahf.core.files import UNFINISHED, read_regular, write_atomically

_PLAN = "plan.json"
_SMALL = "small_"
_LENGTH = struct.Struct("<Q")


class StagedRecords:
    """Finished units of a preparation."""

    def __init__(self, folder: pathlib.Path, plan: str):
        """Opens or makes the directory; removes the content of one that belongs to another plan.

        Raises:
          DatasetError: the directory holds something else.
        """
        self.folder, self.continues = folder, False
        if folder.exists():
            self.continues = self._read_plan() == plan
            if not self.continues:
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _PLAN, json.dumps({"plan": plan}))

    def _read_plan(self) -> str | None:
        try:
            return json_text.parse(read_regular(self.folder / _PLAN))["plan"]
        except (ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            if self.folder.is_dir() and all(name.endswith(UNFINISHED) for name in os.listdir(self.folder)):
                return None
            raise DatasetError(
                f"{self.folder} is needed for intermediate results but holds something else "
                f"({contents(self.folder) if self.folder.is_dir() else 'a file'}); move it away"
            ) from error

    def finished(self, number: int) -> dict[str, Any] | None:
        """What `UnitWriter.finish` stored of a unit; None if it was not finished."""
        try:
            return json_text.parse_object(read_regular(self._file(number, "json")))
        except (FileNotFoundError, ValueError):  # not there, or damaged: the unit is read again
            return None

    def writer(self, number: int) -> UnitWriter:
        """Begins a unit anew."""
        return UnitWriter(self, number)

    def records(self, number: int, split: str) -> Iterator[tuple[Record, dict[str, np.ndarray]]]:
        """The records of a unit that belong to a split, in order, with the small maps that were stored with them."""
        try:
            file = open(self._file(number, split), "rb")
        except FileNotFoundError:
            return
        with file:
            while head := file.read(_LENGTH.size):
                features = tf_example.parse(file.read(_LENGTH.unpack(head)[0]))
                small = {
                    name: np.frombuffer(features[_SMALL + name][0], np.float32).reshape(SMALL_SHAPE)
                    for name in HEATMAPS
                    if _SMALL + name in features
                }
                yield schema.from_example(features), small

    def remove(self) -> None:
        """Deletes everything; the dataset is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int, kind: str) -> pathlib.Path:
        return self.folder / f"{number:06d}.{kind}"


class UnitWriter:
    """Writes the records of one unit, one file per split."""

    def __init__(self, staged: StagedRecords, number: int):
        self.staged, self.number = staged, number
        self._files: dict[str, BinaryIO] = {}
        for file in staged.folder.glob(f"{number:06d}.*"):
            file.unlink()

    def add(self, split: str, record: Record, small: Mapping[str, np.ndarray]) -> None:
        """Appends a record and the small maps of its heatmaps, by name."""
        if split not in self._files:
            self._files[split] = open(self.staged._file(self.number, split), "wb")
        features = schema.to_features(record)
        features |= {_SMALL + name: [np.asarray(values, np.float32).tobytes()] for name, values in small.items()}
        payload = tf_example.serialize(features)
        self._files[split].write(_LENGTH.pack(len(payload)) + payload)

    def finish(self, result: dict[str, Any]) -> None:
        """Closes the files, and stores the unit's result: from now on it counts as done."""
        self.close()
        write_atomically(self.staged._file(self.number, "json"), json.dumps(result))

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
