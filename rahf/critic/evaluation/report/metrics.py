"""Metric values for people: names and directions, a terminal table, JSON, the rows of the HTML report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from rahf.core import names as names_lib
from rahf.core.batch import HEATMAPS, SCORES
from rahf.metrics.regions import MEASURES as REGION_MEASURES

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
    "mask_iou": ("Mask IoU", "overlap of marked pixels, mean over maps with a mark", 1),
    "box_f1": ("Box F1", "of boxes around regions, matched from an IoU of 0.5 on", 1),
    "image_accuracy": ("Balanced accuracy, images", "of: something is marked in the picture", 1),
    "cell_accuracy": ("Balanced accuracy, cells", "of: something is marked in a cell of an 8 x 8 grid", 1),
    "precision": ("Precision", "words called misaligned that are, over all prompts", 1),
    "recall": ("Recall", "misaligned words that were found, over all prompts", 1),
    "f1": ("F1", "harmonic mean of precision and recall", 1),
    "macro_precision": ("Precision, macro", "mean over prompts; one without misaligned words counts 0", 1),
    "macro_recall": ("Recall, macro", "mean over prompts; one without misaligned words counts 0", 1),
    "macro_f1": ("F1, macro", "mean over prompts; one without misaligned words counts 0", 1),
    "average_precision": ("Average precision", "area under precision over recall", 1),
    "base_rate": ("Base rate", "share of words that are misaligned", 0),
}
_COUNTS = ("count", "count_empty", "count_majority", "count_marked", "count_human", "words", "misaligned")
#: Ending of a metric of regions → who predicts.
_PREDICTORS = {"": "", "_all": "everything marked", "_none": "nothing marked", "_centre": "a disc in the centre",
               "_human": "one annotator, by the others"}  # fmt: skip
_COUNTS_OF_REGIONS = ("count", "count_marked", "count_human")
_DIGITS = {"mse": 5, "mse_empty": 5}
_PLOT_WIDTH = 96  # of the box in the template `metrics.html`


class MetricRow(NamedTuple):
    """One metric as shown. `interval` and `baseline` are None where there is none."""

    name: str
    label: str
    note: str
    direction: int
    value: float
    interval: tuple[float, float] | None
    baseline: float | None
    digits: int


class MetricGroup(NamedTuple):
    """Rows under one heading, with a line that counts the examples from which they are computed."""

    title: str
    count: str
    rows: list[MetricRow]


def metric_groups(
    metrics: Values, intervals: Intervals | None = None, baselines: Values | None = None
) -> list[MetricGroup]:
    """Sorts metrics into headings. Every metric is in exactly one row or count; the last heading is "Other"."""
    intervals, baselines = intervals or {}, baselines or {}
    left = dict(metrics)

    def rows(title: str, names: Sequence[str], labels: Sequence[str | None], count: str) -> MetricGroup | None:
        shown = []
        for name, label in zip(names, labels):
            if name in left:
                shown.append(_row(name, label, left.pop(name), intervals.get(name), baselines.get(name)))
        return MetricGroup(title, count, shown) if shown else None

    sorted_groups: list[MetricGroup | None] = []
    for kind in ("plcc", "srcc"):
        which = [*SCORES, "mean"]
        labels = [*(name.capitalize() for name in SCORES), "Mean of the four"]
        rated = {int(metrics.get(f"scores/{name}/count", 0)) for name in SCORES if f"scores/{name}/{kind}" in metrics}
        title = f"Scores: {METRICS[kind][1].split(' with')[0]} ({METRICS[kind][0]})"
        count = f"{_range(rated)} rated images"
        sorted_groups.append(rows(title, [f"scores/{n}/{kind}" for n in which], labels, count))
    for heatmap in HEATMAPS:
        names = [f"heatmaps/{heatmap}/{m}" for m in METRICS]
        title = f"{heatmap.capitalize()} heatmap"
        sorted_groups.append(rows(title, names, [None] * len(names), _maps(metrics, heatmap)))
    for heatmap in HEATMAPS:
        pairs = [(measure, ending) for measure in REGION_MEASURES for ending in _PREDICTORS]
        names = [f"regions/{heatmap}/{measure}{ending}" for measure, ending in pairs]
        labels = [f"{METRICS[measure][0]}: {_PREDICTORS[ending]}" if ending else None for measure, ending in pairs]
        sorted_groups.append(rows(f"{heatmap.capitalize()}, regions", names, labels, _regions(metrics, heatmap)))
    for prefix, decoder in (("keywords", "generated"), ("keywords_constrained", "constrained scoring")):
        names = [f"{prefix}/{m}" for m in METRICS]
        words, missed = (int(metrics.get(f"{prefix}/{n}", 0)) for n in ("words", "misaligned"))
        count = f"{words:,} words, {missed:,} misaligned"
        sorted_groups.append(rows(f"Misaligned words, {decoder}", names, [None] * len(names), count))
    rest = [name for name in left if name.split("/")[-1] not in _COUNTS]
    sorted_groups.append(rows("Other", rest, rest, ""))
    return [group for group in sorted_groups if group]


def _row(
    name: str, label: str | None, value: float, interval: tuple[float, float] | None, baseline: float | None
) -> MetricRow:
    last = name.split("/")[-1]
    usual_label, note, direction = METRICS.get(last, (name, "", 0))
    digits = _DIGITS.get(last, 3)
    return MetricRow(name, label or usual_label, note, direction, value, interval, baseline, digits)


def _range(numbers: set[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _maps(metrics: Values, heatmap: str) -> str:
    total, empty = (int(metrics.get(f"heatmaps/{heatmap}/{n}", 0)) for n in ("count", "count_empty"))
    return f"{total:,} maps: {empty:,} empty, {total - empty:,} with marks"


def _regions(metrics: Values, heatmap: str) -> str:
    regions, marked, human = (int(metrics.get(f"regions/{heatmap}/{n}", 0)) for n in _COUNTS_OF_REGIONS)
    people = f", {human:,} maps with those of several annotators" if human else ""
    return f"{regions:,} regions in {marked:,} maps, cut at one half{people}"


def number(value: float | None, digits: int = 3) -> str:
    """A value as text: an en dash if it is undefined, in powers of ten if it is very large or small."""
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
    table = Table(title=Text(names_lib.one_line(title)) if title else None, title_justify="left", header_style="bold")
    table.add_column("metric")
    for heading in ("value", "95% interval", "mean baseline"):
        table.add_column(heading, justify="right")
    for group in metric_groups(metrics, intervals, baselines):
        table.add_section()
        table.add_row(Text(group.title, style="bold"), "", "", "")
        if group.count:
            table.add_row(Text(group.count, style="dim"), "", "", "")
        for row in group.rows:
            arrow = {1: " ↑", -1: " ↓", 0: ""}[row.direction]
            table.add_row(
                Text(f"  {names_lib.one_line(row.label)}{arrow}"),
                number(row.value, row.digits),
                interval_text(row),
                "" if row.baseline is None else number(row.baseline, row.digits),
            )
    return table


def interval_text(row: MetricRow) -> str:
    """Both ends of a metric's interval as shown; empty without an interval."""
    if row.interval is None:
        return ""
    return " – ".join(number(edge, row.digits) for edge in row.interval)


def metrics_json(
    metrics: Values, intervals: Intervals | None = None, baselines: Values | None = None
) -> dict[str, Any]:
    """Metrics for a JSON file; values that are not finite become null, because JSON has no NaN.

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


class Headline(NamedTuple):
    """One of the few numbers that say most, shown large."""

    subject: str
    metric: str
    row: MetricRow


def headlines(metrics: Values, intervals: Intervals | None = None, baselines: Values | None = None) -> list[Headline]:
    """The few numbers that say most, those of them that were measured."""
    intervals, baselines = intervals or {}, baselines or {}
    return [
        Headline(subject, metric, _row(name, None, metrics[name], intervals.get(name), baselines.get(name)))
        for name, subject, metric in _HEADLINES
        if name in metrics
    ]


class Plot(NamedTuple):
    """Places, in units of a box 96 wide, of a metric's value, interval and baseline on one axis."""

    axis: tuple[float, float]
    value: float
    interval: tuple[float, float] | None
    baseline: float | None


def plot(row: MetricRow) -> Plot | None:
    """Value, interval and baseline on an axis from 0 to 1, or wider if needed; None if the value is not finite."""
    if not math.isfinite(row.value):
        return None
    baseline = row.baseline if row.baseline is not None and math.isfinite(row.baseline) else None
    finite = [v for v in (row.value, *(row.interval or ()), baseline) if v is not None and math.isfinite(v)]
    low = min(0.0, *finite)
    high = 1.0 if max(finite) <= 1 and row.name.split("/")[-1] not in _DIGITS else max(finite) * 1.08

    def x(value: float) -> float:
        return round(3 + (_PLOT_WIDTH - 6) * (value - low) / ((high - low) or 1), 1)

    interval = row.interval if row.interval is not None and all(map(math.isfinite, row.interval)) else None
    return Plot(
        (x(low), x(high)),
        x(row.value),
        None if interval is None else (x(interval[0]), x(interval[1])),
        None if baseline is None else x(baseline),
    )
