"""Maps of floating-point numbers in nested lists, straight from the pages of a parquet file.

Arrow takes 30 ns for every number of half precision that is stored in a dictionary, which is how they are stored by
default; a picture's map has a million. Whole runs of numbers are unpacked here, in half the time. Only what a
writer makes of maps without gaps is read: version 1 data pages, numbers that are plain or in a dictionary, rows of one
length, no nulls among the numbers. Anything else is `Unusual`, and is left to Arrow, which also names faults.

Source: the format's specification, https://github.com/apache/parquet-format (README, Encodings, parquet.thrift).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_LEVELS = (5, 2)  # definition, repetition: of an optional list of optional lists of optional numbers
_REPETITION_BITS, _DEFINITION_BITS = 2, 3
_EMPTY = 1  # largest definition level of a map that is null or has no rows
_TYPES = {("FIXED_LEN_BYTE_ARRAY", 2): np.dtype("<f2"), ("FLOAT", 0): np.dtype("<f4")}
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2  # kinds of pages
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8  # encodings
_MOST_INDEX_BITS = 16
_HEADER_BYTES = 1 << 12  # more than a page header takes
_MOST_PAGE_BYTES = 1 << 28
_DEEPEST = 4  # structs within structs of a page header


class Unusual(Exception):
    """Pages that are not read here: another layout of them, nulls among the numbers, or damage."""


class _Chunk(NamedTuple):
    """One column of one row group."""

    start: int  # of its first page in the file
    size: int  # of all pages, bytes
    dtype: np.dtype
    codec: pa.Codec | None


def maps(file: BinaryIO, parquet: pq.ParquetFile, group: int, column: str) -> Iterator[np.ndarray | None]:
    """The maps of a row group, one per row: float16 or float32 [h,w], not checked; None: null or no numbers.

    Args:
      file: the same file, opened for reading bytes; its position is kept here.
      parquet: the file, whose footer has been read.
      group: number of the row group.
      column: name of the column.

    Raises:
      Unusual: from the row on at which Arrow must read. Earlier rows are right.
    """
    try:
        yield from _maps(file, _chunk(parquet, group, column))
    except (ValueError, IndexError, OverflowError, OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise Unusual(str(error)) from error


def _chunk(parquet: pq.ParquetFile, group: int, column: str) -> _Chunk:
    row_group = parquet.metadata.row_group(group)
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        if chunk.path_in_schema.split(".")[0] != column:
            continue
        kind = parquet.schema.column(number)
        dtype = _TYPES.get((chunk.physical_type, max(0, kind.length or 0)))
        levels = (kind.max_definition_level, kind.max_repetition_level)
        if dtype is None or levels != _LEVELS or chunk.compression not in _CODECS:
            raise Unusual(f"{chunk.physical_type} with levels {levels}, {chunk.compression}")
        codec = _CODECS[chunk.compression]
        start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        return _Chunk(start, chunk.total_compressed_size, dtype, None if codec is None else pa.Codec(codec))
    raise Unusual(f"no column {column}")


def _maps(file: BinaryIO, chunk: _Chunk) -> Iterator[np.ndarray | None]:
    """Maps may begin in one page and end in another."""
    levels: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for repetition, definition, values in _pages(file, chunk):
        filled = definition == _LEVELS[0]
        whole = bool(filled.all())
        if not whole and (definition[~filled] > _EMPTY).any():
            raise Unusual("nulls among the numbers, or rows without numbers")
        places = None if whole else np.concatenate(([0], np.cumsum(filled)))  # of each entry among the numbers
        starts = [*np.flatnonzero(repetition == 0).tolist(), len(repetition)]
        for begin, end in zip([0, *starts[:-1]], starts, strict=True):
            if begin == end:  # the page begins with a map
                pass
            else:
                first, last = (begin, end) if places is None else (int(places[begin]), int(places[end]))
                levels.append(repetition[begin:end])
                numbers.append(values[first:last])
            if end < len(repetition) and levels:  # the next map begins
                yield _map(levels, numbers)
                levels, numbers = [], []
    if levels:
        yield _map(levels, numbers)


def _map(levels: list[np.ndarray], numbers: list[np.ndarray]) -> np.ndarray | None:
    """The map of a stretch of entries that begins with repetition level 0."""
    values = np.concatenate(numbers) if len(numbers) > 1 else numbers[0]
    if not len(values):
        return None
    repetition = np.concatenate(levels) if len(levels) > 1 else levels[0]
    rows = np.flatnonzero(repetition != _LEVELS[1])
    width, rest = divmod(len(values), len(rows))
    if rest or repetition[0] != 0 or (rows != np.arange(len(rows)) * width).any():
        raise Unusual("rows of different lengths")
    return values.reshape(len(rows), width)


def _pages(file: BinaryIO, chunk: _Chunk) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Repetition levels, definition levels and numbers of each data page."""
    dictionary = np.empty(0, chunk.dtype)
    place, end = chunk.start, chunk.start + chunk.size
    while place < end:
        file.seek(place)
        header, length = _struct(file.read(min(_HEADER_BYTES, end - place)), 0)
        kind, size, stored = header[1], header[2], header[3]
        place += length
        if not (0 <= size <= _MOST_PAGE_BYTES and 0 <= stored <= end - place):
            raise Unusual(f"a page of {size} bytes")
        file.seek(place)
        data = file.read(stored)
        place += stored
        if chunk.codec is not None:
            data = chunk.codec.decompress(data, decompressed_size=size, asbytes=True)
        if kind == _DICTIONARY_PAGE:
            if header[7][2] not in (_PLAIN, _PLAIN_DICTIONARY):
                raise Unusual("a dictionary that is not plain")
            dictionary = np.frombuffer(data, chunk.dtype, header[7][1])
        elif kind == _DATA_PAGE:
            yield _data_page(data, header[5], dictionary)
        else:
            raise Unusual(f"a page of kind {kind}")


def _data_page(
    data: bytes, header: dict[int, Any], dictionary: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count, encoding = header[1], header[2]
    if header[3] != _RLE or header[4] != _RLE or count < 0:
        raise Unusual("levels in another encoding")
    levels, at = [], 0
    for bits in (_REPETITION_BITS, _DEFINITION_BITS):
        length = int.from_bytes(data[at : at + 4], "little")
        levels.append(unpack(data, at + 4, at + 4 + length, bits, count))
        at += 4 + length
    repetition, definition = levels
    filled = int((definition == _LEVELS[0]).sum())
    if encoding == _PLAIN:
        return repetition, definition, np.frombuffer(data, dictionary.dtype, filled, at)
    if encoding not in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
        raise Unusual(f"numbers in encoding {encoding}")
    bits = data[at] if filled else 0
    return repetition, definition, dictionary[unpack(data, at + 1, len(data), bits, filled)]


def unpack(data: bytes, at: int, end: int, bits: int, count: int) -> np.ndarray:
    """Numbers in the hybrid of run lengths and packed bits, uint16 [count], from `data[at:end]`.

    Raises:
      Unusual: fewer numbers, or more than 16 bits of each.
    """
    if not 0 <= bits <= _MOST_INDEX_BITS:
        raise Unusual(f"numbers of {bits} bits")
    runs: list[int] = []  # the number of each run; -1 for packed ones
    lengths: list[int] = []
    pieces: list[bytes] = []
    total = 0
    while total < count and at < end:  # some thousands of runs make a map: what is done for each counts
        head = data[at]
        at += 1
        if head > 127:
            head, at = _varint(data, at - 1)
        if head & 1:
            size = (head >> 1) * bits
            pieces.append(data[at : at + size])
            at += size
            runs.append(-1)
            length = (head >> 1) * 8
        else:
            value = data[at] if bits else 0
            at += bits > 0
            if bits > 8:
                value |= data[at] << 8
                at += 1
            runs.append(value)
            length = head >> 1
        lengths.append(length)
        total += length
    if total < count or at > end:
        raise Unusual("a page that is too short")
    if not lengths:
        return np.zeros(0, np.uint16)
    lengths[-1] -= total - count  # the last packed run is filled up to eight numbers
    packed = np.array(runs) < 0
    if not pieces:
        return np.repeat(np.array(runs, np.uint16), lengths)
    values = _unpacked(b"".join(pieces), bits)
    if len(pieces) == len(runs):
        return values[:count]
    numbers = np.repeat(np.array(runs).astype(np.uint16), lengths)
    mask = np.repeat(packed, lengths)
    numbers[mask] = values[: np.count_nonzero(mask)]
    return numbers


def _unpacked(data: bytes, bits: int) -> np.ndarray:
    """Packed bits, the lowest first, eight numbers to `bits` bytes → uint16."""
    if not bits:
        return np.zeros(0, np.uint16)
    groups = np.frombuffer(data, np.uint8).reshape(-1, bits)
    numbers = np.empty((len(groups), 8), np.uint16)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        value = groups[:, first].astype(np.uint32)
        for byte in range(1, (shift + bits + 7) // 8):
            value |= groups[:, first + byte].astype(np.uint32) << np.uint32(8 * byte)
        numbers[:, place] = (value >> np.uint32(shift)) & np.uint32((1 << bits) - 1)
    return numbers.reshape(-1)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise Unusual("a number of more than 64 bits")


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol: values by the numbers of fields, and the place behind it."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            value, at = _varint(data, at)
            number = (value >> 1) ^ -(value & 1)
        if kind in (1, 2):  # the type is the value
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            value, at = _varint(data, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            fields[number] = data[at : at + length]
            at += length
        elif kind == 3:
            fields[number] = data[at]
            at += 1
        elif kind == 12 and depth < _DEEPEST:
            fields[number], at = _struct(data, at, depth + 1)
        else:
            raise Unusual(f"a page header with a field of type {kind}")
    return fields, at + 1
