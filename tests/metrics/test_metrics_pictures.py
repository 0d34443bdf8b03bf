"""Peak signal-to-noise ratio and structural similarity against values worked out by hand."""

import numpy as np
import pytest

from rahf.core.errors import DataError
from rahf.metrics import pictures
from rahf.metrics.bootstrap import bootstrap_intervals


def flat(value, size=(24, 30)):
    return np.full((*size, 3), value, np.uint8)


def test_psnr_of_known_errors():
    assert pictures.psnr(flat(100), flat(105)) == pytest.approx(20 * np.log10(255 / 5))
    assert pictures.psnr(flat(0), flat(255)) == pytest.approx(0) == pictures.psnr(flat(255), flat(0))
    assert pictures.psnr(flat(7), flat(7)) == pictures.MOST_PSNR


def test_ssim_of_flat_pictures_and_of_a_negative():
    first = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + first) / (100**2 + 150**2 + first)  # no variance: only the means compare
    assert pictures.ssim(flat(100), flat(150)) == pytest.approx(expected)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    assert pictures.ssim(noise, noise) == pytest.approx(1)
    assert pictures.ssim(255 - noise, noise) < -0.9  # the structure is turned over


def test_means_over_examples():
    metrics = pictures.PictureMetrics()
    metrics.update(
        [[flat(100), flat(110)], [flat(0)], [flat(0)]], [[flat(105)] * 2, [flat(255)], [flat(9)]], [0, 1, -1]
    )
    values = metrics.compute()
    assert values["pictures/count"] == 2
    assert values["pictures/psnr"] == pytest.approx(10 * np.log10(255 / 5))
    low, high = bootstrap_intervals(metrics)["pictures/psnr"]
    assert low == pytest.approx(0) and high == pytest.approx(20 * np.log10(255 / 5))


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="expected the same size"):
        pictures.psnr(flat(0), flat(0, (24, 31)))
    with pytest.raises(DataError, match="example 3: 1 pictures and 2 true ones"):
        pictures.PictureMetrics().update([[flat(0)]], [[flat(0)] * 2], [3])
