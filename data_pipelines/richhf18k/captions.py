"""Captions by picture uid, from JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

import codecs
import contextlib
import csv
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import check_not_lfs_pointer

#: Names of a captions file in a folder of images.
FILE_NAMES = ("captions.jsonl", "captions.csv", "captions.tsv", "captions.parquet")
UID_COLUMNS = ("uid", "image_uid", "filename", "file_name")
_IMAGE = "image"  # in texts, as `rahf select` and `rahf score` write it; in parquet files it holds the picture itself
PAIR_COLUMNS = ("image_0_uid", "image_1_uid")  # Pick-a-Pic: one caption for two pictures
CAPTION_COLUMNS = ("caption", "prompt")
_LONGEST = 100_000  # characters of a caption
_LONGEST_FIELD = 1 << 30  # characters of a field of CSV
_MOST_PROBLEMS = 100  # that are listed, of one file


def uid_from(column: str, value: Any) -> str:
    """The uid in a column: as it is, or the stem of a file name."""
    text = "" if value is None else str(value).strip()
    return pathlib.PurePosixPath(text).stem if column.startswith("file") else text


class Captions(NamedTuple):
    """The captions of a file by uid, and one line for each row that cannot be used."""

    by_uid: dict[str, str]
    problems: list[str]


def load(path: str | pathlib.Path, wanted: Collection[str]) -> Captions:
    """Reads the captions of the wanted pictures; the first one of a picture is used.

    Args:
      path: ``.jsonl`` with lines like ``{"uid": …, "caption": …}``, ``.csv`` or ``.tsv`` with a header
        line, or ``.parquet``. Columns: uid (or image_uid, filename; but in parquet image; or image_0_uid and
        image_1_uid) and caption (or prompt).
      wanted: uids.

    Raises:
      DatasetError: no such file, unknown kind, missing columns, or not a text in UTF-8 at all.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: no such captions file")
    check_not_lfs_pointer(path)
    kinds = {".jsonl": _jsonl, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
    if path.suffix.lower() not in kinds:
        raise DatasetError(f"{path}: captions are read from {', '.join(kinds)}")
    captions, problems = Captions({}, []), 0
    for where, row in kinds[path.suffix.lower()](path):
        try:
            _add(captions.by_uid, row, wanted)
        except ValueError as error:
            problems += 1
            if len(captions.problems) < _MOST_PROBLEMS:
                captions.problems.append(f"{where}: {error}")
    if problems > _MOST_PROBLEMS:
        captions.problems.append(f"{path}: {problems - _MOST_PROBLEMS} more rows cannot be used")
    return captions


def _add(captions: dict[str, str], row: Mapping[str, Any] | ValueError, wanted: Collection[str]) -> None:
    """Adds the caption of a row. Raises ValueError saying what is wrong with it."""
    if isinstance(row, ValueError):
        raise row
    uid_columns, caption_column = _columns(row)
    if not uid_columns or caption_column is None:
        raise ValueError(_expected(row))
    caption = row[caption_column]
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"{caption_column} is {caption!r:.60}, expected text")
    for column in uid_columns:
        uid = uid_from(column, row[column])
        if uid in wanted and caption:
            _check_text(caption, caption_column)
            captions.setdefault(uid, caption)


def _check_text(caption: str, column: str) -> None:
    if len(caption) > _LONGEST:
        raise ValueError(f"{column} has {len(caption)} characters, more than {_LONGEST}")
    if not caption.isprintable() and any(0xD800 <= ord(char) <= 0xDFFF for char in caption):
        raise ValueError(f"{column} is not UTF-8: {caption.encode('utf-8', 'surrogateescape')!r:.60}")


def _columns(names: Iterable[str]) -> tuple[list[str], str | None]:
    """The columns of uids, and that of captions."""
    names = list(names)
    uids = [name for name in PAIR_COLUMNS if name in names]
    uids = uids or [name for name in (*UID_COLUMNS, _IMAGE) if name in names][:1]
    return uids, next((name for name in CAPTION_COLUMNS if name in names), None)


def _expected(names: Iterable[str]) -> str:
    return f"expected a column 'uid' and a column 'caption', found {', '.join(map(str, names)) or 'none'}"


Rows = Iterator[tuple[str, Mapping[str, Any] | ValueError]]


def _jsonl(path: pathlib.Path) -> Rows:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                continue
            try:
                row = json_text.parse_object(line.removeprefix(codecs.BOM_UTF8).decode())
            except ValueError as error:
                row = ValueError(f"not JSON ({error})")
            yield f"{path}, line {number}", row


def _table(path: pathlib.Path) -> Rows:
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DatasetError(f"{path}: is UTF-16, not UTF-8; save it as UTF-8")
    # A byte that is not UTF-8 becomes a surrogate, which `_check_text` finds: it costs one row, not the file.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _long_fields():
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        uid_columns, caption_column = _columns(reader.fieldnames or ())
        if not uid_columns or caption_column is None:
            raise DatasetError(f"{path}, line 1: {_expected(reader.fieldnames or ())}")
        while True:
            try:
                row: Any = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row = ValueError(str(error))
            yield f"{path}, line {reader.line_num}", row


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lets the csv module read fields of any length that fits into memory, so that a long one costs no others."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: pathlib.Path) -> Rows:
    try:
        with pq.ParquetFile(path) as file:
            needed = (*UID_COLUMNS, *PAIR_COLUMNS, *CAPTION_COLUMNS)
            columns = [name for name in file.schema_arrow.names if name in needed]
            uid_columns, caption_column = _columns(columns)
            if not uid_columns or caption_column is None:
                raise DatasetError(f"{path}: {_expected(file.schema_arrow.names)}")
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for at in range(batch.num_rows):
                    try:
                        row: Any = {name: batch.column(name)[at].as_py() for name in columns}
                    except ValueError as error:  # text that is not UTF-8
                        row = error
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from error
