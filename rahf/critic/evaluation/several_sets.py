"""Evaluation on several data sets: the metrics of each under its name, and their mean."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import store
from rahf.critic.evaluation.evaluator import CriticEvaluation, summary_line

_SETS = "sets"


def by_name(paths: Sequence[str]) -> dict[str, str]:
    """Folders of data sets by their names; a name that occurs again is numbered."""
    named: dict[str, str] = {}
    for path in paths:
        name = base = os.path.basename(os.path.normpath(path))
        number = 1
        while name in named:
            number += 1
            name = f"{base}-{number}"
        named[name] = path
    return named


def evaluated(paths: Sequence[str], split: str) -> dict[str, str]:
    """The sets by name that have examples in a split; all if none has, so that opening one says what is wrong."""
    named = by_name(paths)
    if len(named) == 1:
        return named
    return {name: path for name, path in named.items() if store.splits(path).get(split)} or named


def names(sets: Mapping[str, str], metrics: Sequence[str]) -> list[str]:
    """Names of the metrics of each of several sets: ``sets/NAME/scores/mean/plcc``; none for one set."""
    if len(sets) < 2:
        return []
    return [f"{_SETS}/{name}/{metric}" for name in sets for metric in metrics]


def plain(metric: str) -> str:
    """A metric's name without that of its set."""
    return metric.split("/", 2)[-1] if metric.startswith(f"{_SETS}/") else metric


def joined(evaluations: Mapping[str, CriticEvaluation]) -> CriticEvaluation:
    """One evaluation of several sets.

    A metric is the mean over the sets in which it is defined; a count is their sum. ``sets/NAME/METRIC`` is that of one
    set. Of one set: its own evaluation.
    """
    if len(evaluations) == 1:
        return next(iter(evaluations.values()))
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for one in evaluations.values() for name in one.metrics):
        values = [one.metrics[name] for one in evaluations.values() if name in one.metrics]
        values = [value for value in values if math.isfinite(value)]
        metrics[name] = (sum(values) if is_count(name) else sum(values) / len(values)) if values else math.nan
    for label, one in evaluations.items():
        metrics |= {f"{_SETS}/{label}/{name}": value for name, value in one.metrics.items()}
    first = next(iter(evaluations.values()))
    return dataclasses.replace(
        first,
        metrics=metrics,
        intervals={},
        baselines={},
        examples=[example for one in evaluations.values() for example in one.examples],
        count=sum(one.count for one in evaluations.values()),
        seconds=sum(one.seconds for one in evaluations.values()),
        scores=np.concatenate([one.scores for one in evaluations.values()]),
        constant=(),
    )


def is_count(metric: str) -> bool:
    """Whether a metric is a number of examples, maps, words or regions."""
    last = metric.rsplit("/", 1)[-1]
    return last.split("_")[0] == "count" or last in ("words", "misaligned")


def line(metrics: Mapping[str, float]) -> str:
    """The main numbers of one set in one line."""
    return summary_line({name: value for name, value in metrics.items() if math.isfinite(value)}) or "no label"
