"""Counts of `rahf prepare richhf18k`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from data_pipelines.prepare.counts import PreparationCounts


@dataclasses.dataclass
class RichHFSummary(PreparationCounts):
    """Counts of a preparation.

    Attributes:
      map_pixels: pixels of all joined maps.
      map_pixels_moved: pixels that snapping to the annotators' levels moved by more than 20 grey levels.
      unreadable: shards that could not be read to their end, and rows of captions files that cannot be used, with
        reasons.
      cut_short: label files that could not be read to their end, with reasons; the unread records are not
        in the counts.
    """

    title: ClassVar[str] = "RichHF-18K"
    refusals: ClassVar[tuple[str, ...]] = (
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
    notes: ClassVar[tuple[str, ...]] = ("partial labels", "picture found again")
    map_pixels: int = 0
    map_pixels_moved: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)
    cut_short: list[str] = dataclasses.field(default_factory=list)

    @property
    def left_out(self) -> int:
        return self.refused + len(self.unreadable) + len(self.cut_short)

    @property
    def moved_share(self) -> float:
        """Share of map pixels that snapping moved by more than 20 grey levels, 0..1."""
        return self.map_pixels_moved / max(1, self.map_pixels)

    def remarks(self) -> list[str]:
        """Sentences below the table: the share used, and warnings."""
        lines = super().remarks()
        if self.map_pixels_moved:
            lines.append(
                f"warning: {self.moved_share:.3%} of the map pixels were more than 20 grey levels away from "
                "the annotators' levels 0, 85, 170, 255 (maps stored as JPEG?); they were moved to the "
                "nearest"
            )
        lines += [f"warning: {reason}; used what could be read" for reason in self.unreadable + self.cut_short]
        return lines
