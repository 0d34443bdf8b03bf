"""Parquet shards of published feedback → a prepared dataset: resumable, streamed, in threads, everything counted."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from rich.text import Text

from data_pipelines import store
from data_pipelines.prepare import dataset_source, shards
from data_pipelines.prepare.counts import PreparationCounts, Refused, print_report, stored_counts, summary_files
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import Advance, progress_bars
from data_pipelines.prepare.splits import SPLITS
from data_pipelines.prepare.staged_records import StagedRecords
from data_pipelines.store.records import Record
from rahf import text
from rahf.core import names, terminal
from rahf.core.errors import DatasetError

_BATCH_ROWS = 4  # rows that are read at once: pictures and maps of 1024 x 1024 take 8 MB each
_SPLIT_NAMES = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
_SPLIT = re.compile(rf"(?:^|[/._-])({'|'.join(_SPLIT_NAMES)})(?=[/._-])")
#: Column of the table for rows that are refused before their split is known.
NO_SPLIT = "no split"


class Converted(NamedTuple):
    """A row that can be used."""

    split: str
    record: Record
    notes: tuple[str, ...] = ()  # rows of the table to count it in, too
    small: Mapping[str, np.ndarray] = types.MappingProxyType({})  # `datasheet.small_map` of heatmaps, by name


class Reader(Protocol):
    """How the rows of a layout become records."""

    layout: shards.Layout
    optional: tuple[str, ...]  # fields of `store.schema.OPTIONAL` that the dataset has
    description: str

    def survey(self, opened: Sequence[shards.Shard], counts: ShardCounts) -> None:
        """Looks through short columns of all shards before the first row is converted."""
        ...

    def convert(self, row: shards.Row) -> Converted:
        """One row → a record. Called in several threads. Raises Refused."""
        ...


@dataclasses.dataclass
class ShardCounts(PreparationCounts):
    """Counts of a preparation from shards.

    Attributes:
      unknown_columns: columns that were not read, with the number of shards that have them.
      unreadable: shards that could not be read to their end, with reasons.
      missing_shards: shards that are not there, by the numbers in the names of the others.
      absent: labels that no row has, or that are 0 or null in every row of a split, with the reason.
      notes_on_source: what to know of where the data come from.
    """

    unknown_columns: dict[str, int] = dataclasses.field(default_factory=dict)
    unreadable: list[str] = dataclasses.field(default_factory=list)

    @property
    def left_out(self) -> int:
        return self.refused + len(self.unreadable)

    missing_shards: list[str] = dataclasses.field(default_factory=list)
    absent: list[str] = dataclasses.field(default_factory=list)
    notes_on_source: list[str] = dataclasses.field(default_factory=list)

    def remarks(self) -> list[str]:
        lines = super().remarks()
        lines += [f"missing label: {one}" for one in self.absent]
        if self.unknown_columns:
            names = ", ".join(f"{name} ({count} shards)" for name, count in sorted(self.unknown_columns.items()))
            lines.append(f"columns that are not read: {names}")
        if self.missing_shards:
            first = ", ".join(self.missing_shards[:5])
            lines.append(f"warning: {len(self.missing_shards)} shards are not there: {first}; get the rest of them")
        lines += [f"warning: {reason}; used what could be read" for reason in self.unreadable]
        return lines + [f"warning: {note}" for note in self.notes_on_source]


AnyCounts = TypeVar("AnyCounts", bound=ShardCounts)
Item = TypeVar("Item")


def prepare(
    source: dataset_source.DatasetSource,
    reader: Reader,
    counts: AnyCounts,
    out: str | os.PathLike,
    *,
    options: Any,
    title: str,
    vocabulary: bytes | None,
    progress: bool = True,
) -> AnyCounts:
    """Writes the dataset of all shards of a source.

    Args:
      source: folder of shards, and where it comes from.
      reader: makes records of rows.
      counts: fresh, of the reader's kind.
      out: directory to make; a dataset in its place is replaced.
      options: JSON values that the result depends on, besides the shards and the vocabulary.
      title: of the data sheet.
      vocabulary: serialized SentencePiece model; None: one is trained on the training prompts.
      progress: print progress and, at the end, the table.

    Raises:
      DatasetError: shards of another dataset, none that can be read, or nothing that can be used.
    """
    target = pathlib.Path(os.path.abspath(out))
    store.check_replaceable(target)
    console = terminal.console(quiet=not progress)
    files = dataset_source.shard_files(source)
    opened, unreadable = _opened(files, reader.layout)
    digest = hashlib.sha256(vocabulary).hexdigest() if vocabulary else None
    stamps = [[os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]
    inputs = [type(counts).__name__, stamps, options, digest, source.name, source.revision]
    plan = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    working = target.with_name(target.name + ".partial")
    stored = stored_counts(type(counts), target, plan)
    if stored is not None:
        console.print(Text(names.one_line(f"{target} is complete and its inputs have not changed")), soft_wrap=True)
        if working.exists():
            StagedRecords(working, plan).remove()
        print_report(console, stored, target)
        return stored
    counts.unreadable += unreadable
    counts.missing_shards += shards.incomplete(files)
    counts.notes_on_source += source.notes
    for name in (name for shard in opened for name in shard.unknown):
        counts.unknown_columns[name] = counts.unknown_columns.get(name, 0) + 1
    reader.survey(opened, counts)
    staged = StagedRecords(working, plan)
    if staged.continues:
        console.print(Text(names.one_line(f"going on with the interrupted run in {working}")), soft_wrap=True)
    with progress_bars(console) as advance:
        run = _Run(reader, counts, staged, advance)
        run.read(shards.units(opened))
        run.write(target, source, title, vocabulary, plan)
    staged.remove()
    print_report(console, counts, target)
    return counts


def split_of(path: pathlib.Path) -> str | None:
    """The split that the name of a shard, or else of its folder, says; None if they do not."""
    for name in (path.name, f"{path.parent.name}/"):
        if match := _SPLIT.search(name):
            return _SPLIT_NAMES[match[1]]
    return None


def _opened(files: Sequence[pathlib.Path], layout: shards.Layout) -> tuple[list[shards.Shard], list[str]]:
    """The shards whose footers can be read, and the reasons of the others."""
    opened, unreadable = [], []
    for file in files:
        try:
            opened.append(shards.open_shard(file, layout, split_of(file)))
        except shards.DAMAGE as error:
            unreadable.append(f"{file} is truncated or no parquet file ({_one_line(error)})")
    if not opened:
        raise DatasetError(f"no shard can be read: {'; '.join(unreadable[:5])}. Copy or download them again")
    return opened, unreadable


class _Run:
    """Both passes: rows to staged records, staged records to the dataset."""

    def __init__(self, reader: Reader, counts: ShardCounts, staged: StagedRecords, advance: Advance):
        self.reader, self.counts, self.staged, self.advance = reader, counts, staged, advance
        self.refused: list[dict[str, Any]] = [
            {"file": None, "record": None, "uid": None, "kind": "unreadable shard", "reason": reason}
            for reason in counts.unreadable
        ]
        self.units: list[dict[str, Any]] = []
        self.uids: set[str] = set()
        self.prompts: dict[str, dict[str, None]] = {}  # by split, in order, without repetition

    def read(self, units: Sequence[shards.Unit]) -> None:
        """First pass: every unit that is not finished yet."""
        total = sum(unit.shard.groups[unit.group] for unit in units)
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        done = 0
        self.advance("reading rows", 0, total)
        with concurrent.futures.ThreadPoolExecutor(max(1, min(8, threads))) as pool:
            for number, unit in enumerate(units):
                result = self.staged.finished(number)
                if result is None:
                    result = self._read_unit(number, unit, pool, lambda rows, before=done: self.advance(
                        "reading rows", before + rows, total))  # fmt: skip
                self.units.append(result)
                done += unit.shard.groups[unit.group]
                self.advance("reading rows", done, total)

    def _read_unit(
        self, number: int, unit: shards.Unit, pool: concurrent.futures.Executor, advance: Callable[[int], None]
    ) -> dict[str, Any]:
        tally: dict[str, dict[str, int]] = {}
        refused: list[dict[str, Any]] = []
        rows_done, unreadable = 0, ""
        writer = self.staged.writer(number)
        try:
            for row, outcome in self._outcomes(unit, pool):
                rows_done += 1
                if isinstance(outcome, Refused):
                    split = unit.shard.split or NO_SPLIT
                    _count(tally, split, "records", outcome.kind)
                    refused.append(_refusal(row, outcome))
                else:
                    _count(tally, outcome.split, "records", *outcome.notes)
                    writer.add(outcome.split, outcome.record, outcome.small)
                advance(rows_done)
        except shards.DAMAGE as error:
            rest = unit.shard.groups[unit.group] - rows_done
            unreadable = f"{unit.shard.path} cannot be read to its end ({_one_line(error)}); {rest} rows are lost"
        finally:
            writer.close()
        result = {"tally": tally, "refused": refused, "unreadable": unreadable}
        writer.finish(result)
        return result

    def _outcomes(
        self, unit: shards.Unit, pool: concurrent.futures.Executor
    ) -> Iterator[tuple[shards.Row, Converted | Refused]]:
        """Every row with what became of it, in order. A few rows are converted while the next are read."""
        waiting: collections.deque[tuple[shards.Row, concurrent.futures.Future]] = collections.deque()
        try:
            for row in shards.rows(unit, _BATCH_ROWS):
                waiting.append((row, pool.submit(self._convert, row)))
                if len(waiting) > 2 * _BATCH_ROWS:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        except shards.DAMAGE:
            while waiting:  # rows before the damage are whole
                yield _finished(waiting.popleft())
            raise
        finally:
            for _, future in waiting:
                future.cancel()

    def _convert(self, row: shards.Row) -> Converted | Refused:
        try:
            return self.reader.convert(row)
        except Refused as why:
            return why

    def write(
        self,
        target: pathlib.Path,
        source: dataset_source.DatasetSource,
        title: str,
        vocabulary: bytes | None,
        plan: str,
    ) -> None:
        """Second pass.

        Raises:
          DatasetError: there is nothing to write.
        """
        splits = [split for split in SPLITS if any(split in unit["tally"] for unit in self.units)]
        for split in (*splits, *([NO_SPLIT] if any(NO_SPLIT in unit["tally"] for unit in self.units) else [])):
            self.counts.add_split(split)
        for unit in self.units:
            for split, rows in unit["tally"].items():
                for row, count in rows.items():
                    self.counts.splits[split][row] += count
            self.refused += unit["refused"]
            if unit["unreadable"]:
                self.counts.unreadable.append(unit["unreadable"])
        sheet = DataSheet(
            title, source=source.name, revision=source.revision, license=source.license, notes=source.notes
        )
        extra = {**summary_files(plan, self.counts, self.refused), **sheet.files(self.counts)}
        extra[store.TOKENIZER_FILE] = lambda: vocabulary or text.train_tokenizer(self._prompts())
        records = {split: self._records(split, sheet) for split in splits}
        try:
            store.write_dataset(target, records, self.reader.description, extra=extra, optional=self.reader.optional)
        except DatasetError as error:
            if self.counts.total("joined"):
                raise
            first = "".join(f"\n  {line['file']}, row {line['record']}: {line['reason']}" for line in self.refused[:5])
            raise DatasetError(
                f"all {self.counts.total('records')} rows of {source.name} were refused. First reasons:{first}"
            ) from error

    def _prompts(self) -> list[str]:
        """What the vocabulary is learnt from: the prompts of the training split, or of all where it has none."""
        return list(self.prompts.get("train") or {prompt: None for one in self.prompts.values() for prompt in one})

    def _records(self, split: str, sheet: DataSheet) -> Iterator[Record]:
        for number in range(len(self.units)):
            for record, small in _ahead(self.staged.records(number, split)):
                if record.uid in self.uids:
                    self.counts.count(split, "duplicates")
                    reason = "another row has the same picture and prompt"
                    self.refused.append(
                        {"file": None, "record": None, "uid": record.uid, "kind": "duplicates", "reason": reason}
                    )
                    continue
                self.uids.add(record.uid)
                self.counts.count(split, "joined")
                self.prompts.setdefault(split, {})[record.prompt] = None
                sheet.add(split, record, small)
                yield record


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None; a thread reads the next one meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _finished(
    pair: tuple[shards.Row, concurrent.futures.Future],
) -> tuple[shards.Row, Converted | Refused]:
    row, future = pair
    return row, future.result()


def _refusal(row: shards.Row, why: Refused) -> dict[str, Any]:
    return {"file": row.shard.name, "record": row.number, "uid": row.uid, "kind": why.kind, "reason": str(why)}


def _count(tally: dict[str, dict[str, int]], split: str, *names: str) -> None:
    cells = tally.setdefault(split, {})
    for name in names:
        cells[name] = cells.get(name, 0) + 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
