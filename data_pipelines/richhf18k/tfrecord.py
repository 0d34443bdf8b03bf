"""TFRecord files without TensorFlow: framing and both checksums.

A record is: length (u64, little endian), masked CRC32C of those 8 bytes (u32), payload, masked CRC32C of the
payload (u32). A damaged payload costs one record: the checksum of the length shows where the next one begins. A
damaged length ends the file.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

from data_pipelines.store import tf_example
from rahf.core.errors import DatasetError, ExampleError
from rahf.core.files import check_not_lfs_pointer, open_atomically

_HEAD = struct.Struct("<QI")
_FOOT = struct.Struct("<I")


class TFRecordEntry(NamedTuple):
    """One record of a file, or the reason why it cannot be read."""

    number: int  # position in the file, from 0
    offset: int  # byte at which its frame begins
    features: dict[str, tf_example.Values] | None  # None if the record is damaged
    problem: str  # "" or what is wrong, with the byte offset
    fatal: bool  # nothing behind this record can be read


def masked_crc(data: bytes) -> int:
    """CRC32C (Castagnoli), turned right by 15 bits plus a constant, as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_examples(path: str | os.PathLike) -> Iterator[TFRecordEntry]:
    """Reads every record of a TFRecord file of `tf.train.Example`, one at a time.

    Args:
      path: the file.

    Yields:
      Entries in order. Damaged records come as entries with `problem` set; after a fatal one nothing follows.

    Raises:
      DatasetError: no such file, or a Git-LFS pointer instead of the data.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected a TFRecord file of RichHF-18K")
    check_not_lfs_pointer(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        number = offset = 0
        while offset < size:
            entry, offset = _next(file, number, offset, size)
            yield entry
            if entry.fatal:
                return
            number += 1


def _next(file: BinaryIO, number: int, offset: int, size: int) -> tuple[TFRecordEntry, int]:
    """The record at `offset`, and the offset of the one behind it."""

    def bad(problem: str, fatal: bool) -> TFRecordEntry:
        return TFRecordEntry(number, offset, None, f"{problem} at byte {offset}", fatal)

    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return bad(f"the file is cut off inside the frame of record {number}", True), size
    length, length_crc = _HEAD.unpack(head)
    if masked_crc(head[:8]) != length_crc:
        hint = "; not a TFRecord file, or damaged from the start" if number == 0 else "; the rest is unreadable"
        return bad(f"CRC error in the length of record {number}{hint},", True), size
    if length + _FOOT.size > size - offset - _HEAD.size:
        return bad(f"the file is cut off: record {number} has {length} bytes,", True), size
    payload, foot = file.read(length), file.read(_FOOT.size)
    following = offset + _HEAD.size + length + _FOOT.size
    if masked_crc(payload) != _FOOT.unpack(foot)[0]:
        return bad(f"CRC error in the payload of record {number}", False), following
    try:
        return TFRecordEntry(number, offset, tf_example.parse(payload), "", False), following
    except ExampleError as error:
        return bad(f"record {number} is not a tf.train.Example ({error})", False), following


def write(path: str | os.PathLike, payloads: Iterable[bytes]) -> None:
    """Writes serialized examples in TFRecord framing; the counterpart of `read_examples`."""
    with open_atomically(path) as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _FOOT.pack(masked_crc(length)) + payload + _FOOT.pack(masked_crc(payload)))
