"""All metric families of an evaluation in one object, and the baseline that always predicts the mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.images.resize import resize
from rahf.metrics.accumulator import Accumulator
from rahf.metrics.bootstrap import bootstrap_intervals
from rahf.metrics.heatmaps import HeatmapMetrics, HeatmapOptions
from rahf.metrics.keywords import KeywordMetrics
from rahf.metrics.scores import ScoreMetrics

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float, Integer, Real


class EvaluationMetrics:
    """Scores, heatmaps and keywords by both decoders: `keywords/...` and `keywords_constrained/...`.

    Mergeable over batches (`update`), accumulators (`merge`) and processes (`to_arrays`, `add_arrays`). A decoder
    without predictions has no metrics.
    """

    def __init__(self, options: HeatmapOptions = HeatmapOptions(), threads: int | None = None) -> None:
        self.scores = ScoreMetrics()
        self.heatmaps = HeatmapMetrics(options, threads)
        self.keywords = KeywordMetrics("keywords")
        self.keywords_constrained = KeywordMetrics("keywords_constrained")

    def update(
        self,
        batch: Batch,
        heatmaps: Real[np.ndarray, "B h w 2"],
        scores: Real[np.ndarray, "B 4"],
        labels: Integer[np.ndarray, "B K"] | None = None,
        labels_constrained: Integer[np.ndarray, "B K"] | None = None,
        probability: Real[np.ndarray, "B K"] | None = None,
        true_heatmaps: Real[np.ndarray, "B H W 2"] | None = None,
    ) -> None:
        """Adds a batch and its predictions.

        Args:
          batch: labels and masks, as NumPy arrays; examples with mask False or a negative index are skipped.
          heatmaps: float [B,h,w,2] in [0,1]; resized to the truth if its sides differ.
          scores: float [B,4] in [0,1].
          labels: int [B,K] word labels by generation and alignment, 1 = aligned.
          labels_constrained: int [B,K] word labels by constrained scoring.
          probability: float [B,K] probability of "misaligned" behind `labels_constrained`.
          true_heatmaps: maps at their native resolution instead of `batch.heatmaps`. Resizing makes the
            edge of a mark grey and so enlarges the region where something is marked.
        """
        index = np.where(batch.example_mask, batch.index, -1)
        truth = batch.heatmaps if true_heatmaps is None else true_heatmaps
        self.scores.update(scores, batch.scores, batch.score_mask, index)
        self.heatmaps.update(heatmaps, truth, batch.heatmap_mask, index)
        words = (batch.word_labels, batch.word_mask, index)
        if labels is not None:
            self.keywords.update(labels, *words)
        if labels_constrained is not None:
            self.keywords_constrained.update(labels_constrained, *words, probability)

    def compute(self) -> dict[str, float]:
        """Every metric and count by name; NaN where undefined."""
        return {name: value for family in self._filled() for name, value in family.compute().items()}

    @classmethod
    def names(cls) -> list[str]:
        """Names of every metric and count that `compute` may give."""
        metrics, word = cls(), np.ones((1, 1), int)
        # Average precision has a name only after an example with probabilities.
        metrics.keywords_constrained.update(word, word, word > 0, np.zeros(1, int), np.zeros((1, 1)))
        return [name for _, family in metrics._families() for name in family.compute()]

    def intervals(self, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of every metric; see `rahf.metrics.bootstrap_intervals`."""
        result: dict[str, tuple[float, float]] = {}
        for family in self._filled():
            result |= bootstrap_intervals(family, resamples, seed, level)
        return result

    def merge(self, other: "EvaluationMetrics") -> "EvaluationMetrics":
        """Adds another evaluation's examples to this one, which is returned."""
        for name, family in self._families():
            family.merge(getattr(other, name))
        return self

    def to_arrays(self, rows: int | None = None) -> dict[str, np.ndarray]:
        """The state as plain arrays named ``family.array``; `rows` pads each to equal length."""
        return {
            f"{name}.{key}": array for name, family in self._families() for key, array in family.to_arrays(rows).items()
        }

    def add_arrays(self, arrays: Mapping[str, np.ndarray]) -> "EvaluationMetrics":
        """Adds the arrays of another process's `to_arrays`. Returns this object."""
        for name, family in self._families():
            of_family = {key.split(".", 1)[1]: a for key, a in arrays.items() if key.split(".", 1)[0] == name}
            family.add_arrays(of_family)
        return self

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], options: HeatmapOptions = HeatmapOptions()
    ) -> "EvaluationMetrics":
        """The inverse of `to_arrays`."""
        return cls(options).add_arrays(arrays)

    def _families(self) -> Iterator[tuple[str, Accumulator]]:
        for name in ("scores", "heatmaps", "keywords", "keywords_constrained"):
            yield name, getattr(self, name)

    def _filled(self) -> list[Accumulator]:
        families = dict(self._families())
        return [f for name, f in families.items() if len(f) or not name.startswith("keywords")]


@dataclasses.dataclass
class TrainingMean:
    """Mean heatmaps and mean scores of a training split, by running sums over the labels that exist."""

    heatmap_sum: np.ndarray | None = None  # float64 [h,w,2]
    heatmap_count: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(HEATMAPS)))
    score_sum: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(SCORES)))
    score_count: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(SCORES)))

    def update(
        self,
        heatmaps: Real[np.ndarray, "B h w 2"],
        heatmap_mask: Bool[np.ndarray, "B 2"],
        scores: Real[np.ndarray, "B 4"],
        score_mask: Bool[np.ndarray, "B 4"],
    ) -> None:
        """Adds a batch: heatmaps uint8 0..255 or float in [0,1], always at one size; scores in [0,1]."""
        scale = 255.0 if heatmaps.dtype == np.uint8 else 1.0
        total = np.einsum("bhwk,bk->hwk", heatmaps, heatmap_mask, dtype=np.float64) / scale
        self.heatmap_sum = total if self.heatmap_sum is None else self.heatmap_sum + total
        self.heatmap_count = self.heatmap_count + heatmap_mask.sum(0)
        self.score_sum = self.score_sum + np.where(score_mask, scores, 0.0).sum(0)
        self.score_count = self.score_count + score_mask.sum(0)

    def heatmaps(self) -> Float[np.ndarray, "h w 2"]:
        """Mean maps, float32 [h,w,2] in [0,1]; zero for a map that is never labelled."""
        if self.heatmap_sum is None:
            raise ValueError("no training example was added: cannot give mean heatmaps")
        return (self.heatmap_sum / np.maximum(self.heatmap_count, 1)).astype(np.float32)

    def scores(self) -> Float[np.ndarray, "4"]:
        """Mean scores, float32 [4] in [0,1]; 0.5 for a score that is never labelled."""
        mean = self.score_sum / np.maximum(self.score_count, 1)
        return np.where(self.score_count > 0, mean, 0.5).astype(np.float32)


class MeanBaseline:
    """Predicts the training mean for every picture, and that every word is aligned.

    Reports show its metrics beside those of a model. Constant scores have correlation 0 by definition (see
    `rahf.metrics.scores.plcc`). Precision, recall and F1 are 0, because it calls no word misaligned.

    Args:
      mean_heatmaps: float [h,w,2] in [0,1], mean over the training split.
      mean_scores: float [4] in [0,1], mean over the training split.
      options: variants of the heatmap metrics.
      threads: see `rahf.metrics.map_metrics`.
    """

    def __init__(
        self,
        mean_heatmaps: Float[np.ndarray, "h w 2"],
        mean_scores: Float[np.ndarray, "4"],
        options: HeatmapOptions = HeatmapOptions(),
        threads: int | None = None,
    ) -> None:
        self.mean_heatmaps, self.mean_scores = np.asarray(mean_heatmaps), np.asarray(mean_scores)
        self.metrics = EvaluationMetrics(options, threads)

    def update(self, batch: Batch, true_heatmaps: Real[np.ndarray, "B H W 2"] | None = None) -> None:
        """Adds a batch; arguments as of `EvaluationMetrics.update`."""
        truth = batch.heatmaps if true_heatmaps is None else true_heatmaps
        size, (height, width) = len(truth), truth.shape[1:3]
        if self.mean_heatmaps.shape[:2] != (height, width):  # once, not for every example
            self.mean_heatmaps = resize(self.mean_heatmaps, (height, width))
        maps = np.broadcast_to(self.mean_heatmaps, (size, *self.mean_heatmaps.shape))
        scores = np.broadcast_to(self.mean_scores, (size, len(SCORES)))
        aligned = np.ones_like(batch.word_labels)
        chance = np.zeros(aligned.shape)
        self.metrics.update(batch, maps, scores, aligned, aligned, chance, true_heatmaps)

    def compute(self) -> dict[str, float]:
        """The baseline's value of every metric."""
        return self.metrics.compute()
