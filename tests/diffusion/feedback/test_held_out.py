"""When a held-out reward says that the guiding one is being gamed."""

import pytest

from rahf.core.errors import ArgumentError
from rahf.diffusion.feedback.held_out import find_hacking

RISING = [0.1, 0.2, 0.3, 0.4, 0.5]


def test_the_curves_part():
    hacking = find_hacking(RISING, [0.5, 0.6, 0.55, 0.5, 0.4])
    assert hacking.best == 1 and hacking.guiding == (0.2, 0.5) and hacking.held_out == (0.6, 0.4)
    assert "since evaluation 1 the guiding reward rose from 0.2000 to 0.5000" in str(hacking)
    assert "fell from 0.6000 to 0.4000" in str(hacking)


@pytest.mark.parametrize(
    "guiding, held_out, more",
    [
        (RISING, RISING, {}),  # both rise
        (RISING, [0.5, 0.6, 0.55, 0.5, 0.6], {}),  # the last is as high as the best
        (RISING, [0.1, 0.2, 0.3, 0.4, 0.3], {}),  # one evaluation only
        (RISING[::-1], [0.6, 0.5, 0.4, 0.3, 0.2], {}),  # both fall
        ([0.1, 0.2, 0.3, 0.15, 0.3], [0.5, 0.6, 0.55, 0.5, 0.4], {}),  # the guiding one fell in between
        (RISING, [0.5, 0.6, 0.55, 0.5, 0.4], dict(tolerance=0.15)),  # within the tolerance
        (RISING, [0.5, 0.6, 0.55, 0.5, 0.4], dict(patience=4)),
        ([], [], {}),
        ([0.1], [0.2], {}),
    ],
)
def test_no_hacking(guiding, held_out, more):
    assert find_hacking(guiding, held_out, **more) is None


def test_one_bad_evaluation_is_enough_without_patience():
    assert find_hacking(RISING, [0.1, 0.2, 0.3, 0.4, 0.3], patience=1).best == 3
    assert find_hacking(RISING, [0.1, 0.2, 0.3, 0.4, 0.3], patience=1, tolerance=0.09) is not None


def test_bad_curves():
    for arguments, message in (
        (([1.0], [1.0, 2.0]), "found 1 and 2"),
        (([1.0], [float("nan")]), "NaN"),
        (([1.0], [1.0], 0), "patience"),
        (([1.0], [1.0], 1, -1.0), "tolerance"),
    ):
        with pytest.raises(ArgumentError, match=message):
            find_hacking(*arguments)
