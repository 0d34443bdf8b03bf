"""Mean heatmaps and scores of the training split: the baseline that every critic must beat."""

from __future__ import annotations

import numpy as np

from data_pipelines.loading.labels import Labels
from rahf.images.resize import resize
from rahf.metrics.evaluation import TrainingMean


def training_mean(labels: Labels, size: int = 256, limit: int = 2000) -> TrainingMean:
    """Mean heatmaps and scores of a split, for the baseline that always predicts them.

    Args:
      labels: of the training split.
      size: side in pixels at which maps are averaged; the mean is smooth, so a small one is enough.
      limit: number of examples, at equal steps through the split; more would change only the third digit.
    """
    mean = TrainingMean()
    for index in np.unique(np.linspace(0, len(labels) - 1, min(limit, len(labels))).astype(int)):
        truth = labels[index]
        maps = resize(truth.heatmaps.astype(np.float32) / 255.0, (size, size))
        scores = np.asarray(truth.record.scores, np.float32)
        rated = np.isfinite(scores)
        mean.update(maps[None], truth.heatmap_mask[None], np.where(rated, scores, 0)[None], rated[None])
    return mean
