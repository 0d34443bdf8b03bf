"""Metrics of several sources on the same examples of a split, their differences, and trivial predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.loading.labels import Labels, Truth
from rahf.comparison.predictions import Predicted
from rahf.comparison.sources import Coverage, FileSource, ModelSource
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.images.resize import resize
from rahf.metrics import (
    Difference,
    HeatmapMetrics,
    KeywordMetrics,
    MarkMetrics,
    RegionMetrics,
    ScoreMetrics,
    bootstrap_intervals,
    paired_differences,
)
from rahf.metrics.accumulator import Accumulator
from rahf.metrics.regions import CENTRE

#: Predictions that look at nothing, by name. Regions have them as endings of metrics; here they get every metric.
TRIVIAL = ("all bad", "none bad", "centre")
#: The family of words has no decoder in its name: each source has one way to judge words.
WORDS = "words"


class SourceMetrics:
    """Every metric family of one source."""

    def __init__(self) -> None:
        self.scores, self.words = ScoreMetrics(), KeywordMetrics(WORDS)
        self.heatmaps, self.regions, self.marks = HeatmapMetrics(threads=1), RegionMetrics(), MarkMetrics()

    def update(self, predicted: Predicted, truth: Truth, place: int, counted: Coverage) -> None:
        """Adds an example.

        Args:
          predicted: of it.
          truth: its labels as stored.
          place: its position in the split.
          counted: arrays without the axis of examples: which labels count.
        """
        index, record = np.array([place]), truth.record
        has = np.array([one is not None for one in predicted.heatmaps])
        mask = (truth.heatmap_mask & counted.heatmaps & has)[None]
        true_scores = np.asarray(record.scores, np.float32)[None]
        rated = np.isfinite(true_scores) & counted.scores & np.isfinite(predicted.scores)
        self.scores.update(np.nan_to_num(predicted.scores)[None], np.nan_to_num(true_scores), rated, index)
        people = [truth.annotators]
        maps = truth.heatmaps[None]
        stacked = _stacked(predicted.heatmaps)
        self.heatmaps.update(stacked, maps, mask, index)
        self.regions.update(stacked, maps, mask, index, people)
        self.marks.update(stacked, maps, mask, index, people)
        self._update_words(predicted, record, index, bool(counted.words))

    def _update_words(self, predicted: Predicted, record: Any, index: np.ndarray, counted: bool) -> None:
        words = len(record.words)
        labelled = counted and predicted.word_labels is not None and record.word_labels is not None
        labels = predicted.word_labels if labelled else (1,) * words
        truth = record.word_labels if labelled else (1,) * words
        probability = predicted.word_probabilities
        self.words.update(
            np.array([labels], int),
            np.array([truth], int),
            np.full((1, words), labelled),
            index,
            None if probability is None else np.array([probability], float).reshape(1, -1),
        )

    def families(self) -> Iterator[Accumulator]:
        """In the order of tables."""
        yield from (self.scores, self.heatmaps, self.marks, self.regions, self.words)

    def compute(self) -> dict[str, float]:
        """Every metric and count by name; NaN where undefined."""
        return {name: value for family in self.families() for name, value in family.compute().items()}

    def intervals(self, resamples: int) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of every metric."""
        result: dict[str, tuple[float, float]] = {}
        for family in self.families():
            result |= bootstrap_intervals(family, resamples)
        return result

    def differences(self, other: SourceMetrics, resamples: int) -> dict[str, Difference]:
        """Metrics of this source minus those of another one, paired by example."""
        result: dict[str, Difference] = {}
        for one, second in zip(self.families(), other.families()):
            result |= paired_differences(one, second, resamples)
        return result


def _stacked(maps: Sequence[np.ndarray | None]) -> np.ndarray:
    """Both maps as float32 [1,h,w,2], 0 where one is not predicted; at the larger size if they have two."""
    shape = max((one.shape for one in maps if one is not None), default=(1, 1))
    filled = [np.zeros(shape, np.float32) if one is None else one for one in maps]
    return np.stack([one if one.shape == shape else np.clip(resize(one, shape), 0, 1) for one in filled], -1)[None]


@dataclasses.dataclass
class Measured:
    """What was measured of one source. Metrics are named as in `rahf.metrics`; those of words begin with ``words/``."""

    name: str
    about: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    families: SourceMetrics
    notes: list[str]


@dataclasses.dataclass
class Comparison:
    """Sources on the same examples of a split.

    Attributes:
      sources: in order.
      trivial: metrics of each of TRIVIAL.
      differences: for each pair of positions (i, j) with i < j: metrics of i minus those of j.
      count: examples with a label that is measured.
      total: examples of the split.
      labels_counted: of each label, for how many examples it is measured.
    """

    sources: list[Measured]
    trivial: dict[str, dict[str, float]]
    differences: dict[tuple[int, int], dict[str, Difference]]
    count: int
    total: int
    labels_counted: dict[str, int]


def compare(
    sources: Sequence[ModelSource | FileSource],
    labels: Labels,
    *,
    limit: int | None = None,
    resamples: int = 1000,
    each: Callable[[int, Truth, Sequence[Predicted]], None] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda places: places,
) -> Comparison:
    """Measures all sources on the same examples.

    A label counts for an example only if every source that predicts this kind of label at all predicts it there: a
    model that leaves out what is hard would look better than it is.

    Args:
      sources: what is compared.
      labels: of the split.
      limit: only the first so many examples that count.
      resamples: of the bootstrap.
      each: called with every example: its position, its labels, and what each source predicts.
      progress: wraps the positions, to show how far it is.

    Raises:
      ArgumentError: no label of the split is predicted by all that predict its kind.
    """
    coverages = [source.coverage(labels) for source in sources]
    counted = common(coverages)
    places = [int(place) for place in np.flatnonzero(counted.scores.any(1) | counted.heatmaps.any(1) | counted.words)]
    places = places[:limit]
    if not places:
        raise ArgumentError("no example is predicted by all sources; compare them one by one")
    metrics = [SourceMetrics() for _ in sources]
    trivial = {name: SourceMetrics() for name in TRIVIAL}
    streams = [source.predict(labels, places) for source in sources]
    for place in progress(places):
        truth, predictions = labels[place], [next(stream) for stream in streams]
        here = Coverage(counted.scores[place], counted.heatmaps[place], counted.words[place])
        for one, predicted in zip(metrics, predictions):
            one.update(predicted, truth, place, here)
        for name, one in trivial.items():
            one.update(_trivial(name, truth), truth, place, here)
        if each is not None:
            each(place, truth, predictions)
    measured = [
        Measured(source.name, source.about, one.compute(), one.intervals(resamples), one, source.notes)
        for source, one in zip(sources, metrics)
    ]
    pairs = [(i, j) for i in range(len(sources)) for j in range(i + 1, len(sources))]
    return Comparison(
        measured,
        {name: one.compute() for name, one in trivial.items()},
        {(i, j): metrics[i].differences(metrics[j], resamples) for i, j in pairs},
        len(places),
        len(labels),
        _counts(Coverage(*(array[places] for array in counted))),
    )


def common(coverages: Sequence[Coverage]) -> Coverage:
    """Which labels count: predicted for the example by every source that predicts the label for any example."""
    kept = [np.ones_like(array) for array in coverages[0]]
    anyone = [np.zeros_like(array) for array in coverages[0]]
    for coverage in coverages:
        for field, array in enumerate(coverage):
            predicts = array.any(0)  # of each column: does this source predict the label at all
            kept[field] &= array | ~predicts
            anyone[field] |= array
    return Coverage(*(one & other for one, other in zip(kept, anyone)))


def _counts(counted: Coverage) -> dict[str, int]:
    counts = {f"{name} score": int(n) for name, n in zip(SCORES, counted.scores.sum(0))}
    counts |= {f"{name} map": int(n) for name, n in zip(HEATMAPS, counted.heatmaps.sum(0))}
    return counts | {"words": int(counted.words.sum())}


def _trivial(name: str, truth: Truth) -> Predicted:
    """What looks at nothing: constant scores, one map for all pictures, one label for all words."""
    shape, words = truth.heatmaps.shape[:2], len(truth.record.words)
    level = {"all bad": 1.0, "none bad": 0.0, "centre": 0.0}[name]
    one = np.full(shape, level, np.float32)
    if name == "centre":
        down, across = ((np.arange(side) + 0.5 - side / 2) / shape[0] for side in shape)
        one = (np.add.outer(down**2, across**2) <= CENTRE**2).astype(np.float32)
    labels = (0 if name == "all bad" else 1,) * words
    return Predicted(
        np.full(len(SCORES), 1 - level, np.float32), (one,) * len(HEATMAPS), labels, tuple(1.0 - x for x in labels)
    )


def human(metrics: Mapping[str, float], name: str) -> float | None:
    """The value of people for a metric of a model, where people's own maps were kept."""
    return metrics.get(f"{name}_human")
