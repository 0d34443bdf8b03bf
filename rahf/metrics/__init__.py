"""Metrics of rich feedback: mergeable over batches and processes, with bootstrap intervals and a baseline.

Importable without JAX.
"""

from rahf.metrics.bootstrap import Difference, bootstrap_intervals, paired_differences
from rahf.metrics.evaluation import EvaluationMetrics, MeanBaseline, TrainingMean
from rahf.metrics.heatmaps import HeatmapMetrics, HeatmapOptions, map_metrics
from rahf.metrics.keywords import KeywordMetrics, choose_threshold
from rahf.metrics.marks import MarkMetrics
from rahf.metrics.regions import RegionMetrics
from rahf.metrics.scores import ScoreMetrics

__all__ = [
    "Difference",
    "EvaluationMetrics",
    "HeatmapMetrics",
    "HeatmapOptions",
    "KeywordMetrics",
    "MarkMetrics",
    "MeanBaseline",
    "RegionMetrics",
    "ScoreMetrics",
    "TrainingMean",
    "bootstrap_intervals",
    "choose_threshold",
    "map_metrics",
    "paired_differences",
]
