"""Box plots (Tukey 1977) of the values of several systems in several groups, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rahf.core import names

#: Colours of the systems, told apart by people with colour blindness, too (Okabe & Ito 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#000000")
_HEIGHT, _LEFT, _TOP, _LABELS = 260, 62, 30, 62  # of the axes, and of what is around them, in pixels
_BOX, _GAP, _LINE = 16, 22, 14
_INK, _GRID = "#303038", "#dddde2"


class Box(NamedTuple):
    """Five numbers of a sample, and what lies beyond the whiskers.

    Attributes:
      low, high: ends of the whiskers: the outermost values within 1.5 interquartile ranges of the box.
      lower, median, upper: quartiles.
      outliers: values beyond the whiskers.
      count: of the values.
    """

    low: float
    lower: float
    median: float
    upper: float
    high: float
    outliers: tuple[float, ...]
    count: int


def box(values: Sequence[float]) -> Box | None:
    """The box of a sample; NaN is left out; None without values."""
    sample = np.asarray(values, np.float64)
    sample = np.sort(sample[np.isfinite(sample)])
    if not sample.size:
        return None
    lower, median, upper = np.quantile(sample, (0.25, 0.5, 0.75))
    reach = 1.5 * (upper - lower)
    inside = sample[(sample >= lower - reach) & (sample <= upper + reach)]
    outliers = sample[(sample < lower - reach) | (sample > upper + reach)]
    ends = float(inside[0]), float(inside[-1])
    return Box(ends[0], float(lower), float(median), float(upper), ends[1], tuple(outliers.tolist()), sample.size)


def draw(title: str, groups: Mapping[str, Mapping[str, Sequence[float]]], systems: Sequence[str]) -> np.ndarray:
    """A picture uint8 [h,w,3]: a group of boxes per category, a box per system, one axis for all.

    Args:
      title: what the values are.
      groups: category → system → values.
      systems: their order, and so their colours.
    """
    boxes = {group: [box(values.get(system, ())) for system in systems] for group, values in groups.items()}
    drawn = [one for row in boxes.values() for one in row if one is not None]
    ends = [edge for one in drawn for edge in (one.low, one.high, *one.outliers)] or [0.0, 1.0]
    ticks = _ticks(min(ends), max(ends))
    width = len(systems) * _BOX + _GAP
    legend = max(1, (max(len(title), 40) * 7) // max(1, max(len(name) for name in systems) * 7 + 26))
    rows = -(-len(systems) // legend)
    size = max(_LEFT + len(boxes) * width + 10, _LEFT + len(title) * 7, 360), _TOP + _LINE * rows + _HEIGHT + _LABELS
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    pen.text((8, 8), _latin(title), fill=_INK, font=ImageFont.load_default(13))
    for number, system in enumerate(systems):
        at = 8 + number % legend * (size[0] // legend), _TOP + number // legend * _LINE
        pen.rectangle((at[0], at[1] + 1, at[0] + 9, at[1] + 10), fill=COLOURS[number % len(COLOURS)])
        pen.text((at[0] + 14, at[1]), _latin(system, 30), fill=_INK, font=font)
    top = _TOP + _LINE * rows + 6
    bottom = top + _HEIGHT - 12
    y = lambda value: bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])  # noqa: E731
    for tick in ticks:
        pen.line((_LEFT, y(tick), size[0] - 6, y(tick)), fill=_GRID)
        pen.text((4, y(tick) - 6), f"{tick:.6g}"[:9], fill=_INK, font=font)
    for number, (group, row) in enumerate(boxes.items()):
        left = _LEFT + number * width + _GAP // 2
        for at, one in enumerate(row):
            if one is not None:
                _draw_box(pen, one, left + at * _BOX, COLOURS[at % len(COLOURS)], y)
        count = max((one.count for one in row if one is not None), default=0)
        for line, text in enumerate([*_wrapped(group, max(6, width // 6)), f"n = {count}"]):
            pen.text((left - 2, bottom + 5 + line * 12), text, fill=_INK, font=font)
    return np.asarray(canvas)


def _draw_box(pen: ImageDraw.ImageDraw, one: Box, left: float, colour: str, y) -> None:
    middle, right = left + _BOX / 2 - 1, left + _BOX - 3
    pen.line((middle, y(one.low), middle, y(one.high)), fill=_INK)
    for end in (one.low, one.high):
        pen.line((left + 3, y(end), right - 3, y(end)), fill=_INK)
    # A box of one value, or of equal ones, still shows its colour.
    top, bottom = min(y(one.upper), y(one.median) - 3), max(y(one.lower), y(one.median) + 3)
    pen.rectangle((left, top, right, bottom), fill=colour, outline=_INK)
    light = "#000000" if colour in ("#f0e442", "#e69f00", "#56b4e9") else "#ffffff"
    pen.line((left + 1, y(one.median), right - 1, y(one.median)), fill=light, width=2)
    for value in one.outliers:
        pen.ellipse((middle - 1.5, y(value) - 1.5, middle + 1.5, y(value) + 1.5), outline=_INK)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose all values, four to eight of them."""
    if high - low < 1e-9:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _latin(text: str, most: int = 120) -> str:
    """Pillow's own font has Latin letters only."""
    return names.one_line(text, most).encode("latin-1", "replace").decode("latin-1")


def _wrapped(text: str, width: int) -> list[str]:
    """At most three lines."""
    lines, words = [""], _latin(text).split(" ")
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()[: width + 2]
    return lines[:3]
