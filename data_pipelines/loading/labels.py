"""What an evaluation wants of a split besides batches: maps at their own resolution, pictures, and means."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipelines.examples import Source
from data_pipelines.records import Record
from rahf import images
from rahf.batch import HEATMAPS
from rahf.metrics.evaluation import TrainingMean
from rahf.metrics.heatmaps import resize


class Truth(NamedTuple):
    """The labels of one example as they were stored."""

    record: Record
    heatmaps: np.ndarray  # uint8 [h,w,2] at native resolution, order HEATMAPS, 0 where missing
    heatmap_mask: np.ndarray  # bool [2]

    def image(self) -> np.ndarray:
        """The picture, uint8 [h,w,3]."""
        return images.load_rgb(self.record.image, what=self.record.uid)


class Labels:
    """Random access to the stored labels of a split."""

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Truth:
        record = self.source[int(index)]
        given = (record.implausibility, record.misalignment)
        maps = [
            None if d is None else images.load_grey(d, what=f"{record.uid}: {n} map") for d, n in zip(given, HEATMAPS)
        ]
        shape = next((m.shape for m in maps if m is not None), (1, 1))
        for kind, values in enumerate(maps):
            if values is not None and values.shape != shape:
                raise images.ImageError(f"{record.uid}: its two maps differ in size, {shape} and {values.shape}")
        empty = np.zeros(shape, np.uint8)
        stacked = np.stack([empty if m is None else m for m in maps], -1)
        return Truth(record, stacked, np.array([m is not None for m in maps]))


def training_mean(labels: Labels, size: int = 256, limit: int = 2000) -> TrainingMean:
    """Mean heatmaps and scores of a split, for the baseline that always predicts them.

    Args:
      labels: of the training split.
      size: side in pixels at which maps are averaged; the mean is smooth.
      limit: examples at equal steps through the split; more change the mean's third digit.
    """
    mean = TrainingMean()
    for index in np.unique(np.linspace(0, len(labels) - 1, min(limit, len(labels))).astype(int)):
        truth = labels[index]
        maps = [resize(truth.heatmaps[..., k].astype(np.float32) / 255.0, (size, size)) for k in range(len(HEATMAPS))]
        scores = np.asarray(truth.record.scores, np.float32)
        known = np.isfinite(scores)
        mean.update(np.stack(maps, -1)[None], truth.heatmap_mask[None], np.where(known, scores, 0)[None], known[None])
    return mean
