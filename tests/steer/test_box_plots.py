"""Box plots: the five numbers, and where they are drawn."""

import numpy as np

from rahf.steer import box_plots
from rahf.steer.box_plots import Box


def test_five_numbers():
    """By hand: the quartiles of 1 to 9 are 3, 5, 7, so that whiskers reach to -3 and 13."""
    box = box_plots.box([5, 1, 2, 3, 4, 6, 7, 8, 9, 13, -4, np.nan, 30])
    assert box == Box(-4.0, 2.75, 5.5, 8.25, 13.0, (30.0,), 12)
    assert box_plots.box([2.0]) == Box(2.0, 2.0, 2.0, 2.0, 2.0, (), 1) and box_plots.box([np.nan]) is None


def test_higher_values_are_drawn_higher():
    picture = box_plots.draw("score", {"all": {"a": [0.1, 0.2], "b": [0.8, 0.9]}, "none": {}}, ["a", "b"])
    rows = [
        np.flatnonzero((picture[60:] == np.array(colour)).all(-1).sum(1)) for colour in ((0, 114, 178), (230, 159, 0))
    ]
    assert rows[0].min() > rows[1].max() + 50
    assert box_plots.draw("constant", {"all": {"a": [0.5, 0.5]}}, ["a"]).dtype == np.uint8


def test_ticks_enclose_all_values():
    for low, high in ((0.213, 0.287), (-3.0, 41.0), (0.5, 0.5), (0.0, 1.0)):
        ticks = box_plots._ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
