"""The data sheet beside a prepared dataset: where it comes from, what is in it, and what is missing.

``datasheet.json`` for programs, ``datasheet.md`` for people, ``mean_maps.png`` to look at. Equal input gives equal
bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.prepare.counts import PreparationCounts
from data_pipelines.store.records import Record, missing_labels
from rahf import images
from rahf.core.batch import HEATMAPS, SCORES

#: Files of a data sheet.
JSON_FILE, TEXT_FILE, MEAN_MAPS_FILE = "datasheet.json", "datasheet.md", "mean_maps.png"
_LABELS = (*SCORES, *HEATMAPS, "words")
_BINS = 10  # of the histograms of scores, over 0..1
_SIDE = 64  # of the mean maps, in pixels
SMALL_SHAPE = (_SIDE, _SIDE)
_BAR = 30  # characters of the longest bar


@dataclasses.dataclass
class _SplitSheet:
    """What a data sheet says of one split."""

    examples: int = 0
    present: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(_LABELS, 0))
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {name: [0] * _BINS for name in SCORES})
    empty_maps: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(HEATMAPS, 0))
    words: int = 0  # labelled
    misaligned_words: int = 0
    soft_words: int = 0  # with a share of people instead of a majority
    sums: dict[str, np.ndarray] = dataclasses.field(
        default_factory=lambda: {name: np.zeros((_SIDE, _SIDE)) for name in HEATMAPS}
    )

    def add(self, record: Record, small: Mapping[str, np.ndarray]) -> None:
        self.examples += 1
        missing = missing_labels(record)
        for label in _LABELS:
            self.present[label] += label not in missing
        for name, score in zip(SCORES, record.scores, strict=True):
            if np.isfinite(score):
                self.histograms[name][min(int(score * _BINS), _BINS - 1)] += 1
        if record.word_labels is not None:
            self.words += len(record.word_labels)
            self.misaligned_words += record.word_labels.count(0)
            self.soft_words += len(record.word_shares or ())
        for name in HEATMAPS:
            encoded = getattr(record, name)
            if encoded is not None:
                values = small[name] if name in small else small_map(images.load_grey(encoded, what=name))
                self.empty_maps[name] += not values.any()
                self.sums[name] += values

    def mean_map(self, name: str) -> np.ndarray | None:
        count = self.present[name]
        return self.sums[name] / count if count else None

    def tree(self) -> dict[str, Any]:
        means = {name: self.mean_map(name) for name in HEATMAPS}
        return {
            "examples": self.examples,
            "share_present": {name: _share(count, self.examples) for name, count in self.present.items()},
            "present": self.present,
            "empty_maps": self.empty_maps,
            "words": self.words,
            "misaligned_words": self.misaligned_words,
            "soft_words": self.soft_words,
            "score_histograms": self.histograms,
            "mean_map_value": {n: None if m is None else round(float(m.mean()), 6) for n, m in means.items()},
        }


class DataSheet:
    """Watches records while they are written, and describes them."""

    def __init__(self, title: str, *, source: str, license: str, revision: str = "", notes: Iterable[str] = ()):
        """Args: name of the data, where they come from, licence as stated there, commit, and what else to know."""
        self.head = {"title": title, "source": source, "revision": revision, "license": license, "notes": [*notes]}
        self.splits: dict[str, _SplitSheet] = {}

    def watch(self, splits: Mapping[str, Iterable[Record]]) -> dict[str, Iterator[Record]]:
        """The same records; each is described as it passes."""
        return {split: self._watched(split, records) for split, records in splits.items()}

    def _watched(self, split: str, records: Iterable[Record]) -> Iterator[Record]:
        self.splits.setdefault(split, _SplitSheet())
        for record in records:
            self.add(split, record)
            yield record

    def add(self, split: str, record: Record, small: Mapping[str, np.ndarray] | None = None) -> None:
        """Describes one record.

        Args:
          split: that it is written to.
          record: the record.
          small: `small_map` of its heatmaps by name, where somebody has them already; the others are decoded.
        """
        self.splits.setdefault(split, _SplitSheet()).add(record, small or {})

    def files(self, counts: PreparationCounts | None = None) -> dict[str, Callable[[], bytes | str]]:
        """The files as `extra` of `store.write_dataset`, which calls them when every record has been written.

        Args:
          counts: of records used and refused; None: every record was used.
        """
        return {
            JSON_FILE: lambda: json.dumps(self.tree(counts), indent=2) + "\n",
            TEXT_FILE: lambda: self.text(counts),
            MEAN_MAPS_FILE: self.picture,
        }

    def tree(self, counts: PreparationCounts | None = None) -> dict[str, Any]:
        """Everything as JSON values."""
        used = {} if counts is None else {
            "records": counts.total("records"),
            "used": counts.total("joined"),
            "refused": {kind: counts.total(kind) for kind in counts.refusals if counts.total(kind)},
            "remarks": [line for line in counts.remarks() if line.startswith("warning")],
        }  # fmt: skip
        return {**self.head, **used, "splits": {split: sheet.tree() for split, sheet in self.splits.items()}}

    def text(self, counts: PreparationCounts | None = None) -> str:
        """The sheet in Markdown."""
        tree = self.tree(counts)
        lines = [f"# {tree['title']}", "", f"* source: {tree['source']}"]
        lines += [f"* revision: {tree['revision']}"] * bool(tree["revision"])
        lines.append(f"* licence, as stated: {tree['license']}")
        if counts is not None:
            lines.append(f"* used {tree['used']} of {tree['records']} records")
            lines += [f"* refused: {count} × {kind}" for kind, count in tree["refused"].items()]
            lines += [f"* {line}" for line in tree["remarks"]]
        lines += [f"* {note}" for note in tree["notes"]]
        for split, sheet in self.splits.items():
            lines += ["", f"## {split}: {sheet.examples} examples", "", *_table(sheet), ""]
            for name in SCORES:
                lines += _histogram(name, sheet.histograms[name])
        return "\n".join(lines) + "\n\nMean maps of all splits, white = highest mean value: `mean_maps.png`\n"

    def picture(self) -> bytes:
        """PNG: mean implausibility and misalignment side by side, each scaled to its largest value."""
        tiles = []
        for name in HEATMAPS:
            total = sum((sheet.sums[name] for sheet in self.splits.values()), np.zeros((_SIDE, _SIDE)))
            tiles.append(total / max(float(total.max()), 1e-12))
        gap = np.full((_SIDE, 4), 0.5)
        grey = np.round(255 * np.concatenate([tiles[0], gap, tiles[1]], 1)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(grey).resize((4 * grey.shape[1], 4 * grey.shape[0]), Image.Resampling.NEAREST).save(
            buffer, "PNG"
        )
        return buffer.getvalue()


def small_map(grey: np.ndarray) -> np.ndarray:
    """uint8 [h,w] → float32 [64,64] in [0,1], what the mean maps are made of; 0 only where nothing is marked."""
    mean = Image.fromarray(grey).convert("F") if grey.size < _SIDE * _SIDE else Image.fromarray(grey)
    values = np.asarray(mean.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0), np.float32) / 255
    if not values.any() and grey.any():  # a mark that is lost in the mean of its block
        values[0, 0] = np.float32(1e-6)
    return values


def _share(count: int, total: int) -> float:
    return round(count / max(1, total), 4)


def _table(sheet: _SplitSheet) -> list[str]:
    lines = ["| label | examples that have it | share | |", "|---|---|---|---|"]
    for label in _LABELS:
        more = ""
        if label in HEATMAPS and sheet.present[label]:
            mean = sheet.mean_map(label)
            more = f"{sheet.empty_maps[label]} without a mark, mean value {mean.mean():.4f}"
        if label == "words" and sheet.words:
            soft = f", {sheet.soft_words} with a share of people" if sheet.soft_words else ""
            more = f"{sheet.misaligned_words} of {sheet.words} words misaligned{soft}"
        lines.append(
            f"| {label} | {sheet.present[label]} | {sheet.present[label] / max(1, sheet.examples):.1%} | {more} |"
        )
    return lines


def _histogram(name: str, counts: list[int]) -> list[str]:
    if not any(counts):
        return []
    lines = [f"{name}:", "```"]
    for number, count in enumerate(counts):
        bar = "#" * round(_BAR * count / max(counts))
        lines.append(f"{number / _BINS:.1f}-{(number + 1) / _BINS:.1f} {count:7d} {bar}".rstrip())
    return [*lines, "```"]
