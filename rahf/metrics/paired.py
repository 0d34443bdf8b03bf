"""Values of the same examples before and after a treatment, or by two systems: means, differences, who is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rahf.metrics.accumulator import Accumulator, weighted_mean

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float


class PairedValues(Accumulator):
    """Per column ``name``, means over the examples of which both values are finite:

    * ``name/before``, ``name/after``, ``name/difference``: after minus before;
    * ``name/gained``: share of the examples whose value rose;
    * ``name/wins``: the same, and half of those whose value stayed.
    """

    def __init__(self, columns: Sequence[str]):
        """`columns`: names of the values."""
        super().__init__()
        self.columns = tuple(columns)

    def add(self, before: Float[np.ndarray, "N k"], after: Float[np.ndarray, "N k"]) -> None:
        """Adds examples; NaN: no value."""
        self._add(np.arange(len(before)) + len(self), before=before, after=after)

    def _empty(self) -> dict[str, np.ndarray]:
        return {name: np.zeros((0, len(self.columns)), np.float64) for name in ("before", "after")}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        before, after = arrays["before"], arrays["after"]
        gained = 1.0 * (after > before)
        values = {"before": before, "after": after, "difference": after - before, "gained": gained}
        values["wins"] = gained + 0.5 * (after == before)
        both = np.isfinite(before) & np.isfinite(after)
        return {
            f"{column}/{name}": weighted_mean(value[:, number], both[:, number], weights)
            for number, column in enumerate(self.columns)
            for name, value in values.items()
        }

    def counts(self) -> dict[str, float]:
        return {"count": float(len(self))}
