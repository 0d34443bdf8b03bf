"""The report of an evaluation: one HTML file that opens from disk, works offline, and can be mailed.

Also the same metrics as a terminal table (`metrics_table`) and as JSON (`metrics_json`).
"""

from __future__ import annotations

import html
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rahf.core.files import write_atomically
from rahf.critic.evaluation.report.curves import curves_html
from rahf.critic.evaluation.report.gallery import ORDERS, Encoding, ReportExample, article
from rahf.critic.evaluation.report.metrics import headline_html, metrics_html, metrics_json, metrics_table
from rahf.critic.evaluation.report.style import SCRIPT, STYLE

__all__ = ["ReportExample", "metrics_json", "metrics_table", "write_report"]

# From finest to coarsest; the first that fits the size is taken.
_ENCODINGS = (Encoding(), Encoding(320, 112, 75), Encoding(224, 80, 65))
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(
    folder: str | os.PathLike,
    title: str,
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    baselines: Mapping[str, float] | None = None,
    examples: Sequence[ReportExample] = (),
    meta: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, Any]] | None = None,
    max_examples: int = 60,
    max_bytes: int = 15_000_000,
) -> pathlib.Path:
    """Writes ``index.html`` into a folder, which is made if need be.

    Args:
      folder: where to write; an older report there is replaced.
      title: heading of the page.
      metrics: name → value, names as of `rahf.metrics.EvaluationMetrics`.
      intervals: name → (low, high), 95%.
      baselines: name → value of always predicting the training mean.
      examples: for the gallery, in any order. If there are more than `max_examples`, a third of the room
        goes to the worst, a third to the best, and the rest to examples at equal steps between them.
      meta: facts shown at the end (checkpoint, data, command, date), in this order.
      curves: rows of `metrics.jsonl`; None or too few: no curves.
      max_examples: size of the gallery.
      max_bytes: the pictures are made smaller, then left out, until the file is no larger.

    Returns:
      The path of ``index.html``.
    """
    ordered = sorted(examples, key=lambda example: -_rankable(example.loss))
    chosen = _spread(ordered, max_examples)
    fixed = _head(title) + _metrics_part(title, metrics, intervals or {}, baselines or {}, curves, meta or {})
    room = max_bytes - len(fixed.encode("utf-8", "replace")) - 20_000  # 20 kB: controls, facts, script
    parts = _gallery_parts(chosen, room)
    page = fixed + _gallery(parts, len(examples)) + _facts(meta or {}) + _foot()
    target = pathlib.Path(folder) / "index.html"
    write_atomically(target, page.encode("utf-8", "replace"))  # a prompt may hold a lone surrogate: no UTF-8
    return target


def _rankable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss  # not a number: among the worst


def _spread(ordered: Sequence[ReportExample], most: int) -> list[ReportExample]:
    """Worst, best, and some between, still ordered worst first."""
    number = len(ordered)
    if number <= most:
        return list(ordered)
    ends = most // 3
    between = most - 2 * ends
    span = number - 2 * ends
    kept = [*range(ends), *(ends + (2 * i + 1) * span // (2 * between) for i in range(between))]
    return [ordered[i] for i in [*kept, *range(number - ends, number)]]


def _gallery_parts(chosen: Sequence[ReportExample], room: int) -> list[tuple[str, str]]:
    """Articles and their style rules, as fine as fits; if nothing fits all, examples from the middle go."""
    parts: list[tuple[str, str]] = []
    for encoding in _ENCODINGS:
        parts = [article(example, number, encoding) for number, example in enumerate(chosen)]
        if _size(parts) <= room:
            return parts
    while parts and _size(parts) > room:
        del parts[len(parts) // 2]
    return parts


def _size(parts: Sequence[tuple[str, str]]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for pair in parts for text in pair)


def _head(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>"
    )


def _metrics_part(
    title: str,
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    baselines: Mapping[str, float],
    curves: Sequence[Mapping[str, Any]] | None,
    meta: Mapping[str, Any],
) -> str:
    drawn = curves_html(curves or [])
    links = [("metrics", "Metrics"), *([("curves", "Training")] if drawn else []), ("examples", "Examples")]
    links += [("facts", "About this run")] if meta else []
    nav = "".join(f'<a href="#{name}">{text}</a>' for name, text in links)
    key = (
        '<p class="key small"><span><svg width="34" height="14" aria-hidden="true">'
        '<line class="range" x1="2" x2="32" y1="7" y2="7"/><circle class="dot" cx="17" cy="7" r="3.2"/></svg>'
        'value with 95% bootstrap interval</span><span><svg width="8" height="14" aria-hidden="true">'
        '<line class="base" x1="4" x2="4" y1="2" y2="12"/></svg>always predicting the training mean</span>'
        "<span>↑ higher is better, ↓ lower is better</span></p>"
    )
    return (
        f'<div class="top"><h1>{html.escape(title)}</h1><nav class="small">{nav}</nav>'
        f"{headline_html(metrics, intervals, baselines)}</div><main>"
        f'<h2 id="metrics">Metrics</h2>{key}{metrics_html(metrics, intervals, baselines)}'
        + (f'<h2 id="curves">Training</h2>{drawn}' if drawn else "")
    )


def _gallery(parts: Sequence[tuple[str, str]], total: int) -> str:
    if not parts:
        return '<h2 id="examples">Examples</h2><p class="small">No examples were given.</p>'
    shown = f"{len(parts)} of {total}" if len(parts) < total else f"All {total}"
    choices = "".join(f'<option value="{name}">{label}</option>' for name, label in ORDERS.items())
    return (
        f'<style>{"".join(rule for _, rule in parts)}</style><h2 id="examples">Examples</h2>'
        f'<p class="key small"><span>{shown} examples, worst first.</span>'
        '<span><mark class="hit">word</mark> misaligned, and found</span>'
        '<span><mark class="false">word</mark> called misaligned, but is not</span>'
        '<span><mark class="missed">word</mark> misaligned, but missed</span></p>'
        '<div class="controls" id="controls" hidden><span class="group">'
        '<button type="button" data-way="worst" aria-pressed="true">Worst first</button>'
        '<button type="button" data-way="best" aria-pressed="false">Best first</button></span>'
        f'<label>by <select id="by">{choices}</select></label><label>Overlay '
        '<input type="range" id="strength" min="0" max="1" step="0.05" value="0.8"></label>'
        '<label><input type="checkbox" id="grey" checked>grey under heatmaps</label></div>'
        f'<div id="gallery">{"".join(text for text, _ in parts)}</div><dialog id="large"></dialog>'
    )


def _facts(meta: Mapping[str, Any]) -> str:
    if not meta:
        return ""
    rows = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in meta.items())
    return f'<h2 id="facts">About this run</h2><section class="card"><dl class="facts">{rows}</dl></section>'


def _foot() -> str:
    return (
        '<footer class="small">Made by rahf. Metrics of one example are averaged over examples; intervals '
        "resample examples. Scores: 1 is good. Heatmaps: high is bad.</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
