"""What a preparation used and what it refused, per split."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import rich.table

#: Reasons for refusing a record, in the order of the table, after "records" and "joined".
REFUSALS = (
    "missing image",
    "missing caption",
    "word/label mismatch",
    "undecodable",
    "duplicates",
    "CRC error or cut off",
    "missing field",
    "bad score",
    "malformed",
)
#: Remarks on joined records.
REMARKS = ("partial labels", "picture found again")


@dataclasses.dataclass
class Summary:
    """Counts of a preparation.

    Attributes:
      splits: for each split, numbers by row name: "records", "joined", REFUSALS, REMARKS.
        Records = joined + refused.
      map_pixels: pixels of all joined maps.
      map_pixels_moved: those that snapping to the annotators' levels moved by more than 20 grey levels.
      unreadable: shards that could not be read to their end, with reasons.
      cut_short: label files that could not be read to their end, with reasons; the unread records are not
        in the counts.
    """

    splits: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    map_pixels: int = 0
    map_pixels_moved: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)
    cut_short: list[str] = dataclasses.field(default_factory=list)

    def count(self, split: str, row: str) -> None:
        """Adds one to a cell."""
        self.splits[split][row] += 1

    def add_split(self, split: str) -> None:
        """Makes an empty column."""
        self.splits[split] = dict.fromkeys(("records", "joined", *REFUSALS, *REMARKS), 0)

    def total(self, row: str) -> int:
        """Sum of a row over the splits."""
        return sum(counts[row] for counts in self.splits.values())

    @property
    def share(self) -> float:
        """Joined records as a share of all, 0..1."""
        return self.total("joined") / max(1, self.total("records"))

    @property
    def moved_share(self) -> float:
        """Share of map pixels that snapping moved by more than 20 grey levels, 0..1."""
        return self.map_pixels_moved / max(1, self.map_pixels)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def table(self) -> rich.table.Table:
        """The counts as a table for the terminal."""
        table = rich.table.Table(title="RichHF-18K")
        table.add_column("")
        for name in (*self.splits, "all"):
            table.add_column(name, justify="right")
        for row in ("records", "joined", *REFUSALS, *REMARKS):
            cells = [str(counts[row]) for counts in self.splits.values()]
            table.add_row(row, *cells, str(self.total(row)), end_section=row in ("joined", REFUSALS[-1]))
        return table

    def remarks(self) -> list[str]:
        """Sentences below the table: the share used, and warnings."""
        lines = [f"used {self.total('joined')} of {self.total('records')} records ({self.share:.1%})"]
        if self.map_pixels_moved:
            lines.append(
                f"warning: {self.moved_share:.3%} of the map pixels were more than 20 grey levels away from "
                "the annotators' levels 0, 85, 170, 255 (maps stored as JPEG?); they were moved to the "
                "nearest"
            )
        lines += [f"warning: {reason}; used what could be read" for reason in self.unreadable + self.cut_short]
        return lines
