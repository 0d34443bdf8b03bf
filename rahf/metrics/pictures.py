"""How near pictures are to the true ones: peak signal-to-noise ratio, and structural similarity (Wang et al. 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from rahf.core.errors import DataError
from rahf.metrics.accumulator import Accumulator, weighted_mean

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float, UInt8

#: Metrics of one example, in the order of the last axis.
PER_EXAMPLE = ("psnr", "ssim")
#: Of two equal pictures; without a limit it is infinite, and no mean exists.
MOST_PSNR = 99.0
_LUMA = (0.299, 0.587, 0.114)
_SIGMA, _RADIUS = 1.5, 5  # of the Gaussian window, in pixels


class PictureMetrics(Accumulator):
    """`pictures/psnr` in dB and `pictures/ssim`: means over examples of the means of their pictures."""

    def update(
        self,
        pictures: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
        truths: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
        index: Sequence[int],
    ) -> None:
        """Adds examples.

        Args:
          pictures, truths: of each example as many of the one as of the other, at least one.
          index: position in the split; negative for filling.

        Raises:
          DataError: pictures of different sizes or numbers.
        """
        values = np.zeros((len(index), len(PER_EXAMPLE)))
        for row, (drawn, true, number) in enumerate(zip(pictures, truths, index)):
            if number < 0:
                continue
            if len(drawn) != len(true) or not len(true):
                raise DataError(f"example {int(number)}: {len(drawn)} pictures and {len(true)} true ones")
            values[row] = np.mean([(psnr(one, other), ssim(one, other)) for one, other in zip(drawn, true)], 0)
        self._add(np.asarray(index), values=values)

    def _empty(self) -> dict[str, np.ndarray]:
        return {"values": np.zeros((0, len(PER_EXAMPLE)))}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        values = self.to_arrays()["values"]
        keep = np.ones(len(values), bool)
        return {
            f"pictures/{name}": weighted_mean(values[:, column], keep, weights)
            for column, name in enumerate(PER_EXAMPLE)
        }

    def counts(self) -> dict[str, float]:
        return {"pictures/count": float(len(self))}


def psnr(picture: UInt8[np.ndarray, "h w 3"], truth: UInt8[np.ndarray, "h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB, at most `MOST_PSNR`. Raises DataError: pictures of different sizes."""
    _check(picture, truth)
    error = np.square(picture.astype(np.float64) - truth).mean()
    return MOST_PSNR if error == 0 else min(MOST_PSNR, float(10 * np.log10(255**2 / error)))


def ssim(picture: UInt8[np.ndarray, "h w 3"], truth: UInt8[np.ndarray, "h w 3"]) -> float:
    """Structural similarity of the luma of two pictures, 1 if they are equal.

    The window is a Gaussian with a standard deviation of 1.5 pixels, 11 pixels wide; edges are mirrored.

    Raises:
      DataError: pictures of different sizes.
    """
    _check(picture, truth)
    x, y = (one @ np.array(_LUMA) for one in (picture, truth))
    mean = lambda values: ndimage.gaussian_filter(values, _SIGMA, radius=_RADIUS)  # noqa: E731
    mx, my = mean(x), mean(y)
    vx, vy, covariance = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mx * my + first) * (2 * covariance + second) / ((mx**2 + my**2 + first) * (vx + vy + second))
    return float(ratio.mean())


def _check(picture: np.ndarray, truth: np.ndarray) -> None:
    if picture.shape != truth.shape:
        raise DataError(f"pictures of {picture.shape} and {truth.shape}: expected the same size")
