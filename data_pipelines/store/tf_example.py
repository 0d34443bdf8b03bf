"""`tf.train.Example` without TensorFlow: bytes ↔ ``{feature name: list of bytes, floats or ints}``.

The message is ``Example{1: Features{1: map<string, Feature>}}`` with ``Feature`` one of ``1: BytesList``,
``2: FloatList``, ``3: Int64List``, whose values are field 1, packed or not. Unknown fields are skipped, as
protocol buffers demand.
"""

from __future__ import annotations

import struct
from typing import Iterator, Mapping, Sequence, Union

from rahf.core.errors import ExampleError

Values = Union[list[bytes], list[float], list[int]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def parse(payload: bytes) -> dict[str, Values]:
    """Parses one serialized example.

    Args:
      payload: the serialized message.

    Returns:
      The values of every feature. A feature without any list has no values. Floats are Python floats
      holding float32 values, integers are signed 64 bit.

    Raises:
      ExampleError: cut off, malformed, or a list of the wrong kind.
    """
    features: dict[str, Values] = {}
    for number, wire, start, end in _fields(payload, 0, len(payload)):
        if number != 1 or wire != _BYTES:
            continue
        for inner, inner_wire, entry_start, entry_end in _fields(payload, start, end):
            if inner == 1 and inner_wire == _BYTES:
                name, values = _entry(payload, entry_start, entry_end)
                features[name] = values
    return features


def _entry(data: bytes, start: int, end: int) -> tuple[str, Values]:
    """One entry of the map: feature name and its values."""
    name, values = "", []
    for number, wire, at, stop in _fields(data, start, end):
        if wire != _BYTES:
            continue
        if number == 1:
            try:
                name = data[at:stop].decode()
            except UnicodeDecodeError as error:
                raise ExampleError(f"the feature name at byte {at} is not UTF-8") from error
        elif number == 2:
            for kind, kind_wire, list_at, list_stop in _fields(data, at, stop):
                if kind_wire == _BYTES and kind in _READERS:
                    values = _READERS[kind](data, list_at, list_stop)
    return name, values


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type and extent of the content of each field of a message."""
    while position < end:
        key = data[position]
        if key < 0x80:
            position += 1
        else:
            key, position = _varint(data, position, end)
        wire = key & 7
        if wire == _BYTES:
            size = data[position] if position < end else 0x80
            if size < 0x80:
                position += 1
            else:
                size, position = _varint(data, position, end)
            stop = position + size
        elif wire == _VARINT:
            _, stop = _varint(data, position, end)
        elif wire == _FIXED64:
            stop = position + 8
        elif wire == _FIXED32:
            stop = position + 4
        else:
            raise ExampleError(f"unknown wire type {wire} at byte {position}")
        if stop > end:
            raise ExampleError(f"a field at byte {position} ends at {stop}, but its message ends at {end}")
        yield key >> 3, wire, position, stop
        position = stop


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """An unsigned variable-length integer, and the position behind it."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift > 63:
            raise ExampleError(f"a variable-length integer of more than 10 bytes ends at byte {position}")
    raise ExampleError(f"cut off inside a variable-length integer at byte {position}")


def _bytes_list(data: bytes, start: int, end: int) -> list[bytes]:
    return [data[at:stop] for number, wire, at, stop in _fields(data, start, end) if (number, wire) == (1, _BYTES)]


def _float_list(data: bytes, start: int, end: int) -> list[float]:
    values: list[float] = []
    for number, wire, at, stop in _fields(data, start, end):
        if number == 1 and wire in (_BYTES, _FIXED32):
            if (stop - at) % 4:
                raise ExampleError(f"a list of floats at byte {at} has {stop - at} bytes, not a multiple of 4")
            values += struct.unpack(f"<{(stop - at) // 4}f", data[at:stop])
    return values


def _int64_list(data: bytes, start: int, end: int) -> list[int]:
    values: list[int] = []
    for number, wire, at, stop in _fields(data, start, end):
        if number == 1 and wire in (_BYTES, _VARINT):
            while at < stop:
                value, at = _varint(data, at, stop)
                values.append(value - (1 << 64) if value >> 63 else value)
    return values


_READERS = {_BYTES_LIST: _bytes_list, _FLOAT_LIST: _float_list, _INT64_LIST: _int64_list}


def serialize(features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]]) -> bytes:
    """The inverse of `parse`: features sorted by name, so that equal features give equal bytes.

    Args:
      features: for each name a list of bytes, of floats (stored as float32) or of ints (64 bit, signed).

    Raises:
      TypeError: a list of another kind.
    """
    entries = b""
    for name in sorted(features):
        feature = _tagged(1, name.encode()) + _tagged(2, _feature(name, list(features[name])))
        entries += _tagged(1, feature)
    return _tagged(1, entries)


def _feature(name: str, values: list) -> bytes:
    if all(isinstance(value, bytes) for value in values):
        return _tagged(_BYTES_LIST, b"".join(_tagged(1, value) for value in values))
    if all(isinstance(value, int) for value in values):
        packed = b"".join(_to_varint(value & 0xFFFFFFFFFFFFFFFF) for value in values)
        return _tagged(_INT64_LIST, _tagged(1, packed))
    if all(isinstance(value, (int, float)) for value in values):
        return _tagged(_FLOAT_LIST, _tagged(1, struct.pack(f"<{len(values)}f", *values)))
    raise TypeError(f"feature {name!r}: expected only bytes, only floats or only ints, found {values!r:.80}")


def _tagged(number: int, content: bytes) -> bytes:
    return _to_varint(number << 3 | _BYTES) + _to_varint(len(content)) + content


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
