"""Training curves as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_WIDTH, _HEIGHT = 380, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 24
_POINTS = 240  # of a line, at most; more would not be seen at this size
_COLOURS = 6  # classes c0..c5 of the style sheet

#: Chart title → which metrics it shows, by the last parts of their names.
_CHARTS = (
    ("Loss", ("loss",)),
    ("Scores: PLCC", ("plcc",)),
    ("Heatmaps: CC", ("cc",)),
    ("Heatmaps: AUC-Judd", ("auc_judd",)),
    ("Misaligned words: F1", ("f1",)),
    ("Learning rate", ("learning_rate", "lr")),
)


class Line(NamedTuple):
    """A metric over the steps of a run: finite points only, steps rising."""

    name: str
    points: list[tuple[float, float]]


def lines(curves: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    """Collects every numeric metric of `metrics.jsonl` rows with a "step"; a resumed run's later row wins."""
    found: dict[str, dict[float, float]] = {}
    for row in curves:
        step = row.get("step")
        if not _finite(step):
            continue
        for name, value in row.items():
            if name != "step" and _finite(value):
                found.setdefault(str(name), {})[float(step)] = float(value)
    return {name: Line(name, sorted(points.items())) for name, points in found.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def curves_html(curves: Sequence[Mapping[str, Any]]) -> str:
    """Charts of losses and main metrics over steps; empty if no metric has two points.

    Args:
      curves: rows of `metrics.jsonl`: dicts with "step" and metrics by name, in any mixture.
    """
    known = lines(curves)
    charts = []
    for title, endings in _CHARTS:
        chosen = [line for line in known.values() if _belongs(line.name, endings) and len(line.points) > 1]
        if chosen:
            charts.append(_chart(title, chosen))
    return f'<div class="cards charts">{"".join(charts)}</div>' if charts else ""


def _belongs(name: str, endings: Sequence[str]) -> bool:
    parts = name.split("/")
    return parts[-1] in endings or ("loss" in endings and "loss" in parts)


def _chart(title: str, chosen: Sequence[Line]) -> str:
    values = [value for line in chosen for _, value in line.points]
    steps = [step for line in chosen for step, _ in line.points]
    log = "Loss" in title and min(values) > 0 and max(values) / min(values) > 30
    ticks = _log_ticks(min(values), max(values)) if log else _ticks(min(values), max(values))
    low, high = (min(values), max(values)) if log else (ticks[0], ticks[-1])
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / ((last - first) or 1), 1)

    def y(value: float) -> float:
        a, b, v = (math.log(low), math.log(high), math.log(value)) if log else (low, high, value)
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (v - a) / ((b - a) or 1), 1)

    parts = []
    right = _WIDTH - _RIGHT
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 3.5}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(first, last, 5):
        if first <= tick <= last:
            anchor = "end" if x(tick) > _WIDTH - 30 else "middle"  # a number at the edge stays inside
            place = f'x="{x(tick)}" y="{_HEIGHT - 6}" text-anchor="{anchor}"'
            parts.append(f"<text {place}>{_steps(tick)}</text>")
    parts += [_polyline(line, number, x, y) for number, line in enumerate(chosen)]
    legend = "".join(
        f'<span><i class="c{number % _COLOURS}"></i>{html.escape(_short(line.name, chosen))} '
        f"<b>{line.points[-1][1]:.4g}</b></span>"
        for number, line in enumerate(chosen)
    )
    scale = " (logarithmic)" if log else ""
    return (
        f'<section class="card"><h3>{title}{scale}</h3><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{title} over training steps">{"".join(parts)}</svg>'
        f'<p class="legend">{legend}</p></section>'
    )


def _polyline(line: Line, number: int, x: Any, y: Any) -> str:
    points = _thinned(line.points)
    path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
    step, value = line.points[-1]
    title = html.escape(f"{line.name}: {value:.4g} at step {int(step):,}")
    return (
        f'<g class="c{number % _COLOURS}"><title>{title}</title><polyline points="{path}"/>'
        f'<circle cx="{x(step)}" cy="{y(value)}" r="2.6"/></g>'
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points: means of neighbours, the last one kept."""
    if len(points) <= _POINTS:
        return points
    size = math.ceil(len(points) / _POINTS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    means = [tuple(sum(p[axis] for p in block) / len(block) for axis in (0, 1)) for block in blocks]
    return [*means, points[-1]]


def _short(name: str, chosen: Sequence[Line]) -> str:
    """A name without the parts that all lines of a chart share."""
    split = [line.name.split("/") for line in chosen]
    parts = name.split("/")
    if len(chosen) == 1:
        return name
    while len(parts) > 1 and len({s[0] for s in split}) == 1 and min(map(len, split)) > 1:
        split, parts = [s[1:] for s in split], parts[1:]
    while len(parts) > 1 and len({s[-1] for s in split}) == 1 and min(map(len, split)) > 1:
        split, parts = [s[:-1] for s in split], parts[:-1]
    return "/".join(parts)


def _steps(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span low to high."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within low to high, which a logarithmic axis spans exactly."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**k for k in range(first, last + 1)]
