"""Regions of a heatmap."""

import numpy as np

from rahf.images import regions
from rahf.images.regions import RegionOptions


def test_components_by_hand():
    values = np.zeros((4, 6), np.float32)
    values[0, 0] = values[1, 1] = 0.5  # touch at a corner
    values[0:2, 4] = 1.0, 0.75
    values[3, 3] = 0.4
    first, second = regions.components(values)
    assert (first.peak, first.mass, first.area) == (1.0, 1.75, 2)
    assert (second.peak, second.mass, second.area) == (0.5, 1.0, 2)
    np.testing.assert_array_equal(second.mask, np.eye(2, dtype=bool))
    assert second.box((8, 12), values.shape) == (0, 0, 4, 4)
    assert first.box((3, 5), values.shape) == (3, 0, 5, 2)  # every pixel that is touched
    assert len(regions.components(values, RegionOptions(threshold=0.3))) == 3
    assert [one.peak for one in regions.components(values, RegionOptions(0.3, seeds=0.6))] == [1.0]
    assert len(regions.components(values, RegionOptions(0.3, min_area=2 / 24))) == 2
    assert regions.components(np.zeros((2, 2))) == []
