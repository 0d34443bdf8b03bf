"""Metric values for people: names and directions, a terminal table, JSON, the cards of the HTML report."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from rahf.core.batch import HEATMAPS, SCORES

Values = Mapping[str, float]
Intervals = Mapping[str, tuple[float, float]]

#: Last part of a metric's name → (label, what it says, +1 higher is better / -1 lower / 0 neither).
METRICS = {
    "plcc": ("PLCC", "Pearson correlation with the ratings", 1),
    "srcc": ("SRCC", "Spearman rank correlation with the ratings", 1),
    "mse": ("MSE", "mean squared error, all maps", -1),
    "mse_empty": ("MSE, empty", "mean squared error where nothing was marked", -1),
    "cc": ("CC", "Pearson correlation over pixels", 1),
    "kld": ("KLD", "Kullback-Leibler divergence of the maps as distributions", -1),
    "sim": ("SIM", "overlap of the maps as distributions", 1),
    "nss": ("NSS", "mean z-score of the prediction at marked pixels", 1),
    "nss_weighted": ("NSS, weighted", "the same, weighted by the share of annotators", 1),
    "nss_majority": ("NSS, majority", "the same, where at least half of the annotators marked", 1),
    "auc_judd": ("AUC-Judd", "chance that a marked pixel is higher than an unmarked one", 1),
    "precision": ("Precision", "words called misaligned that are, over all prompts", 1),
    "recall": ("Recall", "misaligned words that were found, over all prompts", 1),
    "f1": ("F1", "harmonic mean of precision and recall", 1),
    "macro_precision": ("Precision, macro", "mean over prompts; one without misaligned words counts 0", 1),
    "macro_recall": ("Recall, macro", "mean over prompts; one without misaligned words counts 0", 1),
    "macro_f1": ("F1, macro", "mean over prompts; one without misaligned words counts 0", 1),
    "average_precision": ("Average precision", "area under precision over recall", 1),
    "base_rate": ("Base rate", "share of words that are misaligned", 0),
}
_COUNTS = ("count", "count_empty", "count_majority", "words", "misaligned")
_DIGITS = {"mse": 5, "mse_empty": 5}


class Row(NamedTuple):
    """One metric as shown. `interval` and `baseline` are None where there is none."""

    name: str
    label: str
    note: str
    direction: int
    value: float
    interval: tuple[float, float] | None
    baseline: float | None
    digits: int


class Group(NamedTuple):
    """Rows under one heading, with a line that says how many examples they rest on."""

    title: str
    count: str
    rows: list[Row]


def groups(metrics: Values, intervals: Intervals | None = None, baselines: Values | None = None) -> list[Group]:
    """Sorts metrics into headings. Every metric is in exactly one row or count; unknown ones come last."""
    intervals, baselines = intervals or {}, baselines or {}
    left = dict(metrics)

    def rows(title: str, names: Sequence[str], labels: Sequence[str | None], count: str) -> Group | None:
        found = []
        for name, label in zip(names, labels):
            if name in left:
                found.append(_row(name, label, left.pop(name), intervals.get(name), baselines.get(name)))
        return Group(title, count, found) if found else None

    made: list[Group | None] = []
    for kind in ("plcc", "srcc"):
        which = [*SCORES, "mean"]
        labels = [*(name.capitalize() for name in SCORES), "Mean of the four"]
        rated = {int(metrics.get(f"scores/{name}/count", 0)) for name in SCORES if f"scores/{name}/{kind}" in metrics}
        title = f"Scores: {METRICS[kind][1].split(' with')[0]} ({METRICS[kind][0]})"
        count = f"{_range(rated)} rated images"
        made.append(rows(title, [f"scores/{n}/{kind}" for n in which], labels, count))
    for heatmap in HEATMAPS:
        names = [f"heatmaps/{heatmap}/{m}" for m in METRICS]
        title = f"{heatmap.capitalize()} heatmap"
        made.append(rows(title, names, [None] * len(names), _maps(metrics, heatmap)))
    for prefix, how in (("keywords", "generated"), ("keywords_constrained", "constrained scoring")):
        names = [f"{prefix}/{m}" for m in METRICS]
        words, missed = (int(metrics.get(f"{prefix}/{n}", 0)) for n in ("words", "misaligned"))
        count = f"{words:,} words, {missed:,} misaligned"
        made.append(rows(f"Misaligned words, {how}", names, [None] * len(names), count))
    rest = [name for name in left if name.split("/")[-1] not in _COUNTS]
    made.append(rows("Other", rest, rest, ""))
    return [group for group in made if group]


def _row(
    name: str, label: str | None, value: float, interval: tuple[float, float] | None, baseline: float | None
) -> Row:
    last = name.split("/")[-1]
    known, note, direction = METRICS.get(last, (name, "", 0))
    digits = _DIGITS.get(last, 3)
    return Row(name, label or known, note, direction, value, interval, baseline, digits)


def _range(numbers: set[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _maps(metrics: Values, heatmap: str) -> str:
    total, empty = (int(metrics.get(f"heatmaps/{heatmap}/{n}", 0)) for n in ("count", "count_empty"))
    return f"{total:,} maps: {empty:,} empty, {total - empty:,} with marks"


def number(value: float | None, digits: int = 3) -> str:
    """A value as shown; an en dash where undefined. Very large or small ones in powers of ten."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 10**-digits <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def metrics_table(
    metrics: Values, intervals: Intervals | None = None, baselines: Values | None = None, title: str = ""
) -> Table:
    """All metrics as a table for the terminal.

    Args:
      metrics: name → value.
      intervals: name → (low, high), 95%.
      baselines: name → value of always predicting the training mean.
      title: over the table.
    """
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("metric")
    for heading in ("value", "95% interval", "mean baseline"):
        table.add_column(heading, justify="right")
    for group in groups(metrics, intervals, baselines):
        table.add_section()
        table.add_row(f"[bold]{escape(group.title)}[/bold]", "", "", "")
        if group.count:
            table.add_row(f"[dim]{group.count}[/dim]", "", "", "")
        for row in group.rows:
            arrow = {1: " ↑", -1: " ↓", 0: ""}[row.direction]
            table.add_row(
                f"  {escape(row.label)}{arrow}",
                number(row.value, row.digits),
                _interval(row),
                "" if row.baseline is None else number(row.baseline, row.digits),
            )
    return table


def _interval(row: Row) -> str:
    if row.interval is None:
        return ""
    return " – ".join(number(edge, row.digits) for edge in row.interval)


def metrics_json(
    metrics: Values, intervals: Intervals | None = None, baselines: Values | None = None
) -> dict[str, Any]:
    """Metrics for a JSON file; what is not finite becomes null, because JSON has no NaN.

    Returns:
      ``{"metrics": {name: value}, "intervals": {name: [low, high]}, "baselines": {name: value}}``.
    """

    def safe(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "metrics": {name: safe(value) for name, value in metrics.items()},
        "intervals": {name: [safe(edge) for edge in pair] for name, pair in (intervals or {}).items()},
        "baselines": {name: safe(value) for name, value in (baselines or {}).items()},
    }


_HEADLINES = (
    ("scores/mean/plcc", "Scores", "mean PLCC"),
    ("heatmaps/implausibility/cc", "Implausibility", "CC"),
    ("heatmaps/implausibility/auc_judd", "Implausibility", "AUC-Judd"),
    ("heatmaps/misalignment/cc", "Misalignment", "CC"),
    ("keywords/f1", "Misaligned words", "F1, generated"),
    ("keywords_constrained/f1", "Misaligned words", "F1, constrained"),
)


def headline_html(metrics: Values, intervals: Intervals, baselines: Values) -> str:
    """The few numbers that say most, large."""
    tiles = []
    for name, where, what in _HEADLINES:
        if name not in metrics:
            continue
        row = _row(name, None, metrics[name], intervals.get(name), baselines.get(name))
        beside = [] if row.interval is None else [f"95% {_interval(row)}"]
        beside += [] if row.baseline is None else [f"mean baseline {number(row.baseline)}"]
        tiles.append(
            f'<div class="tile"><span class="where">{where}</span><span class="what">{what}</span>'
            f'<strong>{number(row.value)}</strong><span class="small">{"<br>".join(beside)}</span></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def metrics_html(metrics: Values, intervals: Intervals, baselines: Values) -> str:
    """All metrics as one card per heading: value, interval, baseline, and a small plot of the three."""
    cards = []
    for group in groups(metrics, intervals, baselines):
        body = "".join(_row_html(row) for row in group.rows)
        cards.append(
            f'<section class="card"><h3>{html.escape(group.title)}</h3>'
            f'<p class="small">{html.escape(group.count)}</p><table class="metrics"><thead>'
            '<tr><th>metric</th><th class="plot"></th><th>value</th>'
            "<th>95% interval</th><th>baseline</th></tr></thead>"
            f"<tbody>{body}</tbody></table></section>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _row_html(row: Row) -> str:
    arrow = {
        1: '&nbsp;<span class="arrow" title="higher is better">↑</span>',
        -1: '&nbsp;<span class="arrow" title="lower is better">↓</span>',
        0: "",
    }[row.direction]
    title = html.escape(f"{row.name}: {row.note}" if row.note else row.name)
    baseline = "" if row.baseline is None else number(row.baseline, row.digits)
    return (
        f'<tr><th scope="row" title="{title}">{html.escape(row.label)}{arrow}</th>'
        f'<td class="plot">{_plot(row)}</td><td class="value">{number(row.value, row.digits)}</td>'
        f'<td class="small">{_interval(row)}</td><td class="small">{baseline}</td></tr>'
    )


def _plot(row: Row) -> str:
    """Value (dot), interval (line) and baseline (tick) on an axis from 0 to 1, or wider if need be."""
    known = [row.value, *(row.interval or ()), *([] if row.baseline is None else [row.baseline])]
    known = [v for v in known if math.isfinite(v)]
    if not known or not math.isfinite(row.value):
        return ""
    low = min(0.0, *known)
    high = 1.0 if max(known) <= 1 and row.name.split("/")[-1] not in _DIGITS else max(known) * 1.08
    width, middle = 96, 8

    def x(value: float) -> float:
        return round(3 + (width - 6) * (value - low) / ((high - low) or 1), 1)

    parts = [f'<line class="axis" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>']
    if row.baseline is not None and math.isfinite(row.baseline):
        at = x(row.baseline)
        parts.append(f'<line class="base" x1="{at}" x2="{at}" y1="{middle - 5}" y2="{middle + 5}"/>')
    if row.interval is not None and all(map(math.isfinite, row.interval)):
        start, end = map(x, row.interval)
        parts.append(f'<line class="range" x1="{start}" x2="{end}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle class="dot" cx="{x(row.value)}" cy="{middle}" r="3.2"/>')
    box = f'viewBox="0 0 {width} 16" width="{width}" height="16" aria-hidden="true"'
    return f"<svg {box}>{''.join(parts)}</svg>"
