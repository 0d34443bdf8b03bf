"""Outputs that do not depend on the input: a dead head, or a model that was never trained."""

from __future__ import annotations

import numpy as np

from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.critic.families import Outputs

#: Outputs in [0,1] that differ by no more are the same. Batches of other sizes may change the last digits.
_SAME = 1e-6


class Constants:
    """Lowest and highest value of every score, heatmap pixel and word over all examples."""

    def __init__(self, outputs: Outputs):
        """`outputs`: what the model predicts; the rest is not looked at."""
        self._outputs, self._count = outputs, 0
        self._low: dict[str, np.ndarray] = {}
        self._high: dict[str, np.ndarray] = {}

    def update(self, prediction: Prediction, rows: np.ndarray) -> None:
        """Adds some rows of a batch of predictions, NumPy arrays."""
        if not len(rows):
            return
        self._count += len(rows)
        for name, values in self._values(prediction, rows).items():
            low, high = values.min(0), values.max(0)
            self._low[name] = low if name not in self._low else np.minimum(self._low[name], low)
            self._high[name] = high if name not in self._high else np.maximum(self._high[name], high)

    def _values(self, prediction: Prediction, rows: np.ndarray) -> dict[str, np.ndarray]:
        values = {f"{n} score": prediction.scores[rows, SCORES.index(n)] for n in self._outputs.scores}
        if prediction.heatmaps is not None:
            maps = prediction.heatmaps
            values |= {f"{n} heatmap": maps[rows, :, :, HEATMAPS.index(n)] for n in self._outputs.heatmaps}
        return values

    def found(self) -> tuple[str, ...]:
        """Names of what is the same for all examples, with the value of a score; empty for fewer than two examples."""
        if self._count < 2:
            return ()
        same = [name for name in self._low if float((self._high[name] - self._low[name]).max()) <= _SAME]
        return tuple(f"{n} ({float(self._low[n]):.4f})" if self._low[n].ndim == 0 else n for n in same)


def note(constant: tuple[str, ...], what: str) -> str | None:
    """One line that names constant outputs; None if there are none. `what`: the examples, in words."""
    if not constant:
        return None
    return (
        f"dead: {', '.join(constant)}: the same for {what}, whatever they show; the model has learned nothing "
        "there. Look at the learning rate, the labels and the loss of its run"
    )
