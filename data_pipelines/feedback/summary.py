"""Counts of `rahf prepare feedback`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from data_pipelines.prepare.counts import PreparationCounts
from rahf.core.batch import HEATMAPS, SCORES

#: The seven labels, as `data_pipelines.store.records.missing_labels` names them.
LABELS = (*SCORES, *HEATMAPS, "words")
#: Column of the lines without a usable prompt or picture name, which belong to no split.
NO_SPLIT = "no split"
_MOST_NAMES = 100  # names of unknown fields that are counted


@dataclasses.dataclass
class FeedbackSummary(PreparationCounts):
    """Counts of a preparation. The rows after the refusals count the examples that have each label.

    Attributes:
      dev, test: shares by which prompts were split.
      sources: numbers of lines that got their split by "field", "other line", "hash".
      prompts_in_two: prompts that are trained on and held out; `pictures_in_two` likewise.
      unread: unknown fields, each with the number of examples that have it.
    """

    title: ClassVar[str] = "feedback"
    refusals: ClassVar[tuple[str, ...]] = (
        "missing image",
        "missing map",
        "missing prompt",
        "missing field",
        "outside the folder",
        "undecodable",
        "duplicates",
        "word/label mismatch",
        "bad score",
        "no label",
        "malformed",
    )
    notes: ClassVar[tuple[str, ...]] = (*LABELS, "points outside the picture")
    dev: float = 0.0
    test: float = 0.0
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    prompts_in_two: int = 0
    pictures_in_two: int = 0
    unread: dict[str, int] = dataclasses.field(default_factory=dict)

    def note_unread(self, name: str) -> None:
        """Counts an example with an unknown field."""
        name = name[:80] if name.isprintable() else ascii(name[:80])  # it goes to the terminal
        if name in self.unread or len(self.unread) < _MOST_NAMES:
            self.unread[name] = self.unread.get(name, 0) + 1

    def remarks(self) -> list[str]:
        """Sentences below the table: the share used, how the lines were split, and warnings."""
        return [*super().remarks(), self._split_remark(), *(f"warning: {one}" for one in self._warnings())]

    def _split_remark(self) -> str:
        ways = {
            "field": "by their field 'split'",
            "other line": "like another line with their prompt",
            "hash": f"by a hash of the prompt (dev {self.dev:.1%}, test {self.test:.1%})",
        }
        parts = [f"{count} {ways[source]}" for source, count in self.sources.items() if count]
        return f"lines split: {', '.join(parts)}"

    def _warnings(self) -> list[str]:
        warnings = []
        used = {split: counts["joined"] for split, counts in self.splits.items() if split != NO_SPLIT}
        for split in ("dev", "test"):
            if not used.get(split):
                others = " or ".join(name for name, count in used.items() if count and name != "train") or "none"
                warnings.append(f"no example in {split}; held out there is {others} (--{split}, --data.eval-split)")
        absent = [label for label in LABELS if not self.splits["train"][label]]
        if absent:
            warnings.append(f"no training example has {', '.join(absent)}: nothing is learnt of it")
        if self.prompts_in_two:
            warnings.append(f"{self.prompts_in_two} prompts are in train and in dev or test, as the lines say")
        if self.pictures_in_two:
            warnings.append(f"{self.pictures_in_two} pictures are in train and, with another prompt, in dev or test")
        if outside := self.total("points outside the picture"):
            warnings.append(f"{outside} examples have points outside the picture; points are (x, y) in its pixels")
        if self.unread:
            most = sorted(self.unread.items(), key=lambda item: -item[1])[:10]
            warnings.append("fields that are not read: " + ", ".join(f"{name} ({count})" for name, count in most))
        return warnings
