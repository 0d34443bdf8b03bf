"""Agreement of predicted with marked heatmaps: MSE, CC, KLD, SIM, NSS in three readings, AUC-Judd.

Definitions are those of saliency benchmarks as used by rich-feedback code. A value is computed per map, then
averaged over maps: MSE over all maps and over maps where nothing was marked, the others over maps where
something was marked (RAHF paper, tables of heatmap results).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from rahf.core.batch import HEATMAPS
from rahf.core.errors import DataError, NotFinite
from rahf.images.resize import resize
from rahf.metrics.accumulator import Accumulator, weighted_mean

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float, Integer, Real

#: Metrics of one map, in the order of the last axis of `map_metrics`. All but mse need a non-empty truth.
PER_MAP = ("mse", "cc", "kld", "sim", "nss", "nss_weighted", "nss_majority", "auc_judd")
#: Epsilon of the MIT saliency benchmark; the default of public rich-feedback code is 1e-8.
MIT_EPS = 2.2204e-16
_ROUNDING = 1e-3  # by which values may exceed 1


@dataclasses.dataclass(frozen=True)
class HeatmapOptions:
    """Variants of the definitions that are in use.

    `eps` enters CC, KLD and SIM. KLD is ``sum g log(eps + g / (eps + p))`` over sum-normalised maps: 1e-8 in
    public rich-feedback code, `MIT_EPS` in the MIT benchmark. SIM normalises by the sum, or scales to
    minimum 0 and maximum 1 first ("minmax": MIT, Augsal). NSS divides by the standard deviation with N - 1
    (`nss_ddof` 1) or N (0).
    """

    eps: float = 1e-8
    sim: Literal["sum", "minmax"] = "sum"
    nss_ddof: Literal[0, 1] = 1


class HeatmapMetrics(Accumulator):
    """`heatmaps/<name>/{mse,mse_empty,cc,kld,sim,nss,nss_weighted,nss_majority,auc_judd}` and counts.

    `count` counts labelled maps, `count_empty` those of them without a mark, `count_majority` those in
    which a pixel was marked by at least half of the annotators (`nss_majority` exists only there).
    """

    def __init__(self, options: HeatmapOptions = HeatmapOptions(), threads: int | None = None) -> None:
        super().__init__()
        self.options, self.threads = options, threads

    def update(
        self,
        prediction: Real[np.ndarray, "B h w 2"],
        truth: Real[np.ndarray, "B H W 2"],
        mask: Bool[np.ndarray, "B 2"],
        index: Integer[np.ndarray, " B"],
    ) -> None:
        """Adds a batch. Metrics of marked pixels are computed at the truth's own resolution.

        Args:
          prediction: [B,h,w,2] in [0,1], order HEATMAPS; resized to the truth if its sides differ.
          truth: uint8 [B,H,W,2] 0..255, or float in [0,1].
          mask: bool [B,2], True where a labelled map exists.
          index: int [B] position in the split; negative for filling, whose maps are ignored.

        Raises:
          NotFinite, DataError: as `map_metrics`, for maps that count.
        """
        index, mask = np.asarray(index), np.asarray(mask, bool)
        rows, kinds = np.nonzero(mask & (index >= 0)[:, None])
        values = np.full((*mask.shape, len(PER_MAP)), np.nan)
        empty = np.zeros(mask.shape, bool)
        names = [f"example {int(index[row])}: {HEATMAPS[kind]} heatmap" for row, kind in zip(rows, kinds)]
        values[rows, kinds] = map_metrics(
            [prediction[row, :, :, kind] for row, kind in zip(rows, kinds)],
            [truth[row, :, :, kind] for row, kind in zip(rows, kinds)],
            self.options,
            self.threads,
            names,
        )
        empty[rows, kinds] = [not truth[row, :, :, kind].any() for row, kind in zip(rows, kinds)]
        self._add(index, values=values, empty=empty, mask=mask)

    def merge(self, other: Accumulator) -> "HeatmapMetrics":
        """Adds another accumulator's examples to this one. Raises ValueError if its options differ."""
        if isinstance(other, HeatmapMetrics) and other.options != self.options:
            raise ValueError(f"cannot merge metrics of {other.options} into those of {self.options}")
        super().merge(other)
        return self

    def _empty(self) -> dict[str, np.ndarray]:
        shape = (0, len(HEATMAPS))
        return {
            "values": np.zeros((*shape, len(PER_MAP))),
            "empty": np.zeros(shape, bool),
            "mask": np.zeros(shape, bool),
        }

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        result: dict[str, np.ndarray] = {}
        for kind, name in enumerate(HEATMAPS):
            labelled, empty = arrays["mask"][:, kind], arrays["empty"][:, kind]
            for column, metric in enumerate(PER_MAP):
                values = arrays["values"][:, kind, column]
                keep = labelled if metric == "mse" else labelled & ~empty
                result[f"heatmaps/{name}/{metric}"] = weighted_mean(values, keep, weights)
                if metric == "mse":
                    result[f"heatmaps/{name}/mse_empty"] = weighted_mean(values, labelled & empty, weights)
        return result

    def counts(self) -> dict[str, float]:
        arrays = self.to_arrays()
        majority = np.isfinite(arrays["values"][:, :, PER_MAP.index("nss_majority")])
        result: dict[str, float] = {}
        for kind, name in enumerate(HEATMAPS):
            labelled, empty = arrays["mask"][:, kind], arrays["empty"][:, kind]
            result[f"heatmaps/{name}/count"] = float(labelled.sum())
            result[f"heatmaps/{name}/count_empty"] = float((labelled & empty).sum())
            result[f"heatmaps/{name}/count_majority"] = float((labelled & majority[:, kind]).sum())
        return result


def map_metrics(
    predictions: Sequence[np.ndarray] | Real[np.ndarray, "N h w"],
    truths: Sequence[np.ndarray] | Real[np.ndarray, "N H W"],
    options: HeatmapOptions = HeatmapOptions(),
    threads: int | None = None,
    names: Sequence[str] | None = None,
) -> Float[np.ndarray, "N 8"]:
    """Metrics of N pairs of maps.

    Args:
      predictions: N maps [h,w] in [0,1] of any float dtype.
      truths: N maps [H,W], uint8 0..255, bool, or float in [0,1].
      options: variants of the definitions.
      threads: number of threads; None: one per processor that this process may use.
      names: of the maps, for error messages; default "map 0", "map 1", ...

    Returns:
      float64 [N,8], columns PER_MAP; NaN where undefined: all but mse for an empty truth, nss_majority where
      no pixel reaches one half, auc_judd where every pixel is marked.

    Raises:
      NotFinite: a prediction is negative or not finite.
      DataError: a prediction above 1; a truth of another type, outside of [0,1], or with NaN.
    """
    names = names or [f"map {number}" for number in range(len(predictions))]
    jobs = list(zip(predictions, truths, names))
    threads = threads or _processors()
    if threads == 1 or len(jobs) < 2:
        rows = [_one_map(*job, options) for job in jobs]
    else:  # NumPy releases the GIL while it sorts and sums
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            rows = list(pool.map(lambda job: _one_map(*job, options), jobs))
    return np.asarray(rows, np.float64).reshape(len(jobs), len(PER_MAP))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container may use fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _one_map(prediction: np.ndarray, truth: np.ndarray, name: str, options: HeatmapOptions) -> list[float]:
    prediction = np.asarray(prediction)
    if prediction.dtype not in (np.float32, np.float64):
        prediction = prediction.astype(np.float32)
    if prediction.shape != truth.shape:
        prediction = resize(prediction, truth.shape)
    p = np.ascontiguousarray(prediction).ravel()
    low, high = p.min(), p.max()
    if not (low >= 0 and np.isfinite(high)):
        raise NotFinite(
            f"{name}: values from {low} to {high}, expected finite values in [0, 1]; "
            "the parameters have probably diverged"
        )
    if high > 1 + _ROUNDING:
        raise DataError(f"{name}: values up to {high:g}, expected [0, 1]; divide by 255 if it is a picture")
    marks = np.ascontiguousarray(truth).ravel()
    _check_truth(marks, name)
    where = np.flatnonzero(marks)
    # Only marked pixels of the truth matter from here on: everywhere else g is zero.
    g = marks[where] / np.float64(255 if marks.dtype == np.uint8 else 1)
    x = p.astype(np.float64)
    mse = (np.square(x).sum() - 2 * (x[where] * g).sum() + np.square(g).sum()) / x.size
    mse = max(float(mse), 0.0)
    if not where.size:
        return [mse] + [np.nan] * (len(PER_MAP) - 1)
    cc, *nss = cc_and_nss(x, where, g, bool(low == high), options)
    kld, sim = kld_and_sim(x, where, g, options)
    return [mse, cc, kld, sim, *nss, auc_judd(p[where], np.delete(p, where))]


def _check_truth(marks: np.ndarray, name: str) -> None:
    """Refuses what is neither uint8 0..255 nor bool nor float in [0,1]: NaN would make every metric NaN, and a float
    map in 0..255 would count 255 times."""
    if marks.dtype in (np.uint8, np.bool_) or not marks.size:
        return
    if marks.dtype.kind != "f":
        raise DataError(f"{name}: a true map of type {marks.dtype}; expected uint8 0..255 or floats in [0, 1]")
    low, high = float(marks.min()), float(marks.max())
    if not (low >= 0 and high <= 1 + _ROUNDING):  # also false for NaN
        remedy = "divide by 255, or give uint8" if high > 1 else "a map that nobody drew is masked, not NaN"
        raise DataError(f"{name}: a true map with values from {low:g} to {high:g}, expected [0, 1]; {remedy}")


def cc_and_nss(
    x: np.ndarray, where: np.ndarray, g: np.ndarray, constant: bool, options: HeatmapOptions
) -> tuple[float, float, float, float]:
    """CC, then NSS over marked pixels, weighted by the marks, and over pixels that at least half marked.

    Args:
      x: float64 [N] predicted values.
      where: places of the marked pixels, and `g` their values.
      constant: all predicted values are the same.
    """
    majority = g >= 0.5
    if constant:  # no pixel is higher than another; the standard deviation would be rounding noise
        return 0.0, 0.0, 0.0, 0.0 if majority.any() else np.nan
    centred = x - x.mean()
    squares = np.square(centred).sum()
    mean_g = g.sum() / x.size
    var_g = max(np.square(g).sum() / x.size - mean_g**2, 0.0)
    covariance = (centred[where] * g).sum() / x.size
    cc = covariance / (np.sqrt(squares / x.size * var_g) + options.eps)
    z = centred[where] / np.sqrt(squares / (x.size - options.nss_ddof))
    return cc, z.mean(), (z * g).sum() / g.sum(), z[majority].mean() if majority.any() else np.nan


def kld_and_sim(x: np.ndarray, where: np.ndarray, g: np.ndarray, options: HeatmapOptions) -> tuple[float, float]:
    """KLD and SIM; arguments as of `cc_and_nss`."""
    eps = options.eps
    p_share, g_share = x[where] / (x.sum() + eps), g / (g.sum() + eps)
    kld = float((g_share * np.log(eps + g_share / (eps + p_share))).sum())
    if options.sim == "minmax":
        lowest_g = g.min() if g.size == x.size else 0.0
        scaled_p, scaled_g = x - x.min(), g - lowest_g
        # Dividing by the maximum as well would cancel in the division by the sum.
        p_share, g_share = (
            part / (total + eps * (top if top > 0 else 1))
            for part, total, top in (
                (scaled_p[where], scaled_p.sum(), scaled_p.max()),
                (scaled_g, scaled_g.sum(), scaled_g.max()),
            )
        )
    return kld, float(np.minimum(p_share, g_share).sum())


def auc_judd(positives: Real[np.ndarray, " n"], negatives: Real[np.ndarray, " m"]) -> float:
    """Area under the ROC curve, thresholds at every marked pixel's value, as a Mann-Whitney statistic.

    The share of (marked, unmarked) pixel pairs in which the marked one is higher; a tie counts one half. Exact, without
    the random jitter of the usual implementation, in O(N log N): a binary search for every marked value in the sorted
    unmarked ones.

    Args:
      positives: [n] predicted values at marked pixels.
      negatives: [m] predicted values at the others.

    Returns:
      A number in [0, 1]; NaN if n or m is zero.
    """
    if not positives.size or not negatives.size:
        return np.nan
    ordered = np.sort(negatives)
    positives = np.sort(positives)  # neighbouring searches then read the same cache lines
    below = np.searchsorted(ordered, positives, "left").sum(dtype=np.int64)
    not_above = np.searchsorted(ordered, positives, "right").sum(dtype=np.int64)
    return float(int(below) + int(not_above)) / (2.0 * positives.size * negatives.size)
