"""Confidence intervals of every metric by resampling examples (percentile bootstrap, Efron 1979)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
    _check(resamples, level)
    parts = [metrics.statistics(counts) for counts in _resamples(len(metrics), resamples, seed)]
    return {name: _quantiles(np.concatenate([p[name] for p in parts]), level) for name in parts[0]}


class Difference(NamedTuple):
    """A metric of one predictor minus that of another on the same examples.

    Attributes:
      value: of all examples; NaN where the metric of one of them is undefined.
      low, high: interval over resamples.
      larger: share of resamples in which the first one's metric is larger; half of the ties.
    """

    value: float
    low: float
    high: float
    larger: float


def paired_differences(
    first: Accumulator, second: Accumulator, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """Differences of the metrics of two predictors, with intervals: both are computed from the same resamples.

    What makes an example hard for both drops out, so the interval is narrower than those of the two metrics.

    Args:
      first, second: accumulators of the same examples.
      resamples, seed, level: as of `bootstrap_intervals`.

    Returns:
      Metric name → difference, for the metrics that both have. Counts have none.

    Raises:
      ValueError: the examples differ; `level` or `resamples` as of `bootstrap_intervals`.
    """
    _check(resamples, level)
    if not np.array_equal(first.to_arrays()["index"], second.to_arrays()["index"]):
        raise ValueError(f"paired differences: {len(first)} and {len(second)} examples that are not the same ones")
    whole = np.ones((1, len(first)))
    values = [{name: float(value[0]) for name, value in one.statistics(whole).items()} for one in (first, second)]
    names = [name for name in values[0] if name in values[1]]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for counts in _resamples(len(first), resamples, seed):
        one, other = first.statistics(counts), second.statistics(counts)
        for name in names:
            parts[name].append(one[name] - other[name])
    return {name: _difference(values[0][name] - values[1][name], parts[name], level) for name in names}


def _difference(value: float, parts: list[np.ndarray], level: float) -> Difference:
    drawn = np.concatenate(parts)
    drawn = drawn[np.isfinite(drawn)]
    larger = float(np.mean((drawn > 0) + 0.5 * (drawn == 0))) if drawn.size else float("nan")
    return Difference(value, *_quantiles(drawn, level), larger)


def _check(resamples: int, level: float) -> None:
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} and resamples {resamples}: expected 0 < level < 1 and resamples > 0")


def _resamples(number: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """float64 [r,N]: how often each of N examples is drawn, for all resamples in parts that fit into the memory."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // max(number, 1))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        if number:
            yield rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)
        else:
            yield np.zeros((size, 0))


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not values.size:
        return (float("nan"), float("nan"))
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
