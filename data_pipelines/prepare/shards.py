"""Parquet shards of published feedback: their layouts, and their rows, streamed by row group and column.

A shard is never in memory as a whole: only the needed columns are read, a few rows at a time.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.prepare import arrow_maps, nested_pages
from data_pipelines.prepare.counts import Refused
from rahf.core.errors import DatasetError
from rahf.core.files import check_not_lfs_pointer

_BUFFER = 1 << 20  # bytes of a column that are read at once
_SMALL_ROWS = 4096  # rows of short columns read at a time
_SCAN_ROWS = 4  # rows of maps read at a time
_OF = re.compile(r"-(\d{5})-of-(\d{5})")


#: Errors of a damaged shard.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


class Layout(NamedTuple):
    """The columns of a kind of shards."""

    name: str
    required: Mapping[str, tuple[str, ...]]  # role → names that it has in copies, the usual one first
    optional: Mapping[str, tuple[str, ...]]  # likewise
    ignored: tuple[str, ...]  # columns that are known and not needed
    command: str  # that reads it

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        """Role → name of the column that a shard has for it."""
        roles = {**self.required, **self.optional}
        return {role: next(n for n in known if n in names) for role, known in roles.items() if {*known} & {*names}}

    def unknown(self, names: Sequence[str]) -> list[str]:
        """Columns that nothing is known of."""
        known = {*self.ignored, *(n for group in (self.required, self.optional) for ns in group.values() for n in ns)}
        return [name for name in names if name not in known]


RICHHF = Layout(
    "RichHF-18K with pictures",
    required={"image": ("image", "jpg"), "prompt": ("caption", "prompt")},
    optional={
        "filename": ("filename", "file_name"),
        **{name: (name,) for name in ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")},
        "artifact_map": ("artifact_map", "artifact_heatmap"),
        "misalignment_map": ("misalignment_map", "misalignment_heatmap"),
        "prompt_misalignment_label": ("prompt_misalignment_label",),
    },
    ignored=(),
    command="rahf prepare richhf18k --folder DIR",
)
RAPIDATA = Layout(
    "Rapidata's rich human feedback",
    required={"image": ("image", "image_name"), "prompt": ("prompt", "sentence")},
    optional={
        **{name: (name,) for of in ("alignment", "coherence", "style") for name in (f"{of}_score", f"{of}_score_norm")},
        "alignment_heatmap": ("alignment_heatmap",),
        "coherence_heatmap": ("coherence_heatmap",),
        "word_scores": ("word_scores",),
    },
    ignored=("model", "generator", "image_path"),
    command="rahf prepare rapidata --folder DIR",
)
PICK_A_PIC = Layout(
    "Pick-a-Pic v1",
    required={name: (name,) for name in ("image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "caption")},
    optional={},
    ignored=("are_different", "best_image_uid", "created_at", "has_label", "image_0_url", "image_1_url", "label_0",
             "label_1", "model_0", "model_1", "ranking_id", "user_id", "num_example_per_prompt"),
    command="rahf prepare richhf18k --labels DIR --images SHARDS",
)  # fmt: skip
_LAYOUTS = (RICHHF, RAPIDATA, PICK_A_PIC)
#: Columns of which at least one must be there: without labels a shard is of another dataset.
_LABELS = {
    RICHHF.name: ("artifact_score", "misalignment_score", "artifact_map", "misalignment_map",
                  "prompt_misalignment_label"),
    RAPIDATA.name: ("alignment_score", "coherence_score", "alignment_score_norm", "coherence_score_norm",
                    "alignment_heatmap", "coherence_heatmap", "word_scores"),
}  # fmt: skip


class Shard(NamedTuple):
    """One parquet file of a known layout."""

    path: str
    split: str | None  # by its name; None if the name does not say
    columns: dict[str, str]  # role → column
    unknown: tuple[str, ...]  # columns that are not read
    rows: int
    groups: tuple[int, ...]  # rows of each row group

    @property
    def name(self) -> str:
        """File name, for messages."""
        return pathlib.PurePath(self.path).name


class Unit(NamedTuple):
    """A piece of work that is finished or done again: one row group."""

    shard: Shard
    group: int
    first: int  # number of its first row in the shard


def open_shard(path: pathlib.Path, layout: Layout, split: str | None) -> Shard:
    """Reads the footer of a shard.

    Raises:
      DatasetError: a Git-LFS pointer, or a shard of another dataset; the message gives its columns and the layout that
        it comes nearest to.
      OSError, pyarrow.ArrowException: truncated, or no parquet file.
    """
    check_not_lfs_pointer(path)
    with pq.ParquetFile(path) as file:
        names, metadata = file.schema_arrow.names, file.metadata
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    columns = layout.columns(names)
    lacking = [known[0] for role, known in layout.required.items() if role not in columns]
    labelled = layout.name not in _LABELS or any(role in columns for role in _LABELS[layout.name])
    if lacking or not labelled:
        raise DatasetError(_wrong_dataset(path, layout, names, lacking))
    return Shard(str(path), split, columns, tuple(layout.unknown(names)), sum(groups), groups)


def _wrong_dataset(path: pathlib.Path, layout: Layout, names: Sequence[str], lacking: Sequence[str]) -> str:
    nearest = max(_LAYOUTS, key=lambda one: len(one.columns(names)) / len({**one.required, **one.optional}))
    what = f"it lacks {', '.join(lacking)}" if lacking else "it has no column of labels"
    hint = "no layout that is known"
    if nearest.columns(names):
        hint = f"{nearest.name}, which `{nearest.command}` reads"
    return (
        f"{path} is not a shard of {layout.name}: {what}. Its columns are {', '.join(names)[:500] or 'none'}; "
        f"they come nearest to {hint}"
    )


def incomplete(files: Sequence[pathlib.Path]) -> list[str]:
    """Names of shards that are not there, by the numbers in the others' names (``train-00003-of-00037.parquet``)."""
    stems: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _OF.search(file.name):
            stem = str(file.parent / file.name[: match.start()])
            stems.setdefault((stem, int(match[2])), set()).add(int(match[1]))
    return [
        f"{pathlib.PurePath(stem).name}-{number:05d}-of-{count:05d}"
        for (stem, count), present in sorted(stems.items())
        for number in range(count)
        if number not in present
    ]


def units(shards: Sequence[Shard]) -> list[Unit]:
    """The row groups of all shards, in order."""
    return [Unit(shard, group, sum(shard.groups[:group])) for shard in shards for group in range(len(shard.groups))]


class Row:
    """One row of a batch, by roles."""

    def __init__(
        self,
        batch: pa.RecordBatch,
        row: int,
        number: int,
        shard: Shard,
        maps: Mapping[str, tuple[pa.Array, int] | np.ndarray | None] | None = None,
    ):
        """Args: batch, place in it, place in the shard, the shard, and maps that are not in the batch, by column."""
        self.batch, self.row, self.number, self.shard, self.maps = batch, row, number, shard, maps or {}
        self.uid: str | None = None  # of the record, for the list of refused ones; set by who reads the row

    def has(self, role: str) -> bool:
        """Whether the shard has a column of this role."""
        return role in self.shard.columns

    def value(self, role: str) -> Any:
        """The value of a short column as a Python object; None if it is null or there is no such column."""
        if role not in self.shard.columns:
            return None
        return self.batch.column(self.shard.columns[role])[self.row].as_py()

    def text(self, role: str) -> str:
        """A text, "" if there is none. Raises Refused if it cannot be stored."""
        value = self.value(role)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Refused("malformed", f"{role} is {value!r:.80}, expected text")
        return value

    def image(self, role: str = "image") -> tuple[bytes, str]:
        """Encoded picture, b"" if there is none, and the path that is stored with it, "" if there is none.

        Raises:
          Refused: the column holds something else.
        """
        value = self.value(role)
        path = ""
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path") or ""
        if value is not None and not isinstance(value, bytes):  # a text must not be opened as a path
            raise Refused("malformed", f"column {role} holds {type(value).__name__}, expected bytes")
        return value or b"", str(path)

    def map(self, role: str) -> np.ndarray | bytes | None:
        """A map as `arrow_maps.cell` gives it."""
        if role not in self.shard.columns:
            return None
        column = self.shard.columns[role]
        value = self.maps[column] if column in self.maps else (self.batch.column(column), self.row)
        if isinstance(value, tuple):
            return arrow_maps.cell(*value, role)
        return None if value is None else arrow_maps.checked(value, role)


def rows(unit: Unit, batch_rows: int) -> Iterator[Row]:
    """The rows of a row group.

    Args:
      unit: which.
      batch_rows: rows that are read at a time; they are in memory until the next ones are read.

    Raises:
      OSError, pyarrow.ArrowException: the shard is damaged.
    """
    columns = sorted(set(unit.shard.columns.values()))
    number = unit.first
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(pq.ParquetFile(unit.shard.path, buffer_size=_BUFFER, pre_buffer=False))
        nested = [name for name in columns if arrow_maps.is_nested(file.schema_arrow.field(name).type)]
        maps = {name: _maps(stack, file, unit, name, batch_rows) for name in nested}
        others = [name for name in columns if name not in maps]  # never none: a shard has prompts
        for batch in file.iter_batches(batch_rows, row_groups=[unit.group], columns=others, use_threads=True):
            for row in range(batch.num_rows):
                yield Row(batch, row, number, unit.shard, {name: next(values) for name, values in maps.items()})
                number += 1


def _maps(
    stack: contextlib.ExitStack, parquet: pq.ParquetFile, unit: Unit, column: str, batch_rows: int
) -> Iterator[tuple[pa.Array, int] | np.ndarray | None]:
    """The maps of a row group: numbers, or from the first unusual page on an Arrow column and the place in it."""
    pages = stack.enter_context(open(unit.shard.path, "rb", buffering=0))
    done = 0
    try:
        for values in nested_pages.maps(pages, parquet, unit.group, column):
            yield values
            done += 1
    except nested_pages.Unusual:
        pass
    for batch in parquet.iter_batches(batch_rows, row_groups=[unit.group], columns=[column], use_threads=False):
        for row in range(batch.num_rows):
            if done:
                done -= 1
            else:
                yield batch.column(column), row


def readable_values(shard: Shard, roles: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Values of short columns of every row, by role; None where the shard lacks a column. Ends where it is damaged."""
    try:
        yield from _short_values(shard, roles)
    except DAMAGE:
        return  # it is reported when the rows are read


def _short_values(shard: Shard, roles: Sequence[str]) -> Iterator[dict[str, Any]]:
    present = {role: shard.columns[role] for role in roles if role in shard.columns}
    absent = dict.fromkeys(role for role in roles if role not in present)
    with pq.ParquetFile(shard.path, buffer_size=_BUFFER, pre_buffer=False) as file:
        if not present:
            yield from (dict(absent) for _ in range(shard.rows))
            return
        for batch in file.iter_batches(_SMALL_ROWS, columns=sorted(set(present.values())), use_threads=False):
            lists = {role: batch.column(name).to_pylist() for role, name in present.items()}
            for row in range(batch.num_rows):
                yield {**absent, **{role: values[row] for role, values in lists.items()}}


def map_scale(shard: Shard, role: str) -> float:
    """The value that stands for "every annotator" in a column of maps: 1 or 255, by the largest value of the shard.

    The statistics that parquet keeps of numbers answer at once. Else the shard is read as far as a value above 1, or as
    far as it is not damaged.
    """
    try:
        return _map_scale(shard, role)
    except DAMAGE:
        return 255.0  # nothing above 1 before the damage, which is reported when the rows are read


def _map_scale(shard: Shard, role: str) -> float:
    largest = 0.0
    with pq.ParquetFile(shard.path, buffer_size=_BUFFER, pre_buffer=False) as file:
        column = shard.columns[role]
        nested = arrow_maps.is_nested(file.schema_arrow.field(column).type)
        for group in range(file.num_row_groups):
            known = _statistics_maximum(file.metadata.row_group(group), column) if nested else None
            largest = max(largest, _scanned_maximum(file, group, column) if known is None else known)
            if arrow_maps.scale_of(min(largest, 255.0)) == 255:
                return 255.0
    return 1.0 if largest > 0 else 255.0


def _statistics_maximum(group: Any, column: str) -> float | None:
    """Largest number of a nested column of a row group, as the writer noted it; None if it did not."""
    largest = None
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema.split(".")[0] == column:
            statistics = chunk.statistics
            if statistics is None or not statistics.has_min_max:
                return None
            largest = arrow_maps.statistic(statistics.max)
    return largest


def _scanned_maximum(file: pq.ParquetFile, group: int, column: str) -> float:
    largest = 0.0
    for batch in file.iter_batches(_SCAN_ROWS, row_groups=[group], columns=[column], use_threads=False):
        for row in range(batch.num_rows):
            try:
                value = arrow_maps.cell(batch.column(column), row, column)
                if value is not None:
                    largest = max(largest, arrow_maps.largest(value, column))
            except Refused:
                continue  # counted when its row is read
            if largest > 2:
                return largest
    return largest
