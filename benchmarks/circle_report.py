"""The report of `circle.py`: paired differences with intervals, the table, and pictures with prompts and scores."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rahf.core.batch import SCORES
from rahf.metrics import bootstrap_intervals
from rahf.metrics.paired import PairedValues

CRITICS = ("critic", "held out")
RESAMPLES = 10_000
_HEIGHT, _GAP, _TEXT = 132, 10, 12  # of the pictures shown, in pixels
_INK = (40, 40, 48)


@dataclasses.dataclass(frozen=True)
class Shown:
    """Pictures of a comparison: a column per label, a row per prompt.

    Attributes:
      labels: of the columns; the first and the last are compared.
      prompts: of the rows.
      columns: uint8 [N,S,S,3] each.
      scores: float32 [2,N,4] of columns whose pictures are not those that were compared, by number.
    """

    labels: tuple[str, ...]
    prompts: Sequence[str]
    columns: Sequence[Sequence[np.ndarray]]
    scores: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of the same prompts before and after a treatment.

    Attributes:
      name: of the treatment.
      score: by which the treatment guided or chose.
      before, after: float32 [2,N,4], critics in the order of `CRITICS`, scores in that of `SCORES`.
      shown: its pictures, if there are any to show.
      counts: other numbers of the treatment, by name.
    """

    name: str
    score: str
    before: np.ndarray
    after: np.ndarray
    shown: Shown | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """Means, difference, interval and share of prompts that gained, by critic and score."""
        return {
            "name": self.name,
            "score": self.score,
            "prompts": self.before.shape[1],
            **self.counts,
            **{critic: paired(*pair) for critic, *pair in zip(CRITICS, self.before, self.after)},
        }


def paired(before: np.ndarray, after: np.ndarray, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """By score: `before`, `after`, `difference`, its 95% `interval`, and `gained`, the share of prompts that rose.

    Args:
      before, after: [N,4] of the same prompts.
      resamples: of the bootstrap, over prompts.
    """
    pairs = PairedValues(SCORES)
    pairs.add(np.asarray(before, np.float64), np.asarray(after, np.float64))
    means, intervals = pairs.compute(), bootstrap_intervals(pairs, resamples)
    by_score = {}
    for score in SCORES:
        values = {name: round(means[f"{score}/{name}"], 4) for name in ("before", "after", "difference", "gained")}
        by_score[score] = values | {"interval": [round(x, 4) for x in intervals[f"{score}/difference"]]}
    return by_score


def table(comparisons: Sequence[Comparison]) -> str:
    """A Markdown table; the score that guided or chose is bold."""
    lines = ["| | score | critic: before → after | difference | held out: before → after | difference | gained |"]
    lines.append("|---|---|---|---|---|---|---|")
    for comparison in comparisons:
        result = comparison.result()
        for score in SCORES:
            ours, other = (result[critic][score] for critic in CRITICS)
            cells = [f"**{score}**" if score == comparison.score else score]
            for one in (ours, other):
                cells += [f"{_short(one['before'])} → {_short(one['after'])}", _difference(one)]
            cells.append(f"{other['gained']:.0%}")
            first = comparison.name if score == SCORES[0] else ""
            lines.append(f"| {first} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _difference(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['difference']:+.3f} ({low:+.3f} … {high:+.3f})"


def overview(comparisons: Sequence[Comparison], rows: int = 2) -> Image.Image:
    """The first prompts of each comparison, as many as fit into `rows` rows; they are not selected."""
    width = _width(6)
    strips = []
    for comparison in comparisons:
        strips.append(_line(f"{comparison.name}: {comparison.score} by the critic / the held-out critic", width, 16))
        strips += _rows(comparison, 6 // len(comparison.shown.labels), rows)
    return _stack(strips, width)


def everything(comparison: Comparison) -> Image.Image:
    """All prompts of a comparison."""
    across = 6 // len(comparison.shown.labels)
    return _stack(_rows(comparison, across, -(-len(comparison.shown.prompts) // across)), _width(6))


def _rows(comparison: Comparison, across: int, rows: int) -> list[Image.Image]:
    count = min(len(comparison.shown.prompts), across * rows)
    blocks = [_block(comparison, number) for number in range(count)]
    return [_beside(blocks[start : start + across]) for start in range(0, count, across)]


def _block(comparison: Comparison, number: int) -> Image.Image:
    """The prompt, and under it its pictures with their captions."""
    shown, score = comparison.shown, SCORES.index(comparison.score)
    scores = {0: comparison.before, len(shown.labels) - 1: comparison.after} | dict(shown.scores)
    width, line = _width(len(shown.labels)) - _GAP, round(1.3 * _TEXT)
    text = textwrap.wrap(shown.prompts[number], int(width / (0.56 * _TEXT)))[:2]
    canvas = Image.new("RGB", (width, _HEIGHT + 3 * line + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for at, part in enumerate(text, 2 - len(text)):
        draw.text((0, at * line), part, fill=_INK, font=ImageFont.load_default(_TEXT))
    for column, label in enumerate(shown.labels):
        x = column * (_HEIGHT + _GAP)
        if column in scores:
            label += " " + " / ".join(_short(value) for value in scores[column][:, number, score])
        draw.text((x, 2 * line), label, fill=_INK, font=ImageFont.load_default(_TEXT))
        picture = Image.fromarray(np.asarray(shown.columns[column][number]))
        canvas.paste(picture.resize((_HEIGHT, _HEIGHT), Image.Resampling.BICUBIC), (x, 3 * line))
    return canvas


def _width(pictures: int) -> int:
    return pictures * (_HEIGHT + _GAP) + _GAP


def _line(text: str, width: int, size: int) -> Image.Image:
    canvas = Image.new("RGB", (width - 2 * _GAP, round(1.8 * size)), "white")
    ImageDraw.Draw(canvas).text((0, size // 3), text, fill=_INK, font=ImageFont.load_default(size))
    return canvas


def _beside(blocks: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (sum(block.width + _GAP for block in blocks), blocks[0].height), "white")
    x = 0
    for block in blocks:
        canvas.paste(block, (x, 0))
        x += block.width + _GAP
    return canvas


def _stack(strips: Sequence[Image.Image], width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, sum(strip.height for strip in strips) + 2 * _GAP), "white")
    y = _GAP
    for strip in strips:
        canvas.paste(strip, (_GAP, y))
        y += strip.height
    return canvas
