"""Squares of a prepared dataset's pictures, computed once: the work behind `rahf prepare squares`.

Decoding a large JPEG in full and reducing it takes longer than all the rest of an example. With the square beside the
picture a loader reads both and decodes the picture only for crops.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines import store
from data_pipelines.prepare.processes import mapper
from data_pipelines.prepare.progress import progress_bars
from data_pipelines.store import layout, schema, squares
from data_pipelines.store.records import Record
from rahf import images
from rahf.core import json_text, terminal
from rahf.core.errors import ArgumentError, DatasetError
from rahf.core.files import read_regular

#: Sides of squares, in pixels, that can be stored.
SIDES = range(8, 4097)
# Files that `write_dataset` writes itself.
_WRITTEN = (layout.FEATURES_FILE, store.INFO_FILE, store.METADATA_FILE, store.TOKENIZER_FILE, squares.FILE)


@dataclasses.dataclass
class SquareCounts:
    """What `prepare` has written.

    Attributes:
      records: number of records of each split.
      without: records without a square, with the reason, as text.
    """

    records: dict[str, int]
    without: list[str]


class _Square:
    """Function: a record → the record with its square, and None or why it has none; picklable."""

    def __init__(self, side: int):
        self.side = side

    def __call__(self, record: Record) -> tuple[Record, str | None]:
        try:
            return record._replace(square=images.decode_resized(record.image, self.side)), None
        except images.ImageError as error:  # as it is stored: whoever reads the record decides what to do
            return record._replace(square=None), str(error)


def prepare(
    data: str | os.PathLike, out: str | os.PathLike, side: int, workers: int = 0, progress: bool = True
) -> SquareCounts:
    """Writes a prepared dataset once more, with the square of every picture beside it.

    Everything else stays as it is: records, their order and splits, vocabulary, data sheet and other files. Pictures
    that do not decode, or are damaged in the middle, get no square. The bytes written do not depend on `workers`.

    Args:
      data: a dataset of pictures with feedback or fixations.
      out: directory to make; may be `data` itself, which is replaced when all is written.
      side: of the squares in pixels, the `image_size` of the network.
      workers: processes that decode; 0 decodes in this one.
      progress: show a bar on the terminal.

    Raises:
      ArgumentError: a size that squares cannot have, or fewer than no workers.
      DatasetError: `data` is not such a dataset, or damaged; `out` holds something else.
    """
    if side not in SIDES or workers < 0:
        raise ArgumentError(
            f"size {side}, workers {workers}: expected {SIDES[0]} to {SIDES[-1]} pixels, the image_size of the "
            "network, and no negative number of workers"
        )
    folder, counts = pathlib.Path(data), store.splits(data)
    _check_kind(folder)
    layout.check_replaceable(pathlib.Path(out))
    optional = [name for name in schema.OPTIONAL if name == "square" or store.has_field(folder, name)]
    without: list[str] = []
    numbers, total = itertools.count(1), sum(counts.values())
    with progress_bars(terminal.console(quiet=not progress)) as bars, mapper(_Square(side), workers) as apply:

        def records(split: str) -> Iterator[Record]:
            if not counts[split]:
                return
            source = store.open_split(folder, split, old_squares=True)
            for record, reason in apply(source[index] for index in range(len(source))):
                if reason is not None:
                    without.append(f"split {split!r}, uid {record.uid!r}: {reason}")
                bars("computing squares", next(numbers), total)
                yield record

        store.write_dataset(
            out,
            {split: records(split) for split in counts},
            json_text.parse_object(read_regular(folder / store.INFO_FILE)).get("description", ""),
            tokenizer=_content(folder / store.TOKENIZER_FILE),
            extra={**_other_files(folder), squares.FILE: squares.description(side)},
            optional=optional,
        )
    return SquareCounts(counts, without)


def _check_kind(folder: pathlib.Path) -> None:
    """Raises DatasetError unless the dataset's records are `Record`s."""
    name = json_text.parse_object(read_regular(folder / store.INFO_FILE)).get("name")
    if name != store.NAME:
        raise DatasetError(
            f"{folder} holds records of the kind {name!r}, expected {store.NAME!r}: only pictures with feedback or "
            "fixations have a square"
        )


def _other_files(folder: pathlib.Path) -> dict[str, Callable[[], bytes]]:
    """The files beside the records, such as the data sheet, by name."""
    shards = {pathlib.Path(file).name for files in layout.split_infos(folder).values() for file, _ in files}
    kept = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name not in shards and f.name not in _WRITTEN]
    return {file.name: _reader(file) for file in kept}


def _reader(file: pathlib.Path) -> Callable[[], bytes]:
    return lambda: read_regular(file)


def _content(file: pathlib.Path) -> Any:
    return read_regular(file) if file.is_file() else None
