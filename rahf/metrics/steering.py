"""How well pictures are looked at where a target map says: agreement of target and prediction, and what to avoid.

``cc``, ``kld`` (nats, target || prediction) and ``sim`` are those of `rahf.metrics.saliency`, with the target as the
truth. ``nss`` is the mean of the standardised prediction over the target's density: what viewers who look as the target
says would give. ``avoided`` is the share of the prediction inside the regions to be avoided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rahf.core.errors import DataError
from rahf.metrics.accumulator import Accumulator, weighted_mean
from rahf.metrics.saliency import PER_PICTURE, Fixated, picture_metrics

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float

#: Columns of `agreement`.
AGREEMENT = ("cc", "kld", "sim", "nss", "avoided")
#: Metrics of a drawing: those, and what a critic says of prompt and picture.
STEERING = (*AGREEMENT, "alignment")


def agreement(
    log_density: Float[np.ndarray, "H W"],
    target: Float[np.ndarray, "H W"],
    avoid: Bool[np.ndarray, "H W"] | None = None,
    name: str = "map",
) -> Float[np.ndarray, " 5"]:
    """Of one picture, columns `AGREEMENT`; ``avoided`` is NaN without regions to be avoided.

    Args:
      log_density: what a model predicts of the picture; its exponential sums to 1.
      target: at least 0, of any scale.
      avoid: True where nobody shall look.
      name: for messages.

    Raises:
      NotFinite, DataError: as `rahf.metrics.saliency.picture_metrics`; or regions of another shape.
    """
    target = np.asarray(target, np.float64)
    values = dict(zip(PER_PICTURE, picture_metrics(log_density, Fixated(None, target), name=name)))
    p = np.exp(np.asarray(log_density, np.float64))
    flat = p.min() == p.max()
    values["nss"] = 0.0 if flat else float((target / target.sum() * (p - p.mean())).sum() / p.std())
    values["avoided"] = np.nan
    if avoid is not None and np.any(avoid):
        if np.shape(avoid) != p.shape:
            raise DataError(f"{name}: regions to be avoided have shape {np.shape(avoid)}, the prediction {p.shape}")
        values["avoided"] = p[np.asarray(avoid, bool)].sum()
    return np.array([values[key] for key in AGREEMENT])


class SteeringMetrics(Accumulator):
    """Means of `STEERING` over drawings, one prompt with one seed, each the mean over the targets."""

    def update(self, values: Float[np.ndarray, "N 6"], index: Sequence[int]) -> None:
        """Adds drawings: columns `STEERING`, NaN where a metric is undefined."""
        self._add(np.asarray(index), values=np.asarray(values, np.float64))

    def _empty(self) -> dict[str, np.ndarray]:
        return {"values": np.zeros((0, len(STEERING)))}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        values = self.to_arrays()["values"]
        keep = np.ones(len(values), bool)
        return {name: weighted_mean(values[:, column], keep, weights) for column, name in enumerate(STEERING)}

    def counts(self) -> dict[str, float]:
        return {"drawings": float(len(self))}
