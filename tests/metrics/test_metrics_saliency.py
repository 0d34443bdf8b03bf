"""Saliency metrics against slow references, hand-computed values and identities."""

import numpy as np
import pytest
from scipy import optimize

from rahf.core.errors import ArgumentError, DataError, NotFinite
from rahf.metrics import saliency
from rahf.metrics.bootstrap import bootstrap_intervals
from rahf.metrics.saliency import PER_PICTURE, Fixated, SaliencyMetrics


def a_picture(seed, shape=(6, 9), fixations=5):
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=shape), 1)  # rounded: some pixels tie
    logs = logits - np.log(np.exp(logits).sum())
    points = rng.random((fixations, 2))
    return logs, Fixated(points, rng.random(shape) ** 3), rng.random((7, 2))


def slow_auc(positives, negatives):
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    return sum(wins) / len(wins)


def slow_metrics(logs, truth, negatives, prior):
    """One loop per definition; independent of the arrays of the implementation."""
    height, width = logs.shape
    pixel = lambda point: (min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1))
    cells = [pixel(point) for point in truth.points]
    every = [(row, column) for row in range(height) for column in range(width)]
    at = lambda places: [logs[place] for place in places]
    p = {place: np.exp(logs[place]) for place in every}
    g = {place: truth.density[place] / truth.density.sum() for place in every}
    mean_p, mean_g = (sum(map_.values()) / len(every) for map_ in (p, g))
    sd = lambda map_, mean: (sum((map_[place] - mean) ** 2 for place in every) / len(every)) ** 0.5
    covariance = sum((p[x] - mean_p) * (g[x] - mean_g) for x in every) / len(every)
    return {
        "auc_judd": slow_auc(at(cells), at([place for place in every if place not in cells])),
        "auc_judd_all": slow_auc(at(cells), at(every)),
        "sauc": slow_auc(at(cells), at([pixel(point) for point in negatives])),
        "nss": sum((p[place] - mean_p) / sd(p, mean_p) for place in cells) / len(cells),
        "cc": covariance / sd(p, mean_p) / sd(g, mean_g),
        "kld": sum(g[place] * np.log(g[place] / p[place]) for place in every if g[place] > 0),
        "sim": sum(min(p[place], g[place]) for place in every),
        "information_gain": sum((logs[place] - prior[place]) / np.log(2) for place in cells) / len(cells),
    }


@pytest.mark.parametrize("seed", range(3))
def test_slow_references(seed):
    logs, truth, negatives = a_picture(seed)
    prior = saliency.gaussian_density(np.array([[0.5, 0.5]]), logs.shape, 0.3, 0.1)
    values = dict(zip(PER_PICTURE, saliency.picture_metrics(logs, truth, negatives, prior)))
    for name, expected in slow_metrics(logs, truth, negatives, prior).items():
        assert values[name] == pytest.approx(expected, abs=1e-9), name
    assert np.isnan(values["emd"])


def test_auc_borji_by_hand():
    """Two pixels, 1 and 0; the fixation is on the 1. A draw of 1: ROC (0,0)-(1,1) for t = 1..0.1, area 1/2; of 0: 1."""
    p = np.array([[0.75, 0.25]])
    draws = np.random.default_rng(3).integers(0, 2, (100, 1)).ravel()
    expected = np.where(draws == 0, 0.5, 1.0).mean()
    assert saliency.auc_borji(p, (np.array([0]), np.array([0])), np.random.default_rng(3)) == pytest.approx(expected)
    assert saliency.auc_borji(np.full((2, 2), 0.25), (np.array([0]), np.array([0])), np.random.default_rng(0)) == 0.5


def test_emd_by_hand_and_against_assignment():
    """All mass one cell to the right of 3x4: distance 1 of a diagonal of 5."""
    one, other = np.zeros((3, 4)), np.zeros((3, 4))
    one[1, 1] = other[1, 2] = 1
    assert saliency.earth_movers_distance(one, other, cells=4) == pytest.approx(1 / 5)
    assert saliency.earth_movers_distance(one, one, cells=4) == pytest.approx(0, abs=1e-12)
    # Equal masses: the transport problem is an assignment, which another algorithm solves.
    rng = np.random.default_rng(0)
    a, b = (np.argwhere(np.isin(np.arange(12).reshape(3, 4), rng.choice(12, 5, False))) for _ in range(2))
    cost = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) / 5
    expected = cost[optimize.linear_sum_assignment(cost)].mean()
    maps = np.zeros((2, 3, 4))
    for number, cells in enumerate((a, b)):
        maps[number][tuple(cells.T)] = 0.2
    assert saliency.earth_movers_distance(*maps, cells=4) == pytest.approx(expected)


def test_the_truth_itself_and_the_uniform_density():
    logs, truth, _ = a_picture(0)
    perfect = dict(zip(PER_PICTURE, saliency.picture_metrics(logs, Fixated(truth.points, np.exp(logs)))))
    assert perfect["cc"] == pytest.approx(1) and perfect["sim"] == pytest.approx(1)
    assert perfect["kld"] == pytest.approx(0, abs=1e-9)
    flat = dict(zip(PER_PICTURE, saliency.picture_metrics(saliency.uniform(logs.shape), truth)))
    chance = [flat[name] for name in ("auc_judd", "auc_judd_all", "auc_borji", "nss", "cc", "information_gain")]
    assert chance == pytest.approx([0.5, 0.5, 0.5, 0, 0, 0])


def test_accumulators_merge_and_resample():
    pictures = [a_picture(seed) for seed in range(4)]
    pool = saliency.pool_of([truth.points for _, truth, _ in pictures])
    assert len(pool.without(1)) == 15
    prior = saliency.centre_prior(pool, 0.2)
    whole, first, second = (SaliencyMetrics(pool, prior) for _ in range(3))
    logs, truths = [logs for logs, _, _ in pictures], [truth for _, truth, _ in pictures]
    whole.update(logs, truths, range(4))
    first.update(logs[:3], truths[:3], [0, 1, -1])
    second.update(logs[1:], truths[1:], [1, 2, 3])
    merged = first.merge(second).compute()
    assert merged == pytest.approx(whole.compute(), nan_ok=True) and merged["saliency/count"] == 4
    own = saliency.picture_metrics(logs[2], truths[2], pool.without(2), prior(logs[2].shape), seed=(0, 2))
    np.testing.assert_allclose(whole.to_arrays()["values"][2], own)
    low, high = bootstrap_intervals(whole, resamples=50)["saliency/sauc"]
    assert low <= merged["saliency/sauc"] <= high


def test_missing_fixations_or_density_leave_their_metrics_out():
    logs, truth, negatives = a_picture(0)
    values = dict(zip(PER_PICTURE, saliency.picture_metrics(logs, Fixated(None, truth.density), negatives)))
    assert np.isnan(values["nss"]) and np.isfinite(values["cc"])
    values = dict(zip(PER_PICTURE, saliency.picture_metrics(logs, Fixated(truth.points, None))))
    assert np.isnan(values["cc"]) and np.isnan(values["sauc"]) and np.isfinite(values["nss"])


def test_one_viewer_against_the_rest():
    points = np.array([[0.2, 0.5], [0.2, 0.5], [0.8, 0.5]])
    values = saliency.viewers_against_the_rest(points, np.array([0, 1, 2]), (4, 10), 0.05)
    # Viewers 0 and 1 are predicted by each other, viewer 2 by nobody: where he looked the density is lowest.
    rows = []
    for own, others in ((points[:1], points[1:]), (points[1:2], points[[0, 2]]), (points[2:], points[:2])):
        logs = np.logaddexp(
            np.log(0.9) + saliency.gaussian_density(others, (4, 10), 0.05), np.log(0.1) + saliency.uniform((4, 10))
        )
        rows.append(saliency.picture_metrics(logs - np.log(np.exp(logs).sum()), Fixated(own, None)))
    np.testing.assert_allclose(values, np.mean(rows, 0))
    assert np.isnan(saliency.viewers_against_the_rest(points, np.zeros(3), (4, 10), 0.05)).all()


def test_centre_prior_is_a_density_of_any_shape():
    pool = saliency.pool_of([np.array([[0.25, 0.5]]), None, np.array([[0.25, 0.5]])])
    for shape in ((4, 8), (6, 6)):
        density = np.exp(saliency.centre_prior(pool, 0.1)(shape))
        assert density.sum() == pytest.approx(1) and density.argmax() % shape[1] in (shape[1] // 4 - 1, shape[1] // 4)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"logs": np.zeros((6, 9))}, NotFinite, "sum of 54"),
        ({"logs": np.full((6, 9), np.nan)}, NotFinite, "example 3"),
        ({"points": np.array([[1.2, 0.5]])}, DataError, "shares"),
        ({"density": np.zeros((6, 9))}, DataError, "0 everywhere"),
        ({"density": np.ones((5, 9))}, DataError, "resize"),
    ],
)
def test_bad_maps_are_named(change, error, match):
    logs, truth, _ = a_picture(0)
    truth = Fixated(change.get("points", truth.points), change.get("density", truth.density))
    with pytest.raises(error, match=match):
        SaliencyMetrics().update([change.get("logs", logs)], [truth], [3])


def test_bad_densities_are_named():
    with pytest.raises(ArgumentError, match="expected points"):
        saliency.gaussian_density(np.zeros((0, 2)), (3, 3), 0.1)
