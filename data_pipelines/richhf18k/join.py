"""Extracts pictures and captions by uid from Pick-a-Pic parquet shards and folders of images.

Shards are read by column and in small batches: first the uids, then only the row groups and columns that hold a wanted
picture. The input is cut into units that are read one after the other, so that an interrupted run can go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.prepare.stored_images import SUFFIXES, storable
from data_pipelines.richhf18k import captions as captions_lib
from data_pipelines.store.layout import contents
from rahf.core.errors import DatasetError, ImageError
from rahf.core.files import check_not_lfs_pointer, read_regular

_FILES_PER_UNIT = 1000
_UID_ROWS = 4096  # rows of short text read at a time
_IMAGE_ROWS = 16  # rows with pictures read at a time
_PAIRS = (("image_0_uid", "jpg_0"), ("image_1_uid", "jpg_1"))  # Pick-a-Pic
_IMAGE_COLUMNS = ("image", "jpg")  # of mirrors with one picture per row

Keep = Callable[[str, bytes], None]


class Unit(NamedTuple):
    """A piece of the input: one parquet shard, or some files of a folder."""

    path: str
    files: tuple[str, ...]  # of a folder, relative to `path`; () for a shard

    def signature(self) -> list:
        """Names, sizes and times of modification; it changes whenever the input does."""
        if not self.files:
            return stamp(self.path)
        stamps = [stamp(os.path.join(self.path, name))[1:] for name in self.files]
        digest = hashlib.sha256(json.dumps([self.files, stamps]).encode()).hexdigest()
        return [self.path, len(self.files), digest]


class UnitResult(NamedTuple):
    """The wanted pictures of a unit, by uid."""

    captions: dict[str, str | None]  # of every picture that was stored
    again: dict[str, int]  # number of repeated occurrences
    undecodable: dict[str, str]  # reason
    unreadable: str  # "", or why the unit could not be read to its end


def stamp(path: str | os.PathLike) -> list:
    """Path, size and time of modification of a file."""
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def units(paths: Sequence[str | os.PathLike], wanted: Collection[str]) -> list[Unit]:
    """Cuts the input into units, in a fixed order: paths in the order of the arguments, within a directory by name.

    Args:
      paths: parquet shards, directories of shards, folders of images named by uid (at any depth).
      wanted: uids; other pictures of a folder are left out.

    Raises:
      DatasetError: a path that does not exist or holds neither shards nor images, or a Git-LFS pointer.
    """
    listed: list[Unit] = []
    for path in map(pathlib.Path, map(os.path.abspath, paths)):
        if path.is_file() and path.suffix.lower() == ".parquet":
            listed.append(Unit(str(path), ()))
        elif path.is_dir():
            listed += _units_of(path, wanted)
        else:
            state = "is neither a parquet shard nor a folder" if path.exists() else "does not exist"
            raise DatasetError(f"--images {path} {state}; give parquet shards or folders of <uid>.jpg|png|webp")
    for unit in listed:
        if not unit.files:
            check_not_lfs_pointer(pathlib.Path(unit.path))
    return list(dict.fromkeys(listed))


def _units_of(folder: pathlib.Path, wanted: Collection[str]) -> list[Unit]:
    shards, pictures, any_picture = [], [], False
    for root, directories, names in os.walk(folder):
        directories.sort()
        for name in sorted(names):
            file = pathlib.Path(root, name)
            if file.suffix.lower() == ".parquet" and name not in captions_lib.FILE_NAMES:
                shards.append(Unit(str(file), ()))
            elif file.suffix.lower() in SUFFIXES:
                any_picture = True
                if file.stem in wanted:
                    pictures.append(file.relative_to(folder).as_posix())
    if not shards and not any_picture:
        raise DatasetError(
            f"--images {folder} holds neither parquet shards nor images (<uid>.jpg, .jpeg, .png, .webp): "
            f"{contents(folder)}"
        )
    starts = range(0, len(pictures), _FILES_PER_UNIT)
    return shards + [Unit(str(folder), tuple(pictures[i : i + _FILES_PER_UNIT])) for i in starts]


def extract(unit: Unit, wanted: Collection[str], have: Collection[str], keep: Keep) -> UnitResult:
    """Extracts the wanted pictures of one unit. The first occurrence that decodes is used.

    Args:
      unit: what to read.
      wanted: uids of the records.
      have: uids that earlier units have given.
      keep: called with uid and the bytes to store.
    """
    result = UnitResult({}, {}, {}, "")
    occurrences = _from_folder(unit) if unit.files else _from_shard(unit.path, wanted, have, result)
    try:
        for uid, data, caption in occurrences:
            if uid in have or uid in result.captions:
                result.again[uid] = result.again.get(uid, 0) + 1
                continue
            try:
                if isinstance(data, _NotBytes):
                    raise ImageError(f"picture {uid} of {unit.path}: {data}")
                keep(uid, storable(data or b"", f"picture {uid} of {unit.path}"))
            except ImageError as error:
                result.undecodable.setdefault(uid, str(error))
            else:
                result.captions[uid] = caption
                result.undecodable.pop(uid, None)
    except _Unreadable as error:
        return result._replace(unreadable=str(error))
    return result


class _Unreadable(Exception):
    pass


class _NotBytes(str):
    """Says that a cell of a column of pictures holds something else, which must not be opened as a path."""


def _from_folder(unit: Unit) -> Iterator[tuple[str, bytes, str | None]]:
    for name in unit.files:
        try:
            data = read_regular(pathlib.Path(unit.path, name))
        except OSError:
            data = b""  # it is then counted as undecodable
        yield pathlib.PurePosixPath(name).stem, data, None


def _from_shard(
    path: str, wanted: Collection[str], have: Collection[str], result: UnitResult
) -> Iterator[tuple[str, bytes | None, str | None]]:
    """Every occurrence of a wanted uid: uid, picture (None if an earlier occurrence is used) and caption."""
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            pairs, caption_column = _layout(path, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                hits = list(_hits(file, group, pairs, caption_column, wanted))
                needed = {(row, side) for row, side, uid, _ in hits if uid not in have and uid not in result.captions}
                pictures = _pictures(file, group, pairs, needed)
                for row, side, uid, caption in hits:
                    yield uid, next(pictures) if (row, side) in needed else None, caption
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _Unreadable(f"{path} cannot be read to its end ({' '.join(str(error).split())})") from error


def _layout(path: str, names: Iterable[str]) -> tuple[list[tuple[str, str]], str | None]:
    """Pairs of uid column and image column, and the caption column."""
    names = list(names)
    pairs = [pair for pair in _PAIRS if set(pair) <= set(names)]
    if not pairs:
        uid = next((name for name in captions_lib.UID_COLUMNS if name in names), None)
        image = next((name for name in _IMAGE_COLUMNS if name in names), None)
        pairs = [(uid, image)] if uid and image else []
    if not pairs:
        raise DatasetError(
            f"{path} is not a Pick-a-Pic shard: expected the columns image_0_uid, jpg_0, image_1_uid, jpg_1, "
            f"caption (or filename, image, caption), found {', '.join(names)}"
        )
    return pairs, next((name for name in captions_lib.CAPTION_COLUMNS if name in names), None)


def _hits(file, group: int, pairs, caption_column: str | None, wanted) -> Iterator[tuple[int, int, str, str | None]]:
    """Row, side, uid and caption of every wanted picture of a row group, in order."""
    columns = [uid for uid, _ in pairs] + ([caption_column] if caption_column else [])
    start = 0
    for batch in file.iter_batches(_UID_ROWS, row_groups=[group], columns=columns, use_threads=False):
        texts = {name: _texts(batch.column(name)) for name in columns}
        for row in range(batch.num_rows):
            for side, (column, _) in enumerate(pairs):
                uid = captions_lib.uid_from(column, texts[column][row])
                if uid in wanted:
                    yield start + row, side, uid, texts[caption_column][row] if caption_column else None
        start += batch.num_rows


def _texts(column: pa.Array) -> list[str | None]:
    """The texts of a column; None for one that is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text_or_none(cell) for cell in column]


def _text_or_none(cell: pa.Scalar) -> str | None:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def _picture(cell: pa.Scalar, column: str) -> bytes | _NotBytes | None:
    """The encoded picture in a cell: bytes, or a struct of bytes."""
    try:
        value = cell.as_py()
    except ValueError:  # text that is not UTF-8
        return _NotBytes(f"column {column} holds {cell.type}, expected bytes")
    value = value.get("bytes") if isinstance(value, dict) else value
    if value is None or isinstance(value, bytes):
        return value
    return _NotBytes(f"column {column} holds {type(value).__name__}, expected bytes; a path is not followed")


def _pictures(file, group: int, pairs, needed: set[tuple[int, int]]) -> Iterator[bytes | _NotBytes | None]:
    """Encoded pictures of the needed places of a row group, in order of row and side."""
    sides = sorted({side for _, side in needed})
    if not sides:
        return
    columns = [pairs[side][1] for side in sides]
    start = 0
    for batch in file.iter_batches(_IMAGE_ROWS, row_groups=[group], columns=columns, use_threads=False):
        for row in range(batch.num_rows):
            for side in sides:
                if (start + row, side) in needed:
                    yield _picture(batch.column(pairs[side][1])[row], pairs[side][1])
        start += batch.num_rows
