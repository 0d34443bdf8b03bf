"""The report of an evaluation: one HTML file that opens from disk, works offline, and can be mailed.

Also the same metrics as a terminal table (`metrics_table`) and as JSON (`metrics_json`).
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rahf.core.files import write_atomically
from rahf.critic.evaluation.report.curves import charts
from rahf.critic.evaluation.report.gallery import ORDERS, Article, Encoding, ReportExample, article
from rahf.critic.evaluation.report.metrics import headlines, metric_groups, metrics_json, metrics_table
from rahf.critic.evaluation.report.render import render

__all__ = ["ReportExample", "metrics_json", "metrics_table", "write_report"]

# From finest to coarsest; the first that fits the size is taken.
_ENCODINGS = (Encoding(), Encoding(320, 112, 75), Encoding(224, 80, 65))
_CONTROLS = 5_000  # bytes of a gallery besides its articles, at most


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
    total: int | None = None,
) -> pathlib.Path:
    """Writes ``index.html`` into a folder, which is created if it does not exist.

    Args:
      folder: where to write; an older report there is replaced.
      title: heading of the page.
      metrics: name → value, names as of `rahf.metrics.EvaluationMetrics`.
      intervals: name → (low, high), 95%.
      baselines: name → value of always predicting the training mean.
      examples: for the gallery, in any order. If there are more than `max_examples`, a third of the room
        goes to the worst, a third to the best, and the rest to examples at equal steps between these.
      meta: facts shown at the end (checkpoint, data, command, date), in this order.
      curves: rows of `metrics.jsonl`; None or too few: no curves.
      max_examples: size of the gallery.
      total: number of examples that `examples` were taken from; None: these are all.
      max_bytes: largest size of the file; pictures get coarser to fit it, then examples are left out.

    Returns:
      The path of ``index.html``.

    Raises:
      OSError: the file cannot be written; an older report then stays as it is.
    """
    ordered = sorted(examples, key=lambda example: -rankable(example.loss))
    values: dict[str, Any] = {
        "title": title,
        "headlines": headlines(metrics, intervals, baselines),
        "groups": metric_groups(metrics, intervals, baselines),
        "charts": charts(curves or []),
        "meta": meta or {},
        "orders": ORDERS,
        "total": len(examples) if total is None else total,
    }
    room = max_bytes - _size(render("page.html", articles=[], **values)) - _CONTROLS
    articles = _articles_that_fit(_spread(ordered, max_examples), room)
    path = pathlib.Path(folder) / "index.html"
    # A prompt may hold a lone surrogate, which UTF-8 cannot write.
    write_atomically(path, render("page.html", articles=articles, **values).encode("utf-8", "replace"))
    return path


def rankable(loss: float) -> float:
    """A loss as the gallery orders by it: NaN is among the worst."""
    return math.inf if math.isnan(loss) else loss


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


def _articles_that_fit(examples: Sequence[ReportExample], room: int) -> list[Article]:
    """Articles with pictures as fine as the room allows; if even coarse ones need more, the middle examples go."""
    articles: list[Article] = []
    for encoding in _ENCODINGS:
        articles = [article(example, number, encoding) for number, example in enumerate(examples)]
        if sum(map(_article_size, articles)) <= room:
            return articles
    while articles and sum(map(_article_size, articles)) > room:
        del articles[len(articles) // 2]
    return articles


def _article_size(article: Article) -> int:
    return sum(_size(text) + 1 for text in article)  # each ends its line


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
