"""Heatmap metrics against straightforward loops, hand-computed values and identities."""

import math
import operator

import numpy as np
import pytest

from rahf.core.batch import HEATMAPS
from rahf.core.errors import DataError
from rahf.images.resize import resize
from rahf.metrics.heatmaps import MIT_EPS, PER_MAP, HeatmapMetrics, HeatmapOptions, auc_judd, map_metrics


def marks(rng, shape, share=0.2):
    levels = np.array([0, 85, 170, 255], np.uint8)
    return rng.choice(levels, shape, p=[1 - share, share / 2, share / 4, share / 4])


def maps(n=4, side=12, seed=0):
    rng = np.random.default_rng(seed)
    truth = marks(rng, (n, side, side))
    noise = rng.random(truth.shape)
    # Rounded, so that ties occur.
    return np.round(0.4 * truth / 255 + 0.6 * noise, 1).astype(np.float32), truth


def slow_auc(p, g):
    """Thresholds at every marked pixel's value; between neighbouring points the curve is a straight line."""
    pairs = [(float(v), bool(m)) for v, m in zip(p.ravel(), g.ravel() > 0)]
    n = sum(m for _, m in pairs)
    curve = [(0.0, 0.0)]
    for threshold in sorted({v for v, m in pairs if m}, reverse=True):
        # Strictly above, then at least: a tie of marked and unmarked pixels is a slanted step.
        for reaches in (operator.gt, operator.ge):
            hit = sum(m and reaches(v, threshold) for v, m in pairs) / n
            false = sum(not m and reaches(v, threshold) for v, m in pairs) / (len(pairs) - n)
            curve.append((false, hit))
    curve.append((1.0, 1.0))
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(curve, curve[1:]))


def slow(p, g, eps=1e-8, ddof=1, minmax=False):
    """All metrics of one map in plain Python."""
    p, g = p.astype(float).ravel().tolist(), (g / 255.0).ravel().tolist()
    n = len(p)
    mean_p, mean_g = sum(p) / n, sum(g) / n
    var_p, var_g = sum((v - mean_p) ** 2 for v in p) / n, sum((v - mean_g) ** 2 for v in g) / n
    cov = sum((a - mean_p) * (b - mean_g) for a, b in zip(p, g)) / n
    z = [(v - mean_p) / math.sqrt(var_p * n / (n - ddof)) for v in p]

    def share(values):
        total = sum(values) + eps
        return [v / total for v in values]

    def stretch(values):
        low, high = min(values), max(values)
        return [(v - low) / (high - low) for v in values]

    sim_p, sim_g = (stretch(p), stretch(g)) if minmax else (p, g)
    majority = [v for v, b in zip(z, g) if b >= 0.5]
    return {
        "mse": sum((a - b) ** 2 for a, b in zip(p, g)) / n,
        "cc": cov / (math.sqrt(var_p * var_g) + eps),
        "kld": sum(b * math.log(b / (a + eps) + eps) for a, b in zip(share(p), share(g))),
        "sim": sum(min(a, b) for a, b in zip(share(sim_p), share(sim_g))),
        "nss": sum(v for v, b in zip(z, g) if b > 0) / sum(b > 0 for b in g),
        "nss_weighted": sum(v * b for v, b in zip(z, g)) / sum(g),
        "nss_majority": sum(majority) / len(majority),
        "auc_judd": slow_auc(np.array(p), np.array(g)),
    }


@pytest.mark.parametrize(
    "options, slow_options",
    [
        (HeatmapOptions(), {}),
        (HeatmapOptions(eps=MIT_EPS), {"eps": MIT_EPS}),
        (HeatmapOptions(sim="minmax"), {"minmax": True}),
        (HeatmapOptions(nss_ddof=0), {"ddof": 0}),
    ],
)
def test_agrees_with_the_slow_reference(options, slow_options):
    predictions, truths = maps()
    fast = map_metrics(predictions, truths, options)
    for row, p, g in zip(fast, predictions, truths):
        expected = slow(p, g, **slow_options)
        np.testing.assert_allclose(row, [expected[name] for name in PER_MAP], rtol=1e-10, atol=1e-12)


def test_hand_computed():
    p = np.array([[0.1, 0.2], [0.3, 0.4]])
    g = np.array([[0, 0], [0, 255]], np.uint8)
    row = dict(zip(PER_MAP, map_metrics([p], [g], HeatmapOptions(nss_ddof=0))[0]))
    assert row["mse"] == pytest.approx((0.01 + 0.04 + 0.09 + 0.36) / 4)
    assert row["cc"] == pytest.approx(0.0375 / math.sqrt(0.0125 * 0.1875))
    assert row["kld"] == pytest.approx(math.log(1 / 0.4), abs=1e-6)
    assert row["sim"] == pytest.approx(0.4)
    for name in ("nss", "nss_weighted", "nss_majority"):
        assert row[name] == pytest.approx(0.15 / math.sqrt(0.0125))
    assert row["auc_judd"] == 1
    assert map_metrics([p], [g])[0][PER_MAP.index("nss")] == pytest.approx(0.15 / math.sqrt(0.05 / 3))


def test_the_three_readings_of_nss_differ():
    # One pixel marked by one annotator, one by all three: z-scores of -0.5, +0.5 there.
    p = np.array([[0.25, 0.75], [0.0, 1.0]])
    g = np.array([[85, 255], [0, 0]], np.uint8)
    row = dict(zip(PER_MAP, map_metrics([p], [g], HeatmapOptions(nss_ddof=0))[0]))
    std = math.sqrt((0.0625 * 2 + 0.25 * 2) / 4)
    assert row["nss"] == pytest.approx(0)
    assert row["nss_weighted"] == pytest.approx((-0.25 / 3 + 0.25) / (4 / 3) / std)
    assert row["nss_majority"] == pytest.approx(0.25 / std)


def test_weighted_nss_is_cc_times_relative_spread():
    predictions, truths = maps(seed=3)
    rows = map_metrics(predictions, truths, HeatmapOptions(nss_ddof=0))
    for row, g in zip(rows, truths):
        expected = row[PER_MAP.index("cc")] * g.std() / g.mean()
        assert row[PER_MAP.index("nss_weighted")] == pytest.approx(expected, rel=1e-6)


def test_auc_of_ties_and_extremes():
    assert auc_judd(np.array([2.0]), np.array([1.0, 2.0, 3.0])) == 0.5  # one below, one tied, one above
    assert auc_judd(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auc_judd(np.array([0.0]), np.array([1.0])) == 0
    assert np.isnan(auc_judd(np.array([1.0]), np.array([])))
    assert np.isnan(auc_judd(np.array([]), np.array([1.0])))


def test_auc_ignores_any_monotone_change():
    predictions, truths = maps(seed=5)
    column = PER_MAP.index("auc_judd")
    before = map_metrics(predictions, truths)[:, column]
    np.testing.assert_array_equal(before, map_metrics(predictions**3, truths)[:, column])


def test_perfect_prediction():
    _, truths = maps()
    rows = map_metrics(truths / 255.0, truths)
    named = dict(zip(PER_MAP, rows.T))
    np.testing.assert_allclose(named["mse"], 0, atol=1e-15)
    np.testing.assert_allclose(named["cc"], 1, atol=1e-6)
    np.testing.assert_allclose(named["sim"], 1, atol=1e-6)
    np.testing.assert_allclose(named["kld"], 0, atol=1e-4)
    assert (named["auc_judd"] == 1).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("side", [12, 5])
def test_constant_prediction_says_nothing(value, side):
    _, truths = maps()
    rows = map_metrics(np.full((4, side, side), value, np.float32), truths)
    named = dict(zip(PER_MAP, rows.T))
    for name in ("cc", "nss", "nss_weighted", "nss_majority"):
        assert (named[name] == 0).all(), name
    assert (named["auc_judd"] == 0.5).all()
    assert np.isfinite(named["kld"]).all() and np.isfinite(named["sim"]).all()  # also where the prediction is all 0


def test_empty_full_and_single_vote_truth():
    rng = np.random.default_rng(0)
    p = rng.random((8, 8)).astype(np.float32)
    empty = dict(zip(PER_MAP, map_metrics([p], [np.zeros((8, 8), np.uint8)])[0]))
    assert empty.pop("mse") == pytest.approx(np.square(p.astype(float)).mean())
    assert all(np.isnan(v) for v in empty.values())
    full = dict(zip(PER_MAP, map_metrics([p], [np.full((8, 8), 255, np.uint8)])[0]))
    assert np.isnan(full["auc_judd"]) and full["cc"] == pytest.approx(0, abs=1e-6)
    single = np.zeros((8, 8), np.uint8)
    single[2, 3] = 85
    row = dict(zip(PER_MAP, map_metrics([p], [single])[0]))
    assert np.isnan(row.pop("nss_majority")) and all(np.isfinite(v) for v in row.values())


def test_truth_may_be_float_and_prediction_half():
    predictions, truths = maps()
    expected = map_metrics(predictions, truths)
    np.testing.assert_allclose(map_metrics(predictions, truths / 255.0), expected, rtol=1e-12)
    half = map_metrics(predictions.astype(np.float16), truths)
    np.testing.assert_allclose(half, expected, rtol=2e-2, atol=2e-3)


def test_threads_change_nothing():
    predictions, truths = maps(n=9)
    one, three = (map_metrics(predictions, truths, threads=t) for t in (1, 3))
    np.testing.assert_array_equal(one, three)


def filled(seed=0, n=10, side=9):
    rng = np.random.default_rng(seed)
    truth = marks(rng, (n, side, side, 2))
    truth[:3, :, :, 0] = 0
    prediction = rng.random(truth.shape).astype(np.float32)
    return prediction, truth, rng.random((n, 2)) < 0.8, np.arange(n)


def test_accumulator_splits_empty_from_marked():
    prediction, truth, mask, index = filled()
    mask[0, 0], mask[1, 0] = True, False
    metrics = HeatmapMetrics()
    metrics.update(prediction, truth, mask, index)
    result = metrics.compute()
    assert len(result) == 2 * (len(PER_MAP) + 1 + 3)
    for kind, name in enumerate(HEATMAPS):
        each = [map_metrics([prediction[i, :, :, kind]], [truth[i, :, :, kind]])[0] for i in index[mask[:, kind]]]
        blank = np.array([not truth[i, :, :, kind].any() for i in index[mask[:, kind]]])
        each = np.array(each)
        assert result[f"heatmaps/{name}/count"] == len(each)
        assert result[f"heatmaps/{name}/count_empty"] == blank.sum()
        assert result[f"heatmaps/{name}/mse"] == pytest.approx(each[:, 0].mean())
        if blank.any():
            assert result[f"heatmaps/{name}/mse_empty"] == pytest.approx(each[blank, 0].mean())
        else:
            assert np.isnan(result[f"heatmaps/{name}/mse_empty"])
        for column, metric in list(enumerate(PER_MAP))[1:]:
            expected = np.nanmean(each[~blank, column])
            assert result[f"heatmaps/{name}/{metric}"] == pytest.approx(expected), metric
    assert result["heatmaps/implausibility/count_empty"] > 0


def test_masked_maps_and_filling_never_matter():
    prediction, truth, mask, index = filled()
    clean, dirty = HeatmapMetrics(), HeatmapMetrics()
    clean.update(prediction, truth, mask, index)
    spoilt = np.where(mask[:, None, None], prediction, np.nan)
    dirty.update(spoilt, np.where(mask[:, None, None], truth, 255).astype(np.uint8), mask, index)
    dirty.update(spoilt * np.nan, truth, np.ones_like(mask), np.full(len(index), -1))
    assert str(clean.compute()) == str(dirty.compute())  # str: NaN equals NaN


def test_lower_resolution_is_resized_to_the_truth():
    prediction, truth, mask, index = filled()
    small, large = HeatmapMetrics(), HeatmapMetrics()
    small.update(prediction[:, ::2, ::2], truth, mask, index)
    enlarged = [[resize(p[::2, ::2, k], (9, 9)) for k in range(2)] for p in prediction]
    large.update(np.moveaxis(np.array(enlarged), 1, -1), truth, mask, index)
    assert str(small.compute()) == str(large.compute())


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_diverged_prediction_is_named(value):
    prediction, truth, mask, index = filled()
    mask[:] = True
    prediction[4, 3, 3, 1] = value
    with pytest.raises(ValueError, match="example 4: misalignment heatmap: .*expected finite values"):
        HeatmapMetrics().update(prediction, truth, mask, index)


def test_other_options_do_not_merge():
    with pytest.raises(ValueError, match="cannot merge"):
        HeatmapMetrics().merge(HeatmapMetrics(HeatmapOptions(sim="minmax")))


@pytest.mark.parametrize("truth, words", [
    (np.array([[0.0, np.nan]]), "b: a true map with values from nan to nan, expected .* masked, not NaN"),
    (np.array([[0.0, 255.0]], np.float32), "b: a true map with values from 0 to 255, expected .* divide by 255"),
    (np.array([[-0.5, 0.5]]), "b: a true map with values from -0.5 to 0.5"),
    (np.array([[0, np.inf]]), "b: a true map with values from 0 to inf"),
    (np.array([[0, 255]], np.int32), "b: a true map of type int32; expected uint8"),
    (np.array([[0, 65535]], np.uint16), "b: a true map of type uint16"),
])  # fmt: skip
def test_true_maps_of_other_ranges_are_refused(truth, words):
    prediction = np.array([[0.2, 0.7]])
    good = np.array([[0, 255]], np.uint8)
    with pytest.raises(DataError, match=words):
        map_metrics([prediction, prediction], [good, truth], names=["a", "b"])
    with pytest.raises(DataError, match="implausibility heatmap: a true map"):
        metrics = HeatmapMetrics()
        pair = np.stack([truth, good.astype(truth.dtype)], -1)[None]
        metrics.update(np.stack([prediction] * 2, -1)[None], pair, np.array([[True, False]]), np.array([4]))
    bools = map_metrics([prediction], [good > 0])
    np.testing.assert_allclose(bools, map_metrics([prediction], [good]))
    with pytest.raises(DataError, match="map 0: values up to 200, expected"):
        map_metrics([np.array([[0.0, 200.0]])], [good])
