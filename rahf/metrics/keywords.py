"""Which words of a prompt the picture misses: precision, recall, F1. The positive class is *misaligned*.

Micro counts words over all prompts; the RAHF paper's table is consistent with it (62.9 and 33.0 give 43.3).
Macro averages over prompts, and a prompt without any misaligned word contributes 0 to all three: so does the
public PyTorch port, whose figures (56.5 / 45.2 / 47.5) are therefore not comparable with the paper's. Even a
perfect prediction does not reach a macro value of 1 unless every prompt has a misaligned word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rahf.core.errors import DataError, NotFinite
from rahf.metrics.accumulator import Accumulator, divide, weighted_mean

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float, Integer, Real


class KeywordMetrics(Accumulator):
    """`<prefix>/{precision,recall,f1}`, `<prefix>/macro_{precision,recall,f1}`, `base_rate` and counts.

    `base_rate` is the share of misaligned words; `words` and `misaligned` count labelled words. With
    probabilities there is `average_precision` too. Precision is 0 if no word was called misaligned; recall,
    F1 and average precision are NaN if no word is misaligned, because then there is nothing to find.
    """

    def __init__(self, prefix: str = "keywords") -> None:
        super().__init__()
        self.prefix = prefix

    def update(
        self,
        prediction: Integer[np.ndarray, "B K"],
        truth: Integer[np.ndarray, "B K"],
        mask: Bool[np.ndarray, "B K"],
        index: Integer[np.ndarray, " B"],
        probability: Real[np.ndarray, "B K"] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
          prediction: int [B,K] predicted labels, 1 = aligned, 0 = misaligned.
          truth: int [B,K] labels; anything where the mask is False.
          mask: bool [B,K], True for words that exist and are labelled.
          index: int [B] position in the split; negative for filling.
          probability: float [B,K] in [0,1], the probability that a word is misaligned; None: the decoder gives none.

        Raises:
          ValueError: a label that counts is neither 0 nor 1, or a probability that counts is not in [0,1].
        """
        mask = np.asarray(mask, bool) & (np.asarray(index) >= 0)[:, None]
        for name, labels in (("predicted", prediction), ("true", truth)):
            wrong = mask & ~np.isin(labels, (0, 1))
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise DataError(
                    f"example {int(index[row])}, word {column}: {name} label {labels[row, column]}, "
                    "expected 1 (aligned) or 0 (misaligned)"
                )
        if probability is None:
            checked = np.full(mask.shape, np.nan)
        else:
            checked = np.where(mask, np.asarray(probability, np.float64), 0.0)
            if not ((checked >= 0) & (checked <= 1)).all():
                raise NotFinite("probabilities of misaligned words must be finite and within [0, 1]")
        self._add(
            index,
            prediction=np.where(mask, prediction, 1).astype(np.int8),
            truth=np.where(mask, truth, 1).astype(np.int8),
            mask=mask,
            probability=checked,
        )

    def _empty(self) -> dict[str, np.ndarray]:
        labels = np.zeros((0, 0), np.int8)
        return {
            "prediction": labels,
            "truth": labels,
            "mask": np.zeros((0, 0), bool),
            "probability": np.zeros((0, 0)),
        }

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        mask = arrays["mask"]
        counts = _per_example(arrays["prediction"], arrays["truth"], mask)
        tp, fp, fn, words = (weights @ count for count in (*counts, mask.sum(1).astype(np.float64)))
        micro = precision_recall_f1(tp, fp, fn)
        macro = precision_recall_f1(*counts, nothing_to_find=0.0)
        values: dict[str, np.ndarray] = {}
        for name, over_words, per_prompt in zip(("precision", "recall", "f1"), micro, macro):
            values[f"{self.prefix}/{name}"] = np.where(words > 0, over_words, np.nan)
            values[f"{self.prefix}/macro_{name}"] = weighted_mean(per_prompt, mask.any(1), weights)
        values[f"{self.prefix}/base_rate"] = divide(tp + fn, words)
        probability = arrays["probability"][mask]
        if probability.size and np.isfinite(probability).all():
            example = np.nonzero(mask)[0]
            values[f"{self.prefix}/average_precision"] = average_precision(
                probability, arrays["truth"][mask] == 0, weights[:, example]
            )
        return values

    def counts(self) -> dict[str, float]:
        arrays = self.to_arrays()
        misaligned = arrays["mask"] & (arrays["truth"] == 0)
        return {
            f"{self.prefix}/words": float(arrays["mask"].sum()),
            f"{self.prefix}/misaligned": float(misaligned.sum()),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "keywords") -> "KeywordMetrics":
        """The inverse of `to_arrays`; names of metrics begin with `prefix`."""
        metrics: Any = super().from_arrays(arrays, prefix=prefix)
        return metrics


def _per_example(
    prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and false negatives (positive: misaligned): three float64 [N]."""
    called, actual = mask & (prediction == 0), mask & (truth == 0)
    pairs = (called & actual, called & ~actual, ~called & actual)
    tp, fp, fn = (pair.sum(1).astype(np.float64) for pair in pairs)
    return tp, fp, fn


def precision_recall_f1(
    tp: Float[np.ndarray, "..."],
    fp: Float[np.ndarray, "..."],
    fn: Float[np.ndarray, "..."],
    nothing_to_find: float = np.nan,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 from counts.

    Args:
      tp, fp, fn: counts of any one shape.
      nothing_to_find: recall and F1 where there is no positive (tp + fn = 0).

    Returns:
      Three float64 arrays in [0,1]. Precision is 0 where nothing was called positive.
    """
    precision = divide(tp, tp + fp, otherwise=0.0)
    recall = divide(tp, tp + fn, otherwise=nothing_to_find)
    f1 = np.where(tp + fn > 0, divide(2 * tp, 2 * tp + fp + fn, otherwise=0.0), nothing_to_find)
    return precision, recall, f1


def average_precision(
    probability: Float[np.ndarray, " W"],
    positive: Bool[np.ndarray, " W"],
    weights: Float[np.ndarray, "R W"] | None = None,
) -> Float[np.ndarray, " R"]:
    """Average precision ``sum over thresholds of (recall step) * precision``, tied words taken together.

    Args:
      probability: [W] of each word being misaligned.
      positive: bool [W] whether it is.
      weights: float64 [R,W] multiplicities; None: one weighting of ones.

    Returns:
      float64 [R] in [0,1]; NaN without any positive.
    """
    weights = np.ones((1, len(probability))) if weights is None else weights
    order = np.argsort(-probability, kind="stable")
    ends = np.flatnonzero(np.diff(probability[order], append=np.inf))  # last word of each group of ties
    called = np.cumsum(weights[:, order], axis=1)[:, ends]
    hits = np.cumsum(weights[:, order] * positive[order], axis=1)[:, ends]
    steps = np.diff(hits, axis=1, prepend=0.0)
    return divide((steps * divide(hits, called, otherwise=0.0)).sum(1), hits[:, -1])


class Threshold(NamedTuple):
    """A word is called misaligned if its probability is at least `value`; `f1` is the micro-F1 it gives."""

    value: float
    f1: float


def choose_threshold(
    probability: Real[np.ndarray, "N K"], truth: Integer[np.ndarray, "N K"], mask: Bool[np.ndarray, "N K"]
) -> Threshold:
    """The threshold with the highest micro-F1. Choose on a development split, apply to the test split.

    Args:
      probability: float [N,K] in [0,1], the probability that a word is misaligned.
      truth: int [N,K], 1 = aligned, 0 = misaligned.
      mask: bool [N,K] of words that count.

    Returns:
      The best threshold, half-way to the next lower probability so that rounding does not matter.

    Raises:
      ValueError: no word that counts is misaligned.
    """
    chance = np.asarray(probability, np.float64)[mask]
    positive = np.asarray(truth)[mask] == 0
    if not positive.any():
        raise ValueError("cannot choose a threshold: no labelled word is misaligned; use a larger split")
    order = np.argsort(-chance, kind="stable")
    chance, positive = chance[order], positive[order]
    ends = np.flatnonzero(np.diff(chance, append=-np.inf))
    tp = np.cumsum(positive)[ends].astype(np.float64)
    fp = ends + 1 - tp
    f1 = precision_recall_f1(tp, fp, positive.sum() - tp)[2]
    best = int(np.argmax(f1))
    lower = chance[ends[best + 1]] if best + 1 < len(ends) else chance[ends[best]]
    return Threshold(float((chance[ends[best]] + lower) / 2), float(f1[best]))
