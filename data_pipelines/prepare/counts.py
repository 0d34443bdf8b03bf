"""Counts of the records that a preparation used and refused: collected, stored beside the dataset, printed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import rich.console
import rich.table
from rich.text import Text

from rahf.core import json_text, names
from rahf.core.errors import RahfError
from rahf.core.files import read_regular

#: Beside a prepared dataset: the plan with the counts, and every record that was refused.
SUMMARY_FILE, REFUSED_FILE = "prepare.json", "refused.jsonl"


class Refused(RahfError):
    """A record cannot be used. `kind` names the reason in the table, the message describes it."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclasses.dataclass
class PreparationCounts:
    """Numbers of records used and refused, per split.

    Attributes:
      title: of the table.
      refusals: kinds of `Refused`, in the order of the table, where they follow "records" and "joined".
      notes: rows that count properties of joined records.
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
        """Adds an empty column."""
        self.splits[split] = dict.fromkeys(self.rows(), 0)

    def total(self, row: str) -> int:
        """Sum of a row over the splits."""
        return sum(counts[row] for counts in self.splits.values())

    @property
    def refused(self) -> int:
        """Number of records that were not used."""
        return self.total("records") - self.total("joined")

    @property
    def left_out(self) -> int:
        """Number of records and of parts of the input that were not used, for the exit code."""
        return self.refused

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
        table = rich.table.Table(title=Text(self.title))
        table.add_column("")
        for name in (*self.splits, "all"):
            table.add_column(Text(name), justify="right")
        for row in self.rows():
            cells = [str(counts[row]) for counts in self.splits.values()]
            last = row in ("joined", self.refusals[-1])
            table.add_row(Text(row), *cells, str(self.total(row)), end_section=last)
        return table

    def remarks(self) -> list[str]:
        """Sentences below the table: the share used, and warnings."""
        return [f"used {self.total('joined')} of {self.total('records')} records ({self.share:.1%})"]


AnyCounts = TypeVar("AnyCounts", bound=PreparationCounts)


def summary_files(
    plan: str, summary: PreparationCounts, refused: Sequence[Mapping[str, Any]]
) -> dict[str, Callable[[], bytes | str]]:
    """SUMMARY_FILE and REFUSED_FILE as `extra` of `store.write_dataset`, which calls them when every record is counted.

    Args:
      plan: digest of the inputs.
      summary: the counts.
      refused: what to write of each refused record, as JSON values.
    """
    return {
        REFUSED_FILE: lambda: "".join(json.dumps(line) + "\n" for line in refused),
        SUMMARY_FILE: lambda: json.dumps({"plan": plan, "summary": summary.to_dict()}, indent=2) + "\n",
    }


def stored_counts(kind: type[AnyCounts], target: pathlib.Path, plan: str) -> AnyCounts | None:
    """The counts of a finished run with the same plan; None if there is none in `target`."""
    try:
        stored = json_text.parse(read_regular(target / SUMMARY_FILE))
        if stored["plan"] != plan:
            return None
        summary = kind(**stored["summary"])
        summary.table(), summary.remarks()  # a file that an editor has damaged counts as: not finished
        return summary
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def print_report(console: rich.console.Console, summary: PreparationCounts, target: pathlib.Path) -> None:
    """Prints table, remarks, and the paths of the dataset and of the list of refused records."""
    console.print(summary.table())
    for line in summary.remarks():
        console.print(Text(names.one_line(line), "yellow" if line.startswith("warning") else ""), soft_wrap=True)
    console.print(Text(names.one_line(f"dataset {target}, refused records {target / REFUSED_FILE}")), soft_wrap=True)
