"""Records whose JPEG is damaged in the middle: they are used as the decoder repairs them, said by name, and counted."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

#: Damaged records that are named; the others are only counted.
MOST_NAMED = 5
_ENTRY = struct.Struct("<q")


class DamageLog(Protocol):
    """Where whoever makes an example notes the index of a record whose picture is damaged."""

    def add(self, index: int) -> None: ...


class _Listed:
    """In memory, for threads of this process."""

    def __init__(self, seen: set[int], first: int):
        self.seen, self.first = seen, first

    def add(self, index: int) -> None:
        self.seen.add(self.first + index)


class _Filed:
    """In a file, for worker processes; picklable."""

    def __init__(self, path: str, first: int):
        self.path, self.first = path, first

    def add(self, index: int) -> None:
        with open(self.path, "ab", buffering=0) as file:  # one write at the end of a file: whole, whoever writes beside
            file.write(_ENTRY.pack(self.first + index))


class Damage:
    """The damaged records that a loader has met.

    Attributes:
      records: their indices, counted through all sets.
    """

    def __init__(self, source: Any, where: str):
        """`source`: the records by index; `where`: dataset and split, for messages."""
        self.records: set[int] = set()
        self._source, self._where, self._seen, self._path = source, where, set(), ""

    def log(self, first: int = 0, processes: bool = False) -> DamageLog:
        """A log for the set whose records are counted from `first` on; `processes`: written by other processes."""
        if not processes:
            return _Listed(self._seen, first)
        if not self._path:
            handle, self._path = tempfile.mkstemp(prefix="rahf-damaged-")
            os.close(handle)
        return _Filed(self._path, first)

    def collect(self, report: Callable[[str], None]) -> None:
        """Reads the logs; says by name what is new."""
        if self._path and os.path.getsize(self._path):
            with open(self._path, "rb") as file:
                data = file.read()
            self._seen.update(index for (index,) in _ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size]))
        if len(self._seen) == len(self.records):
            return
        for index in sorted(self._seen.copy() - self.records):
            self.records.add(index)
            if len(self.records) <= MOST_NAMED:
                record = named(index, self._source, self._where)
                report(
                    f"warning: {record}: the JPEG is damaged in the middle; it is used as the decoder repairs it, grey "
                    "or displaced behind the damage; rahf prepare leaves it out"
                )
            elif len(self.records) == MOST_NAMED + 1:
                report("warning: further damaged pictures are not named, only counted")

    def close(self) -> None:
        """Removes the file."""
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._path = ""


def named(record: int, source: Any, where: str) -> str:
    """Number and uid of a record, for messages."""
    try:
        uid = f" (uid {source[record].uid!r})"
    except Exception:  # noqa: BLE001 - reading the record may be what failed
        uid = ""
    return f"record {record}{uid} of {where}"
