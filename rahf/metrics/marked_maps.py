"""The base of metrics that compare marked pixels of heatmaps with those of people."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rahf.core.batch import HEATMAPS
from rahf.images.resize import resize
from rahf.metrics.accumulator import Accumulator

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float, Integer, Real

#: Share of annotators from which a pixel counts as marked.
MARKED = 0.5


class MarkedMapMetrics(Accumulator):
    """Collects the comparison of each map of each example; what is compared is up to the subclass.

    Attributes:
      shapes: of the arrays that `compared` gives for one map, by name.
    """

    shapes: ClassVar[Mapping[str, tuple[int, ...]]]

    @abc.abstractmethod
    def compared(
        self,
        actual: Bool[np.ndarray, "H W"],
        predicted: Float[np.ndarray, "H W"],
        people: Bool[np.ndarray, "n H W"] | None,
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """The arrays of one map, by the names of `shapes`; sums over maps must make sense.

        Args:
          actual: pixels that are marked.
          predicted: in [0,1].
          people: maps of two or more annotators; None: fewer were kept.
        """

    def update(
        self,
        prediction: Real[np.ndarray, "B h w 2"],
        truth: Real[np.ndarray, "B H W 2"],
        mask: Bool[np.ndarray, "B 2"],
        index: Integer[np.ndarray, " B"],
        annotators: Sequence[Sequence[np.ndarray | None]] | None = None,
    ) -> None:
        """Adds a batch. Maps are compared at the truth's own resolution.

        Args:
          prediction: [B,h,w,2] in [0,1], order HEATMAPS; resized to the truth if its sides differ.
          truth: uint8 [B,H,W,2] 0..255, or float in [0,1].
          mask: bool [B,2], True where a labelled map exists.
          index: int [B] position in the split; negative for filling, whose maps are ignored.
          annotators: for each example and heatmap bool [n,h,w], the maps of its annotators, or None; None: of nobody.
        """
        index, mask = np.asarray(index), np.asarray(mask, bool)
        arrays = {name: np.zeros((*mask.shape, *shape)) for name, shape in self.shapes.items()}
        for row, kind in zip(*np.nonzero(mask & (index >= 0)[:, None])):
            actual = marked(truth[row, :, :, kind])
            predicted = np.asarray(prediction[row, :, :, kind], np.float32)
            if predicted.shape != actual.shape:
                predicted = resize(predicted, actual.shape)
            people = None if annotators is None else annotators[row][kind]
            people = people if people is not None and len(people) > 1 else None
            for name, values in self.compared(actual, predicted, people).items():
                arrays[name][row, kind] = values
        self._add(index, **arrays, mask=mask)

    def _empty(self) -> dict[str, np.ndarray]:
        shape = (0, len(HEATMAPS))
        arrays = {name: np.zeros((*shape, *trailing)) for name, trailing in self.shapes.items()}
        return {**arrays, "mask": np.zeros(shape, bool)}


def marked(values: Real[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that at least half of the annotators marked, or are expected to; uint8 0..255, or float in [0,1]."""
    return values >= (128 if values.dtype == np.uint8 else MARKED)
