"""Captions by picture uid, from JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rahf.core.errors import DatasetError
from rahf.core.files import check_not_lfs_pointer

#: Names of a captions file in a folder of images.
FILE_NAMES = ("captions.jsonl", "captions.csv", "captions.tsv", "captions.parquet")
UID_COLUMNS = ("uid", "image_uid", "filename", "file_name")
PAIR_COLUMNS = ("image_0_uid", "image_1_uid")  # Pick-a-Pic: one caption for two pictures
CAPTION_COLUMNS = ("caption", "prompt")


def uid_from(column: str, value: Any) -> str:
    """The uid in a column: as it is, or the stem of a file name."""
    text = "" if value is None else str(value).strip()
    return pathlib.PurePosixPath(text).stem if column.startswith("file") else text


def load(path: str | pathlib.Path, wanted: Collection[str]) -> dict[str, str]:
    """Reads the captions of the wanted pictures; the first one of a picture is used.

    Args:
      path: ``.jsonl`` with lines like ``{"uid": …, "caption": …}``, ``.csv`` or ``.tsv`` with a header
        line, or ``.parquet``. Columns: uid (or image_uid, filename; or image_0_uid and image_1_uid) and
        caption (or prompt).
      wanted: uids.

    Raises:
      DatasetError: no such file, unknown kind, missing columns, or a damaged line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: no such captions file")
    check_not_lfs_pointer(path)
    kinds = {".jsonl": _jsonl, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
    if path.suffix.lower() not in kinds:
        raise DatasetError(f"{path}: captions are read from {', '.join(kinds)}")
    captions: dict[str, str] = {}
    for where, row in kinds[path.suffix.lower()](path):
        uid_columns = [name for name in PAIR_COLUMNS if name in row]
        uid_columns = uid_columns or [name for name in UID_COLUMNS if name in row][:1]
        caption_column = next((name for name in CAPTION_COLUMNS if name in row), None)
        if not uid_columns or caption_column is None:
            raise DatasetError(
                f"{where}: expected a column 'uid' and a column 'caption', found {', '.join(map(str, row)) or 'none'}"
            )
        caption = row[caption_column]
        for column in uid_columns:
            uid = uid_from(column, row[column])
            if uid in wanted and caption:
                captions.setdefault(uid, str(caption))
    return captions


def _jsonl(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DatasetError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{path}, line {number}: expected an object like {{'uid': …, 'caption': …}}")
            yield f"{path}, line {number}", row


def _table(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        for row in (reader := csv.DictReader(file, delimiter=delimiter)):
            yield f"{path}, line {reader.line_num}", row


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            needed = (*UID_COLUMNS, *PAIR_COLUMNS, *CAPTION_COLUMNS)
            columns = [name for name in file.schema_arrow.names if name in needed]
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for row in batch.to_pylist():
                    yield str(path), row
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from error
