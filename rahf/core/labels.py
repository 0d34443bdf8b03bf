"""Names of scores and heatmaps and their order, checked; and one score of many, by name or by weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rahf.core.errors import ArgumentError, UnknownNameError
from rahf.core.names import suggest

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float

#: Order of the last axis of every `scores` array. All in [0, 1], high = good.
SCORES = ("plausibility", "alignment", "aesthetics", "overall")
#: Order of the last axis of every `heatmaps` array. All in [0, 1], high = bad.
HEATMAPS = ("implausibility", "misalignment")


def position(kind: str, name: str, names: Sequence[str]) -> int:
    """Index of a name.

    Args:
      kind: "score" or "heatmap", for the message.
      name: the one asked for.
      names: `SCORES` or `HEATMAPS`.

    Raises:
      UnknownNameError: no such name; suggests the nearest.
    """
    if not isinstance(name, str) or name not in names:
        raise UnknownNameError(f"no {kind} is called {name!r}.{suggest(str(name), names)}")
    return names.index(name)


def weights(score: str | Mapping[str, float]) -> Float[np.ndarray, "4"]:
    """A score's name, or weights by name → float32 [4] in the order of `SCORES`.

    Raises:
      UnknownNameError: an unknown score; suggests the nearest.
      ArgumentError: no score at all, or a weight that is not finite.
    """
    if not isinstance(score, (str, Mapping)):
        raise ArgumentError(f"score: expected a name ({', '.join(SCORES)}) or weights by name, found {score!r}")
    by_name = {score: 1.0} if isinstance(score, str) else dict(score)
    vector = np.zeros(len(SCORES), np.float32)
    for name, weight in by_name.items():
        column = position("score", name, SCORES)
        if isinstance(weight, (str, bytes)) or not np.isscalar(weight) or not np.isfinite(weight):
            raise ArgumentError(f"score: expected a name or finite weights by name, found {score!r}")
        vector[column] = weight
    if not by_name:
        raise ArgumentError(f"score: expected a name or finite weights by name, found {score!r}")
    return vector


def weighted(scores: Any, score: str | Mapping[str, float]) -> Any:
    """One score of many: [..., 4] in the order of `SCORES` → [...], NumPy or JAX.

    Scores of weight 0 are left out: a model may give NaN for what it does not predict.

    Args:
      scores: [..., 4].
      score: a name, or weights by name.

    Raises:
      ValueError: as `weights`.
    """
    vector = weights(score)
    if isinstance(score, str):
        return scores[..., SCORES.index(score)]
    used = np.flatnonzero(vector)
    return scores[..., used] @ vector[used]
