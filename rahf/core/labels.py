"""Names of scores and heatmaps, checked, and weights of scores by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError, UnknownNameError
from rahf.core.names import suggest

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float


def position(kind: str, name: str, known: Sequence[str]) -> int:
    """Where a name stands in `known`.

    Args:
      kind: "score" or "heatmap", for the message.
      name: as asked for.
      known: `rahf.core.batch.SCORES` or `rahf.core.batch.HEATMAPS`.

    Raises:
      UnknownNameError: no such name; suggests the nearest.
    """
    if name not in known:
        raise UnknownNameError(f"no {kind} is called {name!r}.{suggest(name, known)}")
    return known.index(name)


def nearest_score(name: str) -> str:
    """`name` if it is a score. Raises UnknownNameError that suggests the nearest one."""
    if name not in SCORES:
        raise UnknownNameError(f"no score {name!r}.{suggest(str(name), list(SCORES))}")
    return name


def weights(score: str | Mapping[str, float]) -> Float[np.ndarray, "4"]:
    """A score's name, or weights by name → float32 [4] in the order of `SCORES`.

    Raises:
      UnknownNameError: an unknown score; suggests the nearest.
      ArgumentError: no score at all, or a weight that is not finite.
    """
    by_name = {score: 1.0} if isinstance(score, str) else dict(score)
    vector = np.zeros(len(SCORES), np.float32)
    for name, weight in by_name.items():
        vector[SCORES.index(nearest_score(name))] = weight
    if not by_name or not np.isfinite(vector).all():
        raise ArgumentError(f"score: expected a name or finite weights by name, found {score!r}")
    return vector
