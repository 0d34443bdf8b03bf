"""Metrics of rich feedback: mergeable over batches and processes, with bootstrap intervals and a baseline.

NumPy only: importable without JAX.
"""

from rahf.metrics.bootstrap import intervals
from rahf.metrics.evaluation import EvaluationMetrics, MeanBaseline, TrainingMean, mean_baseline
from rahf.metrics.heatmaps import HeatmapMetrics, HeatmapOptions, map_metrics
from rahf.metrics.keywords import KeywordMetrics, choose_threshold
from rahf.metrics.scores import ScoreMetrics

__all__ = [
    "EvaluationMetrics",
    "HeatmapMetrics",
    "HeatmapOptions",
    "KeywordMetrics",
    "MeanBaseline",
    "ScoreMetrics",
    "TrainingMean",
    "choose_threshold",
    "intervals",
    "map_metrics",
    "mean_baseline",
]
