"""Precision and recall of marked pixels at every threshold, with people beside them.

A pixel is marked where at least half of the annotators marked it. Every map weighs the same, whatever its size. A map
in which nothing is marked counts: what is predicted there is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from rahf.core.batch import HEATMAPS
from rahf.metrics.accumulator import divide
from rahf.metrics.keywords import precision_recall_f1
from rahf.metrics.marked_maps import MarkedMapMetrics

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float

LEVELS = 128  # thresholds in equal steps from 0 to 1
_PAIRS = ("tp", "fp", "fn")


class MarkCurve(NamedTuple):
    """Precision over recall of marked pixels.

    Attributes:
      thresholds: float64 [LEVELS], rising; a pixel is called marked from the threshold on.
      precision, recall: float64 [LEVELS] in [0,1]; precision is 0 where nothing is called marked.
      base_rate: share of pixels that are marked; the precision of calling everything marked.
      human: precision and recall of one person by the others; None without their maps.
    """

    thresholds: Float[np.ndarray, " n"]
    precision: Float[np.ndarray, " n"]
    recall: Float[np.ndarray, " n"]
    base_rate: float
    human: tuple[float, float] | None


class MarkMetrics(MarkedMapMetrics):
    """`marks/<map>/{average_precision,precision,recall,f1,base_rate}`, the last four of people with `_human`, `count`.

    Precision, recall and F1 are those at one half. NaN where nothing is marked at all.
    """

    shapes: ClassVar = {"levels": (2, LEVELS), "human": (len(_PAIRS),)}

    def compared(
        self,
        actual: Bool[np.ndarray, "H W"],
        predicted: Float[np.ndarray, "H W"],
        people: Bool[np.ndarray, "n H W"] | None,
    ) -> dict[str, Float[np.ndarray, "..."]]:
        human = np.zeros(len(_PAIRS)) if people is None else _people(people)
        return {"levels": _levels(predicted, actual), "human": human}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        result: dict[str, np.ndarray] = {}
        for kind, name in enumerate(HEATMAPS):
            hits, alarms = self._called(arrays, kind, weights)
            marked, pixels = hits[:, 0], hits[:, 0] + alarms[:, 0]
            precision = divide(hits, hits + alarms, otherwise=0.0)
            # From the highest threshold down, each step of recall counts with the precision that it is reached with.
            steps = -np.diff(hits, axis=1, append=0.0)
            result[f"marks/{name}/average_precision"] = divide((steps * precision).sum(1), marked)
            half = LEVELS // 2
            at_half = precision_recall_f1(hits[:, half], alarms[:, half], marked - hits[:, half])
            for metric, values in zip(("precision", "recall", "f1"), at_half):
                result[f"marks/{name}/{metric}"] = np.where(marked > 0, values, np.nan)
            result[f"marks/{name}/base_rate"] = divide(marked, pixels)
            if arrays["human"][:, kind].any():
                people = precision_recall_f1(*(weights @ arrays["human"][:, kind, i] for i in range(len(_PAIRS))))
                for metric, values in zip(("precision", "recall", "f1"), people):
                    result[f"marks/{name}/{metric}_human"] = values
        return result

    def counts(self) -> dict[str, float]:
        mask = self.to_arrays()["mask"]
        return {f"marks/{name}/count": float(mask[:, kind].sum()) for kind, name in enumerate(HEATMAPS)}

    def curve(self, name: str) -> MarkCurve | None:
        """Precision over recall of one map over all examples; None where nothing is marked or predicted."""
        arrays, kind = self.to_arrays(), HEATMAPS.index(name)
        hits, alarms = (one[0] for one in self._called(arrays, kind, np.ones((1, len(self)))))
        if not hits[0]:
            return None
        sums = arrays["human"][:, kind].sum(0)
        human = None
        if sums.any():
            precision, recall, _ = precision_recall_f1(*sums)
            human = float(precision), float(recall)
        return MarkCurve(
            np.arange(LEVELS) / LEVELS,
            divide(hits, hits + alarms, otherwise=0.0),
            hits / hits[0],
            float(hits[0] / (hits[0] + alarms[0])),
            human,
        )

    def _called(self, arrays: dict[str, np.ndarray], kind: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 [R,LEVELS] twice: marked and unmarked pixels that are called marked at each threshold."""
        right, wrong = (np.flip(np.flip(weights @ arrays["levels"][:, kind, i], 1).cumsum(1), 1) for i in (0, 1))
        return right, wrong


def _levels(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """float64 [2,LEVELS]: shares of the map's pixels that are marked, and that are not, by predicted level."""
    level = np.clip((predicted * LEVELS).astype(np.int64), 0, LEVELS - 1).ravel()
    both = np.bincount(level + LEVELS * ~actual.ravel(), minlength=2 * LEVELS)
    return both.reshape(2, LEVELS) / actual.size


def _people(maps: np.ndarray) -> np.ndarray:
    """float64 [3]: true positives, false positives and misses of each annotator by the others, in shares of a map."""
    votes, sums = maps.sum(0), np.zeros(len(_PAIRS))
    for one in maps:
        others = 2 * (votes - one) >= len(maps) - 1
        one = one.astype(bool)
        sums += [np.count_nonzero(pair) for pair in (one & others, one & ~others, ~one & others)]
    return sums / maps[0].size
