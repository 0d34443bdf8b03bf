"""Confidence intervals of every metric by resampling examples (percentile bootstrap, Efron 1979)."""

from __future__ import annotations

import numpy as np

from rahf.metrics.accumulator import Accumulator

_CELLS = 400_000  # resamples times examples computed at once; bounds the memory, the intervals do not depend on it


def bootstrap_intervals(
    metrics: Accumulator, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals. Deterministic for the same examples, seed and number of resamples.

    Each resample draws as many examples as there are, with replacement, and recomputes the metric from them: ranks
    included, and micro-averages from the summed counts of the drawn prompts. Accumulators of the same number of
    examples get the same resamples.

    Args:
      metrics: the accumulator; without any example every interval is (NaN, NaN).
      resamples: number of resamples.
      seed: of the resampling.
      level: share of resamples inside the interval, in (0, 1).

    Returns:
      Metric name → (low, high). Resamples in which a metric is undefined are left out; (NaN, NaN) if all are.
      Counts have no interval.

    Raises:
      ValueError: `level` is not within (0, 1), or `resamples` is not positive.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} and resamples {resamples}: expected 0 < level < 1 and resamples > 0")
    number = len(metrics)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // max(number, 1))
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        if number:
            counts = rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)
        else:
            counts = np.zeros((size, 0))
        parts.append(metrics.statistics(counts))
    tails = ((1 - level) / 2, (1 + level) / 2)
    return {name: _quantiles(np.concatenate([p[name] for p in parts]), tails) for name in parts[0]}


def _quantiles(values: np.ndarray, tails: tuple[float, float]) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not values.size:
        return (float("nan"), float("nan"))
    low, high = np.quantile(values, tails)
    return float(low), float(high)
