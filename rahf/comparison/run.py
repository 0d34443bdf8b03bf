"""The work behind `rahf compare`: sources on a split, as a table in the terminal and as JSON."""

from __future__ import annotations

import datetime
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from data_pipelines import store
from data_pipelines.loading.labels import Labels
from rahf.comparison import measure
from rahf.comparison.measure import TRIVIAL, WORDS, Comparison
from rahf.comparison.sources import FileSource, ModelSource, open_sources
from rahf.core import names, terminal
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.files import check_writable, write_atomically
from rahf.core.version import __version__
from rahf.critic.evaluation.report.metrics import METRICS, number
from rahf.metrics.regions import MEASURES

#: Metrics of words, maps and scores that the terminal shows; the JSON file has all.
MAIN = (
    ("Scores", "scores/mean/plcc", "mean of the four, PLCC"),
    ("Scores", "scores/mean/srcc", "mean of the four, SRCC"),
    *(("Scores", f"scores/{name}/plcc", f"{name}, PLCC") for name in SCORES),
    *(
        (f"{name.capitalize()} map", f"{family}/{name}/{metric}", "")
        for name in HEATMAPS
        for family, metrics in (
            ("heatmaps", ("mse", "cc", "nss", "auc_judd")),
            ("marks", ("average_precision",)),
            ("regions", MEASURES),
        )
        for metric in metrics
    ),
    *(("Words", f"{WORDS}/{metric}", "") for metric in ("precision", "recall", "f1", "average_precision")),
)
_LABELS = {"average_precision": "Average precision"}


def run(
    models: Sequence[str],
    predictions: Sequence[str] = (),
    *,
    data: str,
    split: str = "test",
    json_file: str | None = None,
    limit: int | None = None,
    resamples: int = 1000,
    console: Console | None = None,
) -> tuple[Comparison, list[ModelSource | FileSource]]:
    """Compares models and predictions of any program on a split, prints a table and writes JSON if asked.

    Args:
      models: as of `rahf.load`, or predictions files (.jsonl).
      predictions: predictions files.
      data: prepared dataset.
      split: name of the split.
      json_file: for all metrics, intervals, differences and refused lines.
      limit: only the first so many examples that count.
      resamples: of the bootstrap.
      console: where the table goes.

    Returns:
      What was measured, and the sources with the lines that were refused.

    Raises:
      ArgumentError, DataError, DatasetError, CheckpointError, ExportError: something cannot be read or written.
    """
    console = console or terminal.console()
    if json_file:
        check_writable(pathlib.Path(json_file).absolute().parent, "give another file with --json FILE")
    labels = Labels(store.open_split(data, split))
    sources = open_sources(models, predictions)
    bar = progress(f"comparing on {split}")
    comparison = measure.compare(sources, labels, limit=limit, resamples=resamples, progress=bar)
    for line in notes(comparison, sources):
        console.print(Text(names.one_line(f"note: {line}")), soft_wrap=True)
    title = f"{names.one_line(pathlib.PurePath(data).name)}, {split}: {comparison.count} of {comparison.total} examples"
    console.print(metrics_table(comparison, title))
    if len(comparison.sources) > 1:
        console.print(differences_table(comparison))
    if json_file:
        tree = to_json(comparison, sources) | {"data": data, "split": split, "rahf": __version__}
        tree["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_atomically(json_file, json.dumps(tree, indent=2, allow_nan=False) + "\n")
        console.print(Text(names.one_line(f"all metrics: {json_file}")), soft_wrap=True)
    return comparison, sources


def progress(text: str) -> Any:
    """Shows how far a loop over positions is, on stderr."""
    return lambda places: track(places, text, console=terminal.console(stderr=True), transient=True)


def notes(comparison: Comparison, sources: Sequence[ModelSource | FileSource]) -> list[str]:
    """What a reader must know besides the numbers, one line each."""
    lines = [f"{source.name}: {note}" for source in sources for note in source.notes]
    fewer = {n: c for n, c in comparison.labels_counted.items() if 0 < c < comparison.count}
    if fewer:
        listed = ", ".join(f"{name} {count}" for name, count in fewer.items())
        lines.append(f"labels count only where every source that predicts their kind predicts them: {listed}")
    return lines


def rows(comparison: Comparison) -> list[tuple[str, str, str, int]]:
    """Group, name, label and direction of the main metrics that have a value."""
    shown = []
    for group, name, label in MAIN:
        if any(math.isfinite(one.metrics.get(name, math.nan)) for one in comparison.sources):
            usual, _, direction = METRICS[name.rsplit("/", 1)[-1]]
            shown.append((group, name, label or usual, direction))
    return shown


def metrics_table(comparison: Comparison, title: str) -> Table:
    """The main metrics of every source with intervals, of what is trivial, and of people."""
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    table.add_column("metric", no_wrap=True)
    for one in comparison.sources:
        table.add_column(Text(one.name), justify="right")
    for name in (*TRIVIAL, "a person"):
        table.add_column(Text(name, style="dim"), justify="right")
    before = ""
    for group, name, label, direction in rows(comparison):
        if group != before:
            table.add_section()
            table.add_row(Text(group, style="bold"))
            before = group
        cells = [value_text(one.metrics.get(name), one.intervals.get(name)) for one in comparison.sources]
        trivial = [number(comparison.trivial[one].get(name)) for one in TRIVIAL]
        person = number(measure.human(comparison.sources[0].metrics, name))
        table.add_row(Text(f"  {label}{ {1: ' ↑', -1: ' ↓'}.get(direction, '') }"), *cells, *trivial, person)
    return table


def value_text(value: float | None, interval: tuple[float, float] | None) -> str:
    """A value with its interval in a second line."""
    if value is None or not math.isfinite(value):
        return "–"
    if interval is None or not all(map(math.isfinite, interval)):
        return number(value)
    return f"{number(value)}\n{number(interval[0])} – {number(interval[1])}"


def differences_table(comparison: Comparison) -> Table:
    """Differences of the main metrics, paired by example, with intervals."""
    table = Table(title=Text("Differences, paired by example"), title_justify="left", header_style="bold")
    table.add_column("metric")
    for i, j in comparison.differences:
        table.add_column(Text(f"{comparison.sources[i].name} − {comparison.sources[j].name}"), justify="right")
    for group, name, label, _ in rows(comparison):
        cells = [difference_text(by_name.get(name)) for by_name in comparison.differences.values()]
        table.add_row(Text(f"{group}: {label}"), *cells)
    return table


def difference_text(difference: Any) -> str:
    """A difference with its sign and interval; a star where the interval excludes 0."""
    if difference is None or not math.isfinite(difference.value):
        return "–"
    star = " *" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.value:+.3f} ({difference.low:+.3f} … {difference.high:+.3f}){star}"


def to_json(comparison: Comparison, sources: Sequence[ModelSource | FileSource]) -> dict[str, Any]:
    """Everything that was measured; null where a value is undefined."""
    return {
        "examples": comparison.count,
        "of": comparison.total,
        "labels": comparison.labels_counted,
        "sources": [
            {
                "name": one.name,
                "about": one.about,
                "notes": one.notes,
                "metrics": {name: _safe(value) for name, value in one.metrics.items()},
                "intervals": {name: [_safe(edge) for edge in pair] for name, pair in one.intervals.items()},
                "refused": [refused._asdict() for refused in source.refused],
            }
            for one, source in zip(comparison.sources, sources)
        ],
        "trivial": {name: {n: _safe(v) for n, v in values.items()} for name, values in comparison.trivial.items()},
        "differences": [
            {
                "first": comparison.sources[i].name,
                "second": comparison.sources[j].name,
                "metrics": {n: {k: _safe(v) for k, v in d._asdict().items()} for n, d in by_name.items()},
            }
            for (i, j), by_name in comparison.differences.items()
        ],
    }


def _safe(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
