"""Names of scores and heatmaps, checked."""

from __future__ import annotations

from collections.abc import Sequence

from rahf.config import suggest


def position(kind: str, name: str, known: Sequence[str]) -> int:
    """Where a name stands in `known`.

    Args:
      kind: "score" or "heatmap", for the message.
      name: as asked for.
      known: `rahf.batch.SCORES` or `rahf.batch.HEATMAPS`.

    Raises:
      ValueError: no such name; suggests the nearest.
    """
    if name not in known:
        raise ValueError(f"no {kind} is called {name!r}.{suggest(name, known)}")
    return known.index(name)
