"""Agreement of predicted with rated scores: Pearson (PLCC) and Spearman (SRCC) correlation.

Rated scores are means of three raters on five steps, so they take only 13 values: SRCC uses average ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rahf.core.batch import SCORES
from rahf.core.errors import NotFinite
from rahf.metrics.accumulator import Accumulator, divide

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float, Integer, Real


class ScoreMetrics(Accumulator):
    """`scores/<name>/{plcc,srcc,count}` for every score and `scores/mean/{plcc,srcc}`.

    The mean is over the scores that have labels; NaN ones are left out.
    """

    def update(
        self,
        prediction: Real[np.ndarray, "B 4"],
        truth: Real[np.ndarray, "B 4"],
        mask: Bool[np.ndarray, "B 4"],
        index: Integer[np.ndarray, " B"],
    ) -> None:
        """Adds a batch.

        Args:
          prediction: [B,4] predicted scores, order SCORES.
          truth: [B,4] rated scores; anything where the mask is False.
          mask: bool [B,4], True where a rating exists.
          index: int [B] position in the split; negative for filling.

        Raises:
          ValueError: a prediction that counts is not finite.
        """
        prediction, mask = np.asarray(prediction, np.float64), np.asarray(mask, bool)
        bad = mask & ~np.isfinite(prediction) & (np.asarray(index) >= 0)[:, None]
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise NotFinite(
                f"example {int(index[row])}: predicted {SCORES[column]} is {prediction[row, column]}, "
                "expected a finite number; the parameters have probably diverged"
            )
        self._add(
            index,
            prediction=np.where(mask, prediction, 0.0),
            truth=np.where(mask, truth, 0.0).astype(np.float64),
            mask=mask,
        )

    def _empty(self) -> dict[str, np.ndarray]:
        shape = (0, len(SCORES))
        return {"prediction": np.zeros(shape), "truth": np.zeros(shape), "mask": np.zeros(shape, bool)}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        values: dict[str, np.ndarray] = {}
        for column, name in enumerate(SCORES):
            kept = arrays["mask"][:, column]
            x, y = arrays["prediction"][kept, column], arrays["truth"][kept, column]
            values[f"scores/{name}/plcc"] = plcc(x, y, weights[:, kept])
            values[f"scores/{name}/srcc"] = srcc(x, y, weights[:, kept])
        for kind in ("plcc", "srcc"):
            each = np.stack([values[f"scores/{name}/{kind}"] for name in SCORES])
            defined = np.isfinite(each)
            values[f"scores/mean/{kind}"] = divide(np.where(defined, each, 0.0).sum(0), defined.sum(0))
        return values

    def counts(self) -> dict[str, float]:
        mask = self.to_arrays()["mask"]
        return {f"scores/{name}/count": float(mask[:, i].sum()) for i, name in enumerate(SCORES)}


def plcc(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], weights: Float[np.ndarray, "R N"] | None = None
) -> Float[np.ndarray, " R"]:
    """Pearson correlation of predictions `x` with truth `y` for R weightings.

    The correlation of a constant prediction is defined as 0, so that the baseline that always predicts the mean has a
    value. For a constant truth (fewer than two different values, or no example) it is undefined: NaN.

    Args:
      x: float64 [N] predictions.
      y: float64 [N] truth.
      weights: float64 [R,N] multiplicities; None: one weighting of ones.

    Returns:
      float64 [R] in [-1, 1] or NaN.
    """
    weights = np.ones((1, len(x))) if weights is None else weights
    total = weights.sum(1)
    # Shifting by any constant changes nothing but keeps the sums of squares accurate.
    x, y = (v - v.mean() if len(v) else v for v in (x, y))
    mean_x, mean_y = divide(weights @ x, total), divide(weights @ y, total)
    cov = divide(weights @ (x * y), total) - mean_x * mean_y
    var_x = divide(weights @ (x * x), total) - mean_x**2
    var_y = divide(weights @ (y * y), total) - mean_y**2
    return _ratio(cov, var_x, var_y, _varies(x, weights), _varies(y, weights))


def srcc(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], weights: Float[np.ndarray, "R N"] | None = None
) -> Float[np.ndarray, " R"]:
    """Spearman correlation with average ranks for ties, ranked anew in each of R weightings.

    An example of weight w stands for w tied copies. Arguments, result and the cases of constant input are
    those of `plcc`.
    """
    weights = np.ones((1, len(x))) if weights is None else weights
    if not len(x):
        return np.full(len(weights), np.nan)
    total = weights.sum(1)
    rank_x, rank_y = average_ranks(x, weights), average_ranks(y, weights)
    # The mean of average ranks is always (n + 1) / 2.
    dx, dy = rank_x - (total[:, None] + 1) / 2, rank_y - (total[:, None] + 1) / 2
    cov, var_x, var_y = (np.einsum("rn,rn,rn->r", weights, a, b) for a, b in ((dx, dy), (dx, dx), (dy, dy)))
    return _ratio(cov, var_x, var_y, _varies(x, weights), _varies(y, weights))


def average_ranks(values: Float[np.ndarray, " N"], weights: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R N"]:
    """Ranks from 1, ties sharing their average, when example n occurs `weights[r, n]` times."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    size = np.add.reduceat(weights[:, order], starts, axis=1)  # copies of each different value
    before = np.cumsum(size, axis=1) - size
    return (before + (size + 1) / 2)[:, group]


def _varies(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether at least two different values have weight. Exact, unlike a test of the variance against an epsilon."""
    if not len(values):
        return np.zeros(len(weights), bool)
    low = np.where(weights > 0, values, np.inf).min(1)
    high = np.where(weights > 0, values, -np.inf).max(1)
    return high > low


def _ratio(
    cov: np.ndarray, var_x: np.ndarray, var_y: np.ndarray, x_varies: np.ndarray, y_varies: np.ndarray
) -> np.ndarray:
    scale = np.sqrt(np.maximum(var_x, 0.0) * np.maximum(var_y, 0.0))
    r = np.clip(divide(cov, scale, otherwise=0.0), -1.0, 1.0)
    return np.where(y_varies, np.where(x_varies, r, 0.0), np.nan)
