"""Training curves in the coordinates of the inline SVG that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_WIDTH, _HEIGHT = 380, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 24
_POINTS = 240  # of a line, at most; more would not be seen at this size
_COLOURS = 6  # classes c0..c5 of `templates/style.css`

#: Chart title → which metrics it shows, by the last parts of their names.
_CHARTS = (
    ("Loss", ("loss",)),
    ("Scores: PLCC", ("plcc",)),
    ("Heatmaps: CC", ("cc",)),
    ("Heatmaps: AUC-Judd", ("auc_judd",)),
    ("Misaligned words: F1", ("f1",)),
    ("Learning rate", ("learning_rate", "lr")),
)


class Curve(NamedTuple):
    """A metric over the steps of a run: finite points only, steps rising."""

    name: str
    points: list[tuple[float, float]]


class DrawnCurve(NamedTuple):
    """A curve in the coordinates of its chart."""

    title: str  # tooltip
    label: str  # in the legend
    value: str  # the last one
    colour: int  # number of a class c0..c5 of the style sheet
    points: list[tuple[float, float]]
    last: tuple[float, float]


class Chart(NamedTuple):
    """What the template `charts.html` draws: lengths and places in pixels."""

    title: str
    logarithmic: bool
    values: list[tuple[float, str]]  # ticks of the vertical axis: y and text
    steps: list[tuple[float, str]]  # ticks of the horizontal axis: x and text
    lines: list[DrawnCurve]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT


def metric_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Collects every numeric metric of `metrics.jsonl` rows with a "step"; a resumed run's later row wins."""
    points_by_name: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get("step")
        if not _finite(step):
            continue
        for name, value in row.items():
            if name != "step" and _finite(value):
                points_by_name.setdefault(str(name), {})[float(step)] = float(value)
    return {name: Curve(name, sorted(points.items())) for name, points in points_by_name.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Charts of losses and main metrics over steps; empty if no metric has two points.

    Args:
      rows: of `metrics.jsonl`: dicts with "step" and metrics by name, in any mixture.
    """
    curves = metric_curves(rows).values()
    drawn = []
    for title, endings in _CHARTS:
        chosen = [curve for curve in curves if _belongs(curve.name, endings) and len(curve.points) > 1]
        if chosen:
            drawn.append(_chart(title, chosen))
    return drawn


def _belongs(name: str, endings: Sequence[str]) -> bool:
    parts = name.split("/")
    return parts[-1] in endings or ("loss" in endings and "loss" in parts)


def _chart(title: str, curves: Sequence[Curve]) -> Chart:
    values = [value for curve in curves for _, value in curve.points]
    steps = [step for curve in curves for step, _ in curve.points]
    logarithmic = "Loss" in title and min(values) > 0 and max(values) / min(values) > 30
    ticks = _log_ticks(min(values), max(values)) if logarithmic else _ticks(min(values), max(values))
    low, high = (min(values), max(values)) if logarithmic else (ticks[0], ticks[-1])
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / ((last - first) or 1), 1)

    def y(value: float) -> float:
        a, b, v = (math.log(low), math.log(high), math.log(value)) if logarithmic else (low, high, value)
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (v - a) / ((b - a) or 1), 1)

    def drawn(curve: Curve, number: int) -> DrawnCurve:
        points = [(x(step), y(value)) for step, value in _thinned(curve.points)]
        step, value = curve.points[-1]
        title = f"{curve.name}: {value:.4g} at step {int(step):,}"
        return DrawnCurve(title, _short(curve.name, curves), f"{value:.4g}", number % _COLOURS, points, points[-1])

    return Chart(
        title,
        logarithmic,
        [(y(tick), f"{tick:.4g}") for tick in ticks],
        [(x(tick), _step_text(tick)) for tick in _ticks(first, last, 5) if first <= tick <= last],
        [drawn(curve, number) for number, curve in enumerate(curves)],
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points: means of neighbours, the last one kept."""
    if len(points) <= _POINTS:
        return points
    size = math.ceil(len(points) / _POINTS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    means = [tuple(sum(p[axis] for p in block) / len(block) for axis in (0, 1)) for block in blocks]
    return [*means, points[-1]]


def _short(name: str, curves: Sequence[Curve]) -> str:
    """A name without the parts that all curves of a chart share."""
    split = [curve.name.split("/") for curve in curves]
    parts = name.split("/")
    if len(curves) == 1:
        return name
    while len(parts) > 1 and len({s[0] for s in split}) == 1 and min(map(len, split)) > 1:
        split, parts = [s[1:] for s in split], parts[1:]
    while len(parts) > 1 and len({s[-1] for s in split}) == 1 and min(map(len, split)) > 1:
        split, parts = [s[:-1] for s in split], parts[:-1]
    return "/".join(parts)


def _step_text(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span low to high."""
    if not (high - low) / about > 0:  # equal, or so near that their difference is rounded to 0
        high = low + (abs(low) if abs(low) > 1e-300 else 1.0) * 0.1
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within low to high, which a logarithmic axis spans exactly."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**k for k in range(first, last + 1)]
