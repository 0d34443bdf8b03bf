"""Agreement of generated motion with true motion, from spectral volumes (Li et al. 2024, section 3).

A clip gives its power by frequency and three agreements; term 0, where a pixel rests on average, counts nowhere.

* ``power/k``: decimal logarithm of the ratio of powers of term k, each the mean of ``|S_k|²`` over clips and pixels;
  0: as strong as in truth, 1: ten times the power. ``power``: the mean of its absolute values. A floor of 10⁻⁴ of the
  strongest true term is added to both, because drawn scenes do not move at all in some frequencies.
* ``direction``: whether pixels swing along the right line. The axis of ``S_k(p)`` is that of the ellipse that the pixel
  runs through; the mean of the cosine of twice the angle between both axes over pixels and frequencies, weighted by how
  much the true motion has of a direction. 1: the same line, 0: chance, -1: across. Phases do not count.
* ``place``: whether the right pixels move: correlation over pixels of the root mean square of displacements over time.
* ``correlation``: per-pixel correlation over time of generated and true displacements, mean over the pixels that truly
  move; phases count, so that another swing of the same grass has about 0.

By Parseval's theorem all are those of the textures, without transforming back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rahf.core.errors import DataError, NotFinite
from rahf.metrics.accumulator import Accumulator, divide, weighted_mean

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Complex, Float

#: Agreements of one clip, in the order of the last axis.
PER_CLIP = ("direction", "place", "correlation")
_FLOOR = 1e-4
#: Share of the largest root mean square from which on a pixel moves.
_MOVES = 0.1


class MotionMetrics(Accumulator):
    """`motion/<name>`, mergeable, with intervals by `bootstrap`."""

    def __init__(self, terms: int):
        """Args: K, the larger one of truth and prediction."""
        super().__init__()
        self.terms = terms

    def update(
        self,
        volumes: Sequence[Complex[np.ndarray, "k h w 2"]],
        truths: Sequence[Complex[np.ndarray, "k h w 2"]],
        index: Sequence[int],
    ) -> None:
        """Adds clips.

        Args:
          volumes, truths: spectral volumes of the same grid and number of frames; missing terms are 0.
          index: position in the split; negative for filling.

        Raises:
          NotFinite: a volume that is not finite.
          DataError: volumes of different grids, or of more terms than expected.
        """
        values = np.full((len(index), len(PER_CLIP)), np.nan)
        powers = np.zeros((len(index), 2, self.terms))
        for row, (volume, truth, number) in enumerate(zip(volumes, truths, index)):
            if number < 0:
                continue
            pair = [_checked(one, self.terms, f"example {int(number)}") for one in (volume, truth)]
            if pair[0].shape != pair[1].shape:
                raise DataError(f"example {int(number)}: grids {pair[0].shape[1:3]} and {pair[1].shape[1:3]}")
            powers[row] = [power(one) for one in pair]
            values[row] = direction(*pair), place(*pair), correlation(*pair)
        self._add(np.asarray(index), values=values, powers=powers)

    def _empty(self) -> dict[str, np.ndarray]:
        return {"values": np.zeros((0, len(PER_CLIP))), "powers": np.zeros((0, 2, self.terms))}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        total = weights.sum(1)[:, None, None]
        mean = divide(np.tensordot(weights, arrays["powers"], 1), total)[..., 1:]
        floor = _FLOOR * mean[:, 1].max(-1, initial=0.0)[:, None]
        drawn, true = mean[:, 0] + floor, mean[:, 1] + floor
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log10(drawn) - np.log10(true)
        metrics = {"motion/power": np.abs(ratio).mean(-1)} if ratio.shape[-1] else {}
        keep = np.ones(len(arrays["values"]), bool)
        for column, name in enumerate(PER_CLIP):
            metrics[f"motion/{name}"] = weighted_mean(arrays["values"][:, column], keep, weights)
        return metrics | {f"motion/power/{term + 1}": ratio[:, term] for term in range(ratio.shape[-1])}

    def counts(self) -> dict[str, float]:
        return {"motion/count": float(len(self))}


def power(volume: Complex[np.ndarray, "k h w 2"]) -> Float[np.ndarray, " k"]:
    """Mean of ``|S_k|²`` over pixels, x and y summed; float64."""
    return np.square(np.abs(volume.astype(np.complex128))).sum(-1).mean((1, 2))


def direction(volume: Complex[np.ndarray, "k h w 2"], truth: Complex[np.ndarray, "k h w 2"]) -> float:
    """Weighted mean cosine of twice the angle between the axes of pixels' swings; NaN where truth has no direction."""
    drawn, true = _axes(volume[1:]), _axes(truth[1:])
    length, weight = np.hypot(*drawn), np.hypot(*true)
    cosine = divide((drawn * true).sum(0), length * weight, otherwise=0.0)
    return float(divide((weight * cosine).sum(), weight.sum()))


def place(volume: Complex[np.ndarray, "k h w 2"], truth: Complex[np.ndarray, "k h w 2"]) -> float:
    """Correlation over pixels of root mean square displacements; NaN where one of them is the same everywhere."""
    drawn, true = (root_mean_square(one).ravel() for one in (volume, truth))
    drawn, true = drawn - drawn.mean(), true - true.mean()
    return float(divide((drawn * true).sum(), np.sqrt(np.square(drawn).sum() * np.square(true).sum())))


def correlation(volume: Complex[np.ndarray, "k h w 2"], truth: Complex[np.ndarray, "k h w 2"]) -> float:
    """Correlation over time of displacements, x and y together, mean over the pixels that truly move.

    A pixel that does not move in `volume` counts as 0. NaN where nothing truly moves.
    """
    drawn, true = (one[1:].astype(np.complex128) for one in (volume, truth))
    product = (drawn * true.conj()).real.sum((0, -1))
    size = np.sqrt(np.square(np.abs(drawn)).sum((0, -1)) * np.square(np.abs(true)).sum((0, -1)))
    swing = root_mean_square(truth)
    moves = (swing > 0) & (swing >= _MOVES * swing.max(initial=0.0))
    return float(divide(divide(product, size, otherwise=0.0)[moves].sum(), moves.sum()))


def root_mean_square(volume: Complex[np.ndarray, "k h w 2"]) -> Float[np.ndarray, "h w"]:
    """Of each pixel over time around its mean place, up to one factor for all pixels; float64."""
    return np.sqrt(np.square(np.abs(volume[1:].astype(np.complex128))).sum((0, -1)))


def _axes(volume: np.ndarray) -> np.ndarray:
    """Of each pixel and term the axis of its ellipse as a vector of twice the angle, float64 [2,k,h,w].

    It is that of the larger eigenvector of ``Re S Sᴴ``; its length is the difference of the eigenvalues, 0 for circles.
    """
    x, y = np.moveaxis(volume.astype(np.complex128), -1, 0)
    return np.stack([np.square(np.abs(x)) - np.square(np.abs(y)), 2 * (x * y.conj()).real])


def _checked(volume: np.ndarray, terms: int, what: str) -> np.ndarray:
    volume = np.asarray(volume)
    if volume.shape[0] > terms:
        raise DataError(f"{what}: a spectral volume of {volume.shape[0]} terms, expected {terms} or fewer")
    if not np.isfinite(volume).all():
        raise NotFinite(f"{what}: the spectral volume is not finite")
    return np.pad(volume, ((0, terms - volume.shape[0]), (0, 0), (0, 0), (0, 0)))
