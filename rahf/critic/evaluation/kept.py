"""The examples that a report may show, kept while a split is evaluated: a bounded number, whatever the split's size."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable

import numpy as np
from PIL import Image

from rahf.critic.evaluation.report.gallery import Encoding, ReportExample
from rahf.critic.evaluation.report.page import rankable


class KeptExamples:
    """The worst and the best examples of a split by their loss, and a fair sample of all others.

    `rahf.critic.evaluation.report.page` shows a third of each kind. Pictures are kept at the size at which a report
    shows them. An example that is not kept is never made.
    """

    def __init__(self, most: int):
        """Keeps at most about 5/3 of `most`: that many at random, and a third of it at each end."""
        self.most, self.count = most, 0
        self._ends = most // 3
        self._worst: list[tuple[float, int, ReportExample]] = []  # heaps; the first is the next to go
        self._best: list[tuple[float, int, ReportExample]] = []
        self._sample: dict[int, ReportExample] = {}  # by place in the reservoir
        self._random = np.random.default_rng(0)

    def offer(self, loss: float, make: Callable[[], ReportExample]) -> None:
        """Keeps an example if it belongs to them.

        Args:
          loss: of the example.
          make: builds it; called only if it is kept.
        """
        number, self.count = self.count, self.count + 1
        value = rankable(loss)
        # Reservoir sampling (Vitter 1985, algorithm R): every example has the same chance to be in it at the end.
        place = number if number < self.most else int(self._random.integers(0, number + 1))
        ends = [(heap, key) for heap, key in ((self._worst, value), (self._best, -value)) if self._enters(heap, key)]
        if place >= self.most and not ends:
            return
        example = _reduced(make())
        if place < self.most:
            self._sample[place] = example
        for heap, key in ends:
            (heapq.heappushpop if len(heap) >= self._ends else heapq.heappush)(heap, (key, number, example))

    def _enters(self, heap: list, key: float) -> bool:
        return self._ends > 0 and (len(heap) < self._ends or key > heap[0][0])

    @property
    def examples(self) -> list[ReportExample]:
        """All that are kept, each once, in no order."""
        ends = [example for heap in (self._worst, self._best) for _, _, example in heap]
        return list({id(example): example for example in [*self._sample.values(), *ends]}.values())


def _reduced(example: ReportExample) -> ReportExample:
    """With the picture at the size of the report's finest encoding."""
    side = Encoding().image_side
    if max(example.image.shape[:2]) <= side:
        return example
    picture = Image.fromarray(np.ascontiguousarray(example.image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return dataclasses.replace(example, image=np.asarray(picture))
