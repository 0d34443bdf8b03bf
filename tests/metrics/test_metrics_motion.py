"""Measures of motion against textures and loops; the Fréchet distance against a root of a general matrix."""

import numpy as np
import pytest
from scipy import linalg

from rahf.core.errors import ArgumentError, DataError, NotFinite
from rahf.metrics import motion
from rahf.metrics.bootstrap import bootstrap_intervals
from rahf.metrics.frechet import frechet_distance

T = 24


def volume(seed, terms=4, still=True):
    """Random terms; a pixel that stands still."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(terms, 3, 5, 2)) + 1j * rng.normal(size=(terms, 3, 5, 2))
    values[:, 0, 0] = 0 if still else values[:, 0, 0]
    return values.astype(np.complex64)


def texture(one):
    return np.fft.irfft(one, n=T, axis=0)


def test_place_and_correlation_are_those_of_textures():
    drawn, true = volume(0, still=False), volume(1)
    deviation = [np.sqrt(np.square(t - t.mean(0)).sum(-1).mean(0)) for t in (texture(drawn), texture(true))]
    assert motion.place(drawn, true) == pytest.approx(np.corrcoef(*(d.ravel() for d in deviation))[0, 1], rel=1e-5)
    by_pixel = []
    for row in range(3):
        for column in range(5):
            paths = [t[:, row, column] - t[:, row, column].mean(0) for t in (texture(drawn), texture(true))]
            if deviation[1][row, column] >= 0.1 * deviation[1].max():
                by_pixel.append((paths[0] * paths[1]).sum() / np.sqrt(np.prod([np.square(p).sum() for p in paths])))
    assert len(by_pixel) == 14
    assert motion.correlation(drawn, true) == pytest.approx(np.mean(by_pixel), rel=1e-5)
    assert motion.correlation(true, true) == pytest.approx(1, rel=1e-6)
    assert motion.correlation(-true, true) == pytest.approx(-1, rel=1e-6)


def test_directions_are_those_of_the_ellipses():
    """Against the largest eigenvector of each pixel's covariance over one period of one term."""
    drawn, true = volume(2), volume(3)
    phases = np.exp(2j * np.pi * np.arange(360) / 360)
    cosines, weights = [], []
    for term in range(1, 4):
        for place in np.ndindex(3, 5):
            axes = []
            for one in (drawn, true):
                path = (phases[:, None] * one[(term, *place)]).real
                values, vectors = np.linalg.eigh(path.T @ path / 180)
                axes.append((vectors[:, 1], values[1] - values[0]))
            if axes[0][1] > 0:
                angle = np.arccos(np.clip(abs(axes[0][0] @ axes[1][0]), 0, 1))
                cosines.append(np.cos(2 * angle))
                weights.append(axes[1][1])
    assert motion.direction(drawn, true) == pytest.approx(np.average(cosines, weights=weights), rel=1e-4)
    swing = np.zeros((2, 1, 1, 2), np.complex64)
    swing[1, 0, 0] = 3j, 0
    assert motion.direction(swing, swing) == 1 and motion.direction(swing[..., ::-1], swing) == -1
    circle = np.array([[[[0, 0]]], [[[1, 1j]]]])
    assert motion.direction(circle, swing) == 0 and np.isnan(motion.direction(swing, circle))


def test_power_by_frequency():
    """Twice the displacement is four times the power; a frequency that truth lacks is measured from a floor."""
    true = volume(4)
    true[3] = 0
    drawn = 2 * true
    drawn[3] = true[1]
    metrics = motion.MotionMetrics(4)
    metrics.update([drawn, drawn, np.full_like(true, np.nan)], [true, true, true], [0, 1, -1])
    values = metrics.compute()
    powers = [np.square(np.abs(one)).sum(-1).mean((1, 2)) for one in (drawn, true)]
    floor = 1e-4 * powers[1][1:].max()
    expected = [np.log10((powers[0][k] + floor) / (powers[1][k] + floor)) for k in (1, 2, 3)]
    np.testing.assert_allclose([values[f"motion/power/{k}"] for k in (1, 2, 3)], expected, rtol=1e-5)
    assert values["motion/power/1"] == pytest.approx(np.log10(4), rel=1e-3)
    assert values["motion/power"] == pytest.approx(np.mean(np.abs(expected)), rel=1e-5)
    assert values["motion/count"] == 2 and values["motion/place"] > 0.5


def test_fewer_terms_are_zeros_and_intervals_hold_the_value():
    metrics = motion.MotionMetrics(4)
    true = [volume(s) for s in range(6)]
    drawn = [one[:3] for one in true]
    metrics.update(drawn, true, range(6))
    values, intervals = metrics.compute(), bootstrap_intervals(metrics, resamples=200)
    assert values["motion/power/1"] == values["motion/power/2"] == 0 and values["motion/power/3"] < -2
    low, high = intervals["motion/correlation"]
    assert low < values["motion/correlation"] < high < 1
    assert all(np.isnan(value) for value in [motion.MotionMetrics(4).compute()["motion/power"]])


def test_what_is_no_pair_of_volumes():
    metrics = motion.MotionMetrics(4)
    with pytest.raises(DataError, match=r"grids \(3, 4\) and \(3, 5\)"):
        metrics.update([volume(0)[:, :, :4]], [volume(0)], [0])
    with pytest.raises(DataError, match="of 5 terms, expected 4 or fewer"):
        metrics.update([volume(0, terms=5)], [volume(0)], [0])
    with pytest.raises(NotFinite, match="example 7"):
        metrics.update([volume(0) * np.nan], [volume(0)], [7])


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (4, 6, 9), (5, 5, 1)])
def test_frechet_against_the_root_of_the_product(n, m, d):
    """Also with fewer examples than features, where the reference needs a little noise on the diagonal."""
    rng = np.random.default_rng(n)
    one, other = rng.normal(size=(n, d)), 1.5 * rng.normal(size=(m, d)) + 0.7
    first, second = (np.cov(x, rowvar=False).reshape(d, d) for x in (one, other))
    near = 1e-9 * np.eye(d)
    root = linalg.sqrtm((first + near) @ (second + near)).real
    reference = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(reference, rel=1e-4)
    assert frechet_distance(one, one) < 1e-6 and frechet_distance(other, one) == pytest.approx(
        frechet_distance(one, other)
    )


def test_frechet_of_what_is_no_set():
    for one, other, message in (
        (np.zeros((1, 3)), np.zeros((4, 3)), r"\[1, 3\] and \[4, 3\]"),
        (np.zeros((3, 2)), np.zeros((4, 3)), r"\[3, 2\] and \[4, 3\]"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "not finite"),
    ):
        with pytest.raises(ArgumentError, match=message):
            frechet_distance(one, other)
