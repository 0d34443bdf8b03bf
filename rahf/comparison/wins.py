"""How often one source wins over another, paired by prompt, with intervals; and how far scores are from the ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class WinRate(NamedTuple):
    """Share of prompts that the first of two wins, ties half.

    Attributes:
      rate: mean over prompts; NaN without any.
      low, high: 95% interval over prompts.
      prompts: how many are compared.
    """

    rate: float
    low: float
    high: float
    prompts: int


def win_rate(shares: Sequence[float], resamples: int = 1000, seed: int = 0) -> WinRate:
    """Mean of the shares of wins of prompts, with a bootstrap interval over prompts.

    Args:
      shares: of each prompt, in [0,1]; NaN counts as not compared.
      resamples, seed: of the bootstrap.
    """
    values = np.asarray(shares, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return WinRate(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, values.size, values.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return WinRate(float(values.mean()), float(low), float(high), int(values.size))


def shares_of_examples(first: np.ndarray, second: np.ndarray, prompts: Sequence[str]) -> list[float]:
    """Wins of the first over the second on the same examples, averaged over the examples of each prompt.

    Args:
      first, second: [N] values, high = good; NaN where there is none.
      prompts: of the N examples.
    """
    by_prompt: dict[str, list[float]] = {}
    for one, other, prompt in zip(first, second, prompts, strict=True):
        if np.isfinite(one) and np.isfinite(other):
            by_prompt.setdefault(prompt, []).append((one > other) + 0.5 * (one == other))
    return [float(np.mean(values)) for values in by_prompt.values()]


def shares_of_pictures(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> list[float]:
    """Wins of pictures of the first over those of the second: the share of all pairs of each common prompt.

    Args:
      first, second: values of the pictures of each prompt, high = good; NaN where there is none.
    """
    shares = []
    for prompt, values in first.items():
        one = np.asarray(values, np.float64)
        other = np.asarray(second.get(prompt, ()), np.float64)
        one, other = one[np.isfinite(one)], other[np.isfinite(other)]
        if one.size and other.size:
            difference = one[:, None] - other[None]
            shares.append(float(np.mean((difference > 0) + 0.5 * (difference == 0))))
    return shares


class CalibrationBin(NamedTuple):
    """Examples of neighbouring predictions: means, and the 95% interval of the mean rating (1.96 standard errors)."""

    predicted: float
    rated: float
    low: float
    high: float
    count: int


def calibration(predicted: np.ndarray, rated: np.ndarray, bins: int = 10) -> list[CalibrationBin]:
    """Mean rating over mean prediction in bins of equally many examples, lowest predictions first.

    Args:
      predicted, rated: float [N] in [0,1]; NaN where there is none.
      bins: at most; fewer where a bin would have less than five examples.
    """
    both = np.isfinite(predicted) & np.isfinite(rated)
    x, y = np.asarray(predicted, np.float64)[both], np.asarray(rated, np.float64)[both]
    if not x.size:
        return []
    order = np.argsort(x, kind="stable")
    result = []
    for part in np.array_split(order, max(1, min(bins, x.size // 5))):
        error = 1.96 * y[part].std() / np.sqrt(part.size)
        mean = float(y[part].mean())
        result.append(CalibrationBin(float(x[part].mean()), mean, mean - error, mean + error, int(part.size)))
    return result
