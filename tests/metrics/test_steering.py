"""Agreement with a target map: by hand, and undefined where it is."""

import numpy as np
import pytest

from rahf.core.errors import DataError
from rahf.metrics.bootstrap import paired_differences
from rahf.metrics.steering import AGREEMENT, STEERING, SteeringMetrics, agreement


def test_agreement_by_hand():
    """Two of four pixels are wanted; the prediction has 3/4 of its mass there."""
    p = np.array([[0.5, 0.25], [0.125, 0.125]])
    target = np.array([[1.0, 1.0], [0.0, 0.0]])
    values = dict(zip(AGREEMENT, agreement(np.log(p), target, np.array([[False, False], [True, False]]))))
    deviation = np.sqrt(np.mean((p - 0.25) ** 2))
    assert values["cc"] == pytest.approx((0.25 * 0.25 + 0 + 2 * 0.125 * 0.25) / 4 / (0.25 * deviation), rel=1e-5)
    assert values["kld"] == pytest.approx(0.5 * np.log(1.0) + 0.5 * np.log(2.0), abs=1e-5)
    assert values["sim"] == pytest.approx(0.75) and values["avoided"] == pytest.approx(0.125)
    assert values["nss"] == pytest.approx((0.5 * 0.25 + 0.5 * 0.0) / deviation)


def test_what_is_undefined_or_refused():
    flat = np.full((2, 2), np.log(0.25))
    values = dict(zip(AGREEMENT, agreement(flat, np.eye(2))))
    assert values["nss"] == 0 and np.isnan(values["avoided"])
    assert np.isnan(agreement(flat, np.eye(2), np.zeros((2, 2), bool))[-1])  # no region is none
    with pytest.raises(DataError, match="regions to be avoided have shape"):
        agreement(flat, np.eye(2), np.ones((1, 2), bool))
    with pytest.raises(DataError, match="not 0 everywhere"):
        agreement(flat, np.zeros((2, 2)))


def test_means_and_paired_differences():
    """A drawing counts once; what is undefined for some is the mean of the others."""
    first, second = SteeringMetrics(), SteeringMetrics()
    rows = np.tile([0.5, 1.0, 0.5, 2.0, np.nan, 0.7], (3, 1))
    second.update(rows, range(3))
    rows = rows + [0.25, -0.5, 0.1, 1.0, 0.0, 0.0]
    rows[1, 0] = np.nan
    first.update(rows, range(3))
    first.update(rows[:1] + 9, [0])
    assert first.compute()["cc"] == pytest.approx(0.75) and first.compute()["drawings"] == 3
    differences = paired_differences(first, second, resamples=20)
    assert differences["nss"][:3] == pytest.approx((1.0, 1.0, 1.0)) and set(differences) == set(STEERING)
