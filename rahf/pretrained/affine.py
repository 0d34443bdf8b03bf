"""Batch normalizations of published networks as scale and bias of each channel."""

from __future__ import annotations

import numpy as np

from rahf.nn import functional
from rahf.pretrained import strict


def batch_norm(taker: strict.Taker, name: str, width: int, eps: float) -> functional.Params:
    """A batch normalization with the statistics of its training: γ (x - μ) / √(σ² + ε) + β as scale · x + bias.

    Args:
      taker: of the checkpoint.
      name: of the normalization.
      width: its channels.
      eps: of the published network; added to the variance.
    """
    gamma, beta, mean, variance = (
        taker.take(f"{name}.{part}", (width,)).astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    if (variance < 0).any():
        taker.problem(f"{name}.running_var", "has negative values, which no variance has")
    scale = gamma / np.sqrt(np.maximum(variance, 0) + eps)
    return {"scale": scale.astype(np.float32), "bias": (beta - scale * mean).astype(np.float32)}
