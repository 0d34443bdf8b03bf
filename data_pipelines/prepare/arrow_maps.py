"""Heatmaps in parquet columns: encoded images, structs of them, or nested lists of numbers.

Nested lists are read through Arrow's buffers. As Python objects a map of 1024 x 1024 numbers would take 32 MB and a
tenth of a second. Numbers in half precision stay as they are until they become grey levels, by a table of all 65,536 of
them: computing with them would take ten times as long.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
import pyarrow as pa
from PIL import Image

from data_pipelines.prepare.counts import Refused
from rahf import images
from rahf.core.errors import ImageError

_MOST_PIXELS = 8192 * 8192
_UNIT = 1.001  # largest value of a map in 0..1; half-precision numbers are rounded
_BYTE = 255.5
_HALF_INFINITY = 0x7C00  # as half precision stores it; what is below is finite and not negative


def is_nested(kind: pa.DataType) -> bool:
    """Whether a column holds nested lists of numbers."""
    kind = _storage(kind)
    return _is_list(kind) and _is_list(_storage(kind.value_type))


def cell(column: pa.Array, row: int, what: str) -> np.ndarray | bytes | None:
    """One map of a column, as stored.

    Args:
      column: of encoded images (binary), of structs with a field `bytes`, or of nested lists of numbers.
      row: its place.
      what: name of the map in error messages.

    Returns:
      Bytes of an encoded image; float32 or float16 [h,w]; or None where nobody was asked: null, an empty list, nothing
      but nulls.

    Raises:
      Refused: rows of different lengths, nulls among numbers, NaN, infinity, or negative values.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if not column[row].is_valid:
        return None
    if pa.types.is_struct(column.type):
        value = column[row].as_py().get("bytes")
        if value is not None and not isinstance(value, bytes):  # a text must not be opened as a path
            raise Refused("malformed", f"{what} holds {type(value).__name__}, expected bytes")
        return value or None
    if not _is_list(column.type):
        value = column[row].as_py()
        return value if isinstance(value, bytes) and value else None
    return _numbers(column.slice(row, 1).flatten(), what)


def _numbers(rows: pa.Array, what: str) -> np.ndarray | None:
    """Lists of numbers, one per row of the map → float32 [h,w]."""
    rows = rows.storage if isinstance(rows, pa.ExtensionArray) else rows
    if not len(rows):
        return None
    if not _is_list(rows.type):
        raise Refused("bad map", f"{what} is a flat list of {len(rows)} numbers, expected a list of rows")
    values, widths = rows.flatten(), _lengths(rows)
    depth = 1
    while _is_list(values.type):  # [h][w][1], or [1][h][w]
        inner = _lengths(values)
        depth, values = depth * (int(inner[0]) if len(inner) else 0), values.flatten()
        if len(inner) and (inner != inner[0]).any():
            raise Refused("bad map", f"{what} has rows of different lengths")
    if not len(values) or values.null_count == len(values):
        return None
    if rows.null_count or values.null_count:
        raise Refused("bad map", f"{what} has numbers and {values.null_count or rows.null_count} nulls")
    if (widths != widths[0]).any():
        shortest, longest = int(widths.min()), int(widths.max())
        raise Refused("bad map", f"{what} has rows of {shortest} to {longest} numbers, expected one length")
    array = values.to_numpy(zero_copy_only=False)
    shape = (len(rows), int(widths[0])) if depth == 1 else (len(rows), int(widths[0]), depth)
    array = array.reshape(shape)
    if array.ndim == 3:
        if 1 not in (shape[0], shape[2]):
            raise Refused("bad map", f"{what} has {'x'.join(map(str, shape))} numbers, expected two sides")
        array = array[..., 0] if shape[2] == 1 else array[0]
    return checked(array, what)


def checked(array: np.ndarray, what: str) -> np.ndarray:
    """float32 or float16 [h,w]. Raises Refused for NaN, infinity, and negative values."""
    if array.dtype != np.float16:
        array = np.asarray(array, np.float32)
    elif array.view(np.uint16).max() < _HALF_INFINITY:  # neither a sign bit nor an exponent of all ones
        return array
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused("bad map", f"{what} has values that are not finite (NaN or infinite)")
    if low < 0:
        raise Refused("bad map", f"{what} has negative values down to {low:g}, expected 0..1 or 0..255")
    return array


def decoded(value: np.ndarray | bytes, what: str) -> np.ndarray:
    """A map of `cell` as numbers: [h,w], float32, or uint8 as an encoded image has them.

    Raises:
      Refused: it does not decode, or has impossible values.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if _is_float(value):
            with Image.open(io.BytesIO(value)) as image:
                return checked(np.asarray(image), what)
        return images.load_grey(value, _MOST_PIXELS, what)
    except ImageError as error:
        raise Refused("undecodable", str(error)) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused("undecodable", f"{what} does not decode ({error})") from error


def _is_float(value: bytes) -> bool:
    """Whether an encoded image has floating-point pixels, which only TIFF has. Raises ImageError."""
    if images.check_header(value, _MOST_PIXELS).format != "TIFF":
        return False
    with Image.open(io.BytesIO(value)) as image:
        return image.mode == "F"


def largest(value: np.ndarray | bytes, what: str) -> float:
    """The largest value of a map of `cell`. Raises Refused if it does not decode."""
    return _largest(decoded(value, what))


def statistic(value: object) -> float | None:
    """A number of a column's statistics, which holds half precision as bytes; None if it is none."""
    if isinstance(value, bytes) and len(value) == 2:
        value = np.frombuffer(value, "<f2")[0]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def scale_of(largest: float) -> float:
    """The value that stands for "every annotator": 1 or 255, by the largest value of a shard.

    Raises:
      Refused: larger than 255.
    """
    if largest > _BYTE:
        raise Refused("bad map", f"the largest value is {largest:g}, expected maps in 0..1 or 0..255")
    return 1.0 if largest <= _UNIT else 255.0


def to_grey(values: np.ndarray, scale: float, what: str) -> np.ndarray:
    """uint8 [h,w], 255 = every annotator.

    Args:
      values: of `decoded`.
      scale: of `scale_of`, of the shard.
      what: name of the map in error messages.

    Raises:
      Refused: values above the scale.
    """
    if values.dtype == np.uint8 and scale == 255:
        return values
    largest = _largest(values)
    if largest > scale * (_UNIT if scale == 1 else _BYTE / 255):
        raise Refused("bad map", f"{what} has values up to {largest:g}, the others of its shard {scale:g}")
    if values.dtype == np.float16:
        return _grey_of_halves(scale)[values.view(np.uint16)]
    return _scaled(values, scale)


def _largest(values: np.ndarray) -> float:
    if values.dtype == np.float16 and (bits := values.view(np.uint16).max()) < _HALF_INFINITY:
        return float(bits.view(np.float16))  # numbers that are not negative are ordered as their bits
    return float(values.max(initial=0))


@functools.cache
def _grey_of_halves(scale: float) -> np.ndarray:
    """The grey level of every number in half precision, by its bits."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return _scaled(np.where((numbers >= 0) & (numbers <= 512), numbers, 0), scale)


def _scaled(values: np.ndarray, scale: float) -> np.ndarray:
    scaled = values.astype(np.float32) * np.float32(255 / scale)
    scaled += np.float32(0.5)
    return np.minimum(scaled, 255, out=scaled).astype(np.uint8)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lengths(rows: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(rows.type):
        return np.full(len(rows), rows.type.list_size)
    return np.diff(rows.offsets.to_numpy(zero_copy_only=False)[: len(rows) + 1])
