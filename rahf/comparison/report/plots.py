"""Charts of the report in the coordinates of the inline SVG that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rahf.comparison.measure import Comparison
from rahf.comparison.wins import CalibrationBin, WinRate
from rahf.core.batch import HEATMAPS

WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 34
_BINS = 20  # of a histogram
_TICKS = (0, 0.25, 0.5, 0.75, 1)
PEOPLE = "people"  # CSS class, as c0..c5 of sources


class Mark(NamedTuple):
    """What one source, or people, have in a chart. Coordinates are pixels."""

    css: str  # class of the style sheet
    title: str  # tooltip
    line: list[tuple[float, float]] = []
    area: bool = False  # fill below the line
    dots: list[tuple[float, float, float]] = []  # x, y, radius
    bars: list[tuple[float, float, float]] = []  # x, upper and lower end
    dashed: bool = False


class Plot(NamedTuple):
    """A chart with two axes."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]
    diagonal: bool = False
    note: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def colour(position: int) -> str:
    """CSS class of a source by its position."""
    return f"c{position % 6}"


def _x(value: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * min(max(value, 0.0), 1.0), 1)


def _y(value: float, high: float = 1.0) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value / high, 0.0), 1.0), 1)


def _unit_ticks() -> list[tuple[float, str]]:
    return [(_x(tick), f"{tick:g}") for tick in _TICKS]


def distribution(title: str, values: Sequence[tuple[str, str, np.ndarray]]) -> Plot | None:
    """Histograms of scores in [0,1].

    Args:
      title: of the chart.
      values: CSS class, name and scores [N] of each source; NaN is left out.

    Returns:
      None if nobody has a value.
    """
    drawn = []
    for css, name, scores in values:
        scores = scores[np.isfinite(scores)]
        if scores.size:
            shares = np.histogram(np.clip(scores, 0, 1), _BINS, (0, 1))[0] / scores.size
            drawn.append((css, f"{name}: mean {scores.mean():.3f}, {scores.size:,} pictures", shares))
    if not drawn:
        return None
    high = max(float(shares.max()) for _, _, shares in drawn) * 1.08
    step = next(s for s in (0.05, 0.1, 0.2, 0.25, 0.5, 1) if high / s <= 5)
    ticks = [(_y(n * step, high), f"{n * step:.0%}") for n in range(int(high / step) + 1)]
    marks = []
    for css, name, shares in drawn:
        line = [(_x(0), _y(0))]
        for number, share in enumerate(shares):
            line += [(_x(number / _BINS), _y(share, high)), (_x((number + 1) / _BINS), _y(share, high))]
        marks.append(Mark(css, name, [*line, (_x(1), _y(0))], area=True))
    return Plot(title, "score", "share of pictures", _unit_ticks(), ticks, marks)


class PercentileBar(NamedTuple):
    """Percentiles of the scores of one source, in percent of the axis, and as text."""

    css: str
    name: str
    places: tuple[float, ...]  # of 5, 25, 50, 75, 95%
    text: str
    mean: str


def percentile_bar(css: str, name: str, scores: np.ndarray) -> PercentileBar | None:
    """Where 5, 25, 50, 75 and 95 percent of the scores lie; None without scores."""
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        return None
    levels = np.percentile(scores, (5, 25, 50, 75, 95))
    places = tuple(round(100 * float(np.clip(level, 0, 1)), 1) for level in levels)
    text = ", ".join(f"{p}%: {level:.2f}" for p, level in zip((5, 25, 50, 75, 95), levels))
    return PercentileBar(css, name, places, text, f"{scores.mean():.3f}")


def calibration_plot(title: str, bins: Sequence[tuple[str, str, Sequence[CalibrationBin]]]) -> Plot | None:
    """Mean rating over mean prediction. `bins`: CSS class, name and bins of each source. None without any."""
    marks = []
    for css, name, ones in bins:
        if not ones:
            continue
        total = sum(one.count for one in ones)
        error = sum(abs(one.predicted - one.rated) * one.count for one in ones) / total
        marks.append(
            Mark(
                css,
                f"{name}: mean distance from the ratings over bins {error:.3f}",
                [(_x(one.predicted), _y(one.rated)) for one in ones],
                dots=[(_x(one.predicted), _y(one.rated), 3.2) for one in ones],
                bars=[(_x(one.predicted), _y(one.high), _y(one.low)) for one in ones],
            )
        )
    if not marks:
        return None
    ticks = [(_y(tick), f"{tick:g}") for tick in _TICKS]
    return Plot(title, "predicted", "rated, mean", _unit_ticks(), ticks, marks, diagonal=True)


def precision_recall(comparison: Comparison, name: str) -> Plot | None:
    """Precision over recall of marked pixels of one map, with what is trivial and with people; None without marks."""
    marks, base, human = [], math.nan, None
    for position, source in enumerate(comparison.sources):
        curve = source.families.marks.curve(name)
        if curve is None:
            continue
        base, human = curve.base_rate, curve.human
        area = source.metrics[f"marks/{name}/average_precision"]
        called = curve.precision > 0  # above the highest prediction nothing is called: no precision
        points = [(_x(r), _y(p)) for r, p in zip(curve.recall[called], curve.precision[called])]
        half = len(curve.thresholds) // 2
        dots = [(_x(curve.recall[half]), _y(curve.precision[half]), 4.0)] if called[half] else []
        marks.append(
            Mark(colour(position), f"{source.name}: average precision {area:.3f}; dot: at 0.5", points, dots=dots)
        )
    if not marks:
        return None
    everything = Mark(
        "trivial", f"everything marked: precision {base:.3f}", [(_x(0), _y(base)), (_x(1), _y(base))], dashed=True
    )
    marks.append(everything)
    centre = comparison.trivial["centre"]
    precision, recall = (centre.get(f"marks/{name}/{metric}", math.nan) for metric in ("precision", "recall"))
    if math.isfinite(precision) and math.isfinite(recall):
        text = f"disc in the centre: precision {precision:.3f}, recall {recall:.3f}"
        marks.append(Mark("trivial", text, dots=[(_x(recall), _y(precision), 4.0)]))
    if human is not None:
        text = f"a person, by the others: precision {human[0]:.3f}, recall {human[1]:.3f}"
        marks.append(Mark(PEOPLE, text, dots=[(_x(human[1]), _y(human[0]), 5.5)]))
    ticks = [(_y(tick), f"{tick:g}") for tick in _TICKS]
    title = f"{name.capitalize()}: marked pixels"
    return Plot(title, "recall", "precision", _unit_ticks(), ticks, marks)


def precision_recall_plots(comparison: Comparison) -> list[Plot]:
    """Of both maps, where something is marked."""
    return [plot for name in HEATMAPS if (plot := precision_recall(comparison, name)) is not None]


class WinRow(NamedTuple):
    """A win rate on an axis from 0 to 1, in percent."""

    label: str
    first: str
    second: str
    rate: WinRate
    text: str
    interval: str
    clear: bool  # whether the interval excludes one half


def win_row(label: str, first: str, second: str, rate: WinRate) -> WinRow | None:
    """A row of the table of win rates; None if nothing was compared."""
    if not rate.prompts:
        return None
    interval = f"{rate.low:.1%} – {rate.high:.1%}"
    return WinRow(label, first, second, rate, f"{rate.rate:.1%}", interval, rate.low > 0.5 or rate.high < 0.5)


class MetricDots(NamedTuple):
    """Values of a metric of all sources on one axis, in percent of its length."""

    dots: list[tuple[str, float, float, float]]  # CSS class, low, value, high
    ticks: list[tuple[str, float]]  # CSS class and place of trivial predictions and people


def metric_dots(
    values: Sequence[tuple[str, float, tuple[float, float] | None]], others: Sequence[tuple[str, float | None]]
) -> MetricDots:
    """Places on an axis from 0 to 1, or wider where a value lies outside.

    Args:
      values: CSS class, value and interval of each source.
      others: CSS class and value of what stands beside them; values that are not finite are left out.
    """
    finite = [v for _, v, _ in values if math.isfinite(v)]
    finite += [edge for _, _, pair in values if pair for edge in pair if math.isfinite(edge)]
    finite += [v for _, v in others if v is not None and math.isfinite(v)]
    low, high = min(0.0, *finite), max(finite)
    high = high * 1.05 if high > 1 or high < 0.2 else 1.0
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 1)

    dots = []
    for css, value, pair in values:
        if math.isfinite(value):
            edges = pair if pair and all(map(math.isfinite, pair)) else (value, value)
            dots.append((css, place(edges[0]), place(value), place(edges[1])))
    return MetricDots(dots, [(css, place(v)) for css, v in others if v is not None and math.isfinite(v)])
