"""Two systems on the same examples."""

import numpy as np
import pytest

from rahf.metrics import bootstrap_intervals
from rahf.metrics.paired import PairedValues


def test_means_differences_and_wins():
    """By hand; an example of which one value is missing does not count in that column."""
    pairs = PairedValues(("a", "b"))
    pairs.add(np.array([[1.0, 0.0], [2.0, np.nan]]), np.array([[2.0, 0.0], [2.0, 5.0]]))
    pairs.add(np.array([[4.0, 1.0]]), np.array([[1.0, 0.5]]))
    values = pairs.compute()
    assert values["count"] == 3
    assert [values[f"a/{name}"] for name in ("before", "after", "difference")] == pytest.approx([7 / 3, 5 / 3, -2 / 3])
    assert values["a/gained"] == pytest.approx(1 / 3) and values["a/wins"] == pytest.approx(0.5)
    assert [values[f"b/{name}"] for name in ("before", "after", "difference", "gained", "wins")] == [
        0.5, 0.25, -0.25, 0, 0.25
    ]  # fmt: skip
    low, high = bootstrap_intervals(pairs, resamples=200)["a/difference"]
    assert -3 <= low < -2 / 3 < high <= 1
