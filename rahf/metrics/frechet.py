"""The Fréchet distance between two sets of features (Heusel et al. 2017), for features of any network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rahf.core.errors import ArgumentError

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float


def frechet_distance(one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]) -> float:
    """``|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)`` of the normal distributions with the sets' means and covariances.

    The trace of the root is that of ``(Σ₁^½ Σ₂ Σ₁^½)^½``, whose matrix is symmetric: no root of a general matrix is
    taken, and covariances without full rank (fewer examples than features) need no care. With few examples the distance
    is biased upwards; compare sets of the same size only.

    Args:
      one, other: features of two or more examples each.

    Returns:
      0 or more, float.

    Raises:
      ArgumentError: fewer than two examples, features of different widths, or values that are not finite.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ArgumentError(
            f"frechet_distance: expected features [n,d] and [m,d] of two or more examples, found {[*one.shape]} and "
            f"{[*other.shape]}"
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ArgumentError("frechet_distance: features that are not finite")
    first, second = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    distance = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * cross
    return float(max(distance, 0.0))
