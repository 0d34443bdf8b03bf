"""The page of `rahf report`: one HTML file that opens from disk, asks nobody for anything, and fits a size."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import itertools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from rahf.comparison import measure
from rahf.comparison.measure import TRIVIAL, WORDS, Comparison
from rahf.comparison.report import plots
from rahf.comparison.report.items import ENCODINGS, EncodedItem, Item, encode
from rahf.comparison.run import difference_text, rows
from rahf.comparison.wins import calibration, shares_of_examples, shares_of_pictures, win_rate
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.files import write_atomically
from rahf.critic.evaluation.report.metrics import number
from rahf.metrics.keywords import precision_recall_f1

#: Sources that the page has colours for.
MAX_SOURCES = 6
_PEOPLE = "people"
_LEGEND_OF_MAPS = {"implausibility": "warm colours", "misalignment": "cool colours"}


@dataclasses.dataclass
class ReportData:
    """Everything that the page shows.

    Attributes:
      title: heading.
      kind: "models" on labelled data, "pictures" without labels, "generators" under one model.
      what: of what `count` is the number, in words.
      names, about: of each of S sources.
      scores: of each source float [N,4].
      prompts: of each source, what pairs each of its N rows with others.
      rated: float [N,4], what people said; None without people.
      comparison: metrics; None without people.
      items: of the gallery.
      count: examples, pictures or prompts that are compared.
      notes: what a reader must know.
      meta: facts for the end of the page.
      resamples: of the bootstrap of win rates.
    """

    title: str
    kind: str
    what: str
    names: list[str]
    about: list[str]
    scores: list[np.ndarray]
    prompts: list[list[str]]
    rated: np.ndarray | None
    comparison: Comparison | None
    items: list[Item]
    count: int
    notes: list[str]
    meta: dict[str, str]
    resamples: int = 1000


def write_page(path: str | os.PathLike, data: ReportData, max_bytes: int) -> int:
    """Writes the page.

    Args:
      path: of the HTML file; one that exists is replaced.
      data: what it shows.
      max_bytes: largest size of the file.

    Returns:
      The number of items in the gallery.

    Raises:
      OSError: the file cannot be written; an older one then stays as it is.
    """
    values = _values(data)
    side_names = _side_names(data)
    items = data.items
    page = ""
    for encoding in ENCODINGS:
        encoded = [encode(item, number_, side_names, encoding) for number_, item in enumerate(items)]
        page = _render(values, encoded)
        if _size(page) <= max_bytes:
            break
    while _size(page) > max_bytes and items:  # even coarse ones are too many: every item costs about the same
        share = max_bytes / _size(page)
        items = _thinned(items, min(len(items) - 1, int(len(items) * share * 0.95)))
        encoded = [encode(item, number_, side_names, ENCODINGS[-1]) for number_, item in enumerate(items)]
        page = _render(values, encoded)
    # A prompt may hold a lone surrogate, which UTF-8 cannot write.
    write_atomically(pathlib.Path(path), page.encode("utf-8", "replace"))
    return len(items)


def _thinned(items: Sequence[Item], most: int) -> list[Item]:
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, max(most, 0)).astype(int))] if most > 0 else []


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _side_names(data: ReportData) -> list[str]:
    return [*data.names, *([_PEOPLE] if data.rated is not None else [])]


def _render(values: dict[str, Any], encoded: Sequence[EncodedItem]) -> str:
    rules = Markup("\n".join(rule for one in encoded for rule in one.rules))
    script = _environment().get_template("script.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            values,
            items=[one.values for one in encoded],
            rules=rules,
            script=Markup(script),
            script_hash=Markup(digest),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rahf.comparison.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number}
    return environment


class _Group(NamedTuple):
    title: str
    rows: list[dict[str, Any]]


def _values(data: ReportData) -> dict[str, Any]:
    sides = [
        {"name": name, "css": plots.colour(i), "about": about}
        for i, (name, about) in enumerate(zip(data.names, data.about))
    ]
    people = (
        [{"name": _PEOPLE, "css": plots.PEOPLE, "about": "the labels of the data set"}]
        if data.rated is not None
        else []
    )
    comparison = data.comparison
    return {
        "title": data.title,
        "kind": data.kind,
        "what": data.what,
        "count": data.count,
        "sources": sides,
        "sides": sides + people,
        "distributions": _distributions(data),
        "percentiles": _percentiles(data),
        "wins": _wins(data),
        "calibrations": _calibrations(data),
        "groups": _metric_groups(comparison) if comparison else [],
        "differences": _differences(comparison) if comparison else [],
        "pairs": [(data.names[i], data.names[j]) for i, j in comparison.differences] if comparison else [],
        "trivial": TRIVIAL,
        "curves": plots.precision_recall_plots(comparison) if comparison else [],
        "confusions": _confusions(comparison) if comparison else [],
        "orders": _orders(data),
        "scores": SCORES,
        "heatmaps": HEATMAPS,
        "map_colours": _LEGEND_OF_MAPS,
        "notes": data.notes,
        "meta": data.meta,
    }


def _series(data: ReportData, column: int) -> list[tuple[str, str, np.ndarray]]:
    series = [(plots.colour(i), name, data.scores[i][:, column]) for i, name in enumerate(data.names)]
    if data.rated is not None:
        series.append((plots.PEOPLE, _PEOPLE, data.rated[:, column]))
    return series


def _distributions(data: ReportData) -> list[plots.Plot]:
    drawn = [plots.distribution(name.capitalize(), _series(data, column)) for column, name in enumerate(SCORES)]
    return [plot for plot in drawn if plot is not None]


def _percentiles(data: ReportData) -> list[tuple[str, list[plots.PercentileBar]]]:
    groups = []
    for column, name in enumerate(SCORES):
        bars = [bar for one in _series(data, column) if (bar := plots.percentile_bar(*one)) is not None]
        if bars:
            groups.append((name, bars))
    return groups


def _wins(data: ReportData) -> list[_Group]:
    """For each pair of sources: who is nearer to people, or whose pictures score higher."""
    if data.kind == "pictures" or len(data.names) < 2:
        return []
    groups = []
    for i, j in itertools.combinations(range(len(data.names)), 2):
        shares = _closer(data, i, j) if data.kind == "models" else _higher(data, i, j)
        drawn = [
            plots.win_row(label, data.names[i], data.names[j], win_rate(values, data.resamples))
            for label, values in shares
        ]
        kept = [row for row in drawn if row is not None]
        if kept:
            css = (plots.colour(i), plots.colour(j))
            groups.append(
                _Group(f"{data.names[i]} against {data.names[j]}", [{"row": row, "css": css} for row in kept])
            )
    return groups


def _higher(data: ReportData, i: int, j: int) -> list[tuple[str, list[float]]]:
    result = []
    for column, name in enumerate(SCORES):
        by_prompt: list[dict[str, list[float]]] = []
        for side in (i, j):
            values: dict[str, list[float]] = {}
            for prompt, score in zip(data.prompts[side], data.scores[side][:, column]):
                values.setdefault(prompt, []).append(float(score))
            by_prompt.append(values)
        result.append((f"higher {name}", shares_of_pictures(*by_prompt)))
    return result


def _closer(data: ReportData, i: int, j: int) -> list[tuple[str, list[float]]]:
    assert data.rated is not None and data.comparison is not None
    result, prompts = [], data.prompts[i]
    for column, name in enumerate(SCORES):
        errors = [-np.abs(data.scores[side][:, column] - data.rated[:, column]) for side in (i, j)]
        result.append((f"{name} nearer to people", shares_of_examples(*errors, prompts)))
    families = [data.comparison.sources[side].families for side in (i, j)]
    for kind, name in enumerate(HEATMAPS):
        arrays = [one.heatmaps.to_arrays() for one in families]
        errors = [np.where(one["mask"][:, kind], -one["values"][:, kind, 0], np.nan) for one in arrays]
        result.append((f"{name} map with the smaller error", shares_of_examples(*errors, prompts)))
    errors = []
    for one in families:
        arrays = one.words.to_arrays()
        wrong = (arrays["mask"] & (arrays["prediction"] != arrays["truth"])).sum(1).astype(float)
        errors.append(np.where(arrays["mask"].any(1), -wrong, np.nan))
    result.append(("fewer wrong words", shares_of_examples(*errors, prompts)))
    return result


def _calibrations(data: ReportData) -> list[plots.Plot]:
    if data.rated is None:
        return []
    drawn = []
    for column, name in enumerate(SCORES):
        bins = [
            (plots.colour(i), source, calibration(data.scores[i][:, column], data.rated[:, column]))
            for i, source in enumerate(data.names)
        ]
        drawn.append(plots.calibration_plot(name.capitalize(), bins))
    return [plot for plot in drawn if plot is not None]


def _metric_groups(comparison: Comparison) -> list[_Group]:
    groups: list[_Group] = []
    for title, name, label, direction in rows(comparison):
        if not groups or groups[-1].title != title:
            groups.append(_Group(title, []))
        values = [
            (plots.colour(i), one.metrics.get(name, math.nan), one.intervals.get(name))
            for i, one in enumerate(comparison.sources)
        ]
        trivial = [comparison.trivial[one].get(name) for one in TRIVIAL]
        person = measure.human(comparison.sources[0].metrics, name)
        others = [*(("trivial", value) for value in trivial), (plots.PEOPLE, person)]
        groups[-1].rows.append(
            {
                "name": name,
                "label": label,
                "direction": direction,
                "dots": plots.metric_dots(values, others),
                "values": [(value, interval) for _, value, interval in values],
                "trivial": trivial,
                "person": person,
            }
        )
    return groups


def _differences(comparison: Comparison) -> list[tuple[str, list[str]]]:
    if not comparison.differences:
        return []
    return [
        (f"{group}: {label}", [difference_text(one.get(name)) for one in comparison.differences.values()])
        for group, name, label, _ in rows(comparison)
    ]


def _confusions(comparison: Comparison) -> list[dict[str, Any]]:
    """Numbers of words by what people and each source say; the last is: every word is called misaligned."""
    result = []
    for position, source in enumerate(comparison.sources):
        arrays = source.families.words.to_arrays()
        mask, called, actual = arrays["mask"], arrays["prediction"] == 0, arrays["truth"] == 0
        counts = [
            int((mask & a & b).sum())
            for a, b in ((called, actual), (called, ~actual), (~called, actual), (~called, ~actual))
        ]
        if sum(counts):
            result.append(_confusion(source.name, plots.colour(position), counts, source.intervals.get(f"{WORDS}/f1")))
    if result:
        first = result[0]["counts"]
        actual, aligned = first[0] + first[2], first[1] + first[3]
        result.append(_confusion("trivial: every word", "trivial", [actual, aligned, 0, 0], None))
    return result


def _confusion(name: str, css: str, counts: list[int], interval: Any) -> dict[str, Any]:
    hits, alarms, missed, _ = (np.float64(one) for one in counts)
    precision, recall, f1 = (float(one) for one in precision_recall_f1(hits, alarms, missed))
    total = max(sum(counts), 1)
    shares = [one / total for one in counts]
    return {
        "name": name, "css": css, "counts": counts, "shares": shares,
        "precision": precision, "recall": recall, "f1": f1, "interval": interval,
    }  # fmt: skip


def _orders(data: ReportData) -> dict[str, str]:
    """What the gallery can be ordered by: key in an item's measures → label. Those that no item has are left out."""
    present = {name for item in data.items for name, value in item.measures.items() if math.isfinite(value)}
    labels = {f"disagreement, {kind}": f"disagreement in {kind}" for kind in ("scores", "maps", "words")}
    for i, source in enumerate(data.names):
        labels |= {f"{i}:{kind}": f"{source} against people, {kind}" for kind in ("scores", "maps", "words")}
        labels |= {
            f"{i}:{name}": f"{name} by {source}" if data.kind != "generators" else f"{name} of {source}"
            for name in SCORES
        }
    labels |= {f"score:{name}": f"{name} by {data.names[0]}" for name in SCORES}
    return {key: label for key, label in labels.items() if key in present}
