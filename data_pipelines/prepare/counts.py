"""What the preparations of people's labels share: refusals and their counts, progress, vocabulary, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any, Callable, ClassVar, Iterator, Mapping, Sequence, TypeVar

import rich.console
import rich.progress
import rich.table

from data_pipelines import store
from rahf import text
from rahf.core.errors import DatasetError

#: Beside a prepared dataset: the plan with the counts, and every record that was refused.
SUMMARY_FILE, REFUSED_FILE = "prepare.json", "refused.jsonl"
#: Called with the name of the work, how much is done, and how much there is.
Advance = Callable[[str, int, int], None]


class Refused(Exception):
    """A record cannot be used. `kind` is the reason's name in the table, the message says more."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclasses.dataclass
class Counts:
    """How many records were used and refused, per split.

    Attributes:
      title: of the table.
      refusals: reasons for refusing a record, in the order of the table, after "records" and "joined".
      notes: rows about joined records.
      splits: for each split, numbers by row name. Records = joined + refused.
    """

    title: ClassVar[str]
    refusals: ClassVar[tuple[str, ...]]
    notes: ClassVar[tuple[str, ...]]
    splits: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def rows(cls) -> tuple[str, ...]:
        """Row names of the table."""
        return ("records", "joined", *cls.refusals, *cls.notes)

    def count(self, split: str, row: str) -> None:
        """Adds one to a cell."""
        self.splits[split][row] += 1

    def add_split(self, split: str) -> None:
        """Makes an empty column."""
        self.splits[split] = dict.fromkeys(self.rows(), 0)

    def total(self, row: str) -> int:
        """Sum of a row over the splits."""
        return sum(counts[row] for counts in self.splits.values())

    @property
    def share(self) -> float:
        """Joined records as a share of all, 0..1."""
        return self.total("joined") / max(1, self.total("records"))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def table(self) -> rich.table.Table:
        """The counts as a table for the terminal."""
        table = rich.table.Table(title=self.title)
        table.add_column("")
        for name in (*self.splits, "all"):
            table.add_column(name, justify="right")
        for row in self.rows():
            cells = [str(counts[row]) for counts in self.splits.values()]
            table.add_row(row, *cells, str(self.total(row)), end_section=row in ("joined", self.refusals[-1]))
        return table

    def remarks(self) -> list[str]:
        """Sentences below the table: the share used, and warnings."""
        return [f"used {self.total('joined')} of {self.total('records')} records ({self.share:.1%})"]


AnyCounts = TypeVar("AnyCounts", bound=Counts)


def extra_files(
    plan: str, summary: Counts, refused: Sequence[Mapping[str, Any]]
) -> dict[str, Callable[[], bytes | str]]:
    """SUMMARY_FILE and REFUSED_FILE for `store.write_dataset`, to be called when everything is counted."""
    return {
        REFUSED_FILE: lambda: "".join(json.dumps(line) + "\n" for line in refused),
        SUMMARY_FILE: lambda: json.dumps({"plan": plan, "summary": summary.to_dict()}, indent=2) + "\n",
    }


def stored_counts(kind: type[AnyCounts], target: pathlib.Path, plan: str) -> AnyCounts | None:
    """The counts of a finished run with the same inputs."""
    try:
        stored = json.loads((target / SUMMARY_FILE).read_text())
        return kind(**stored["summary"]) if stored["plan"] == plan else None
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None


def vocabulary(file: str | os.PathLike | None) -> bytes | None:
    """The vocabulary file that was named, serialized.

    Raises:
      DatasetError: no such file, or something else.
    """
    if file is None:
        return None
    if not pathlib.Path(file).is_file():
        raise DatasetError(f"--tokenizer {file}: no such file; expected a SentencePiece model")
    try:
        return text.load_tokenizer(file).model
    except ValueError as error:
        raise DatasetError(f"--tokenizer {error}") from error


@contextlib.contextmanager
def bars(console: rich.console.Console) -> Iterator[Advance]:
    """Progress bars, one per kind of work; nothing where the console is quiet."""
    tasks: dict[str, rich.progress.TaskID] = {}
    store.load_writer()
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=console.quiet) as shown:

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=total)
            shown.update(tasks[name], completed=done, total=max(done, total))

        yield advance


def report(console: rich.console.Console, summary: Counts, target: pathlib.Path) -> None:
    """Prints table, remarks, and where everything lies."""
    console.print(summary.table())
    for line in summary.remarks():
        console.print(line, style="yellow" if line.startswith("warning") else None, markup=False, soft_wrap=True)
    console.print(f"dataset {target}, refused records {target / REFUSED_FILE}", markup=False, soft_wrap=True)
