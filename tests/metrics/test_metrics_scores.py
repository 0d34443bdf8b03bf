"""PLCC and SRCC against hand-computed values, SciPy and plain loops."""

import numpy as np
import pytest
import scipy.stats

from rahf.core.batch import SCORES
from rahf.metrics.scores import ScoreMetrics, average_ranks, plcc, srcc


def rated(rng, shape):
    """Means of three raters on five steps: 13 levels, many ties."""
    return rng.integers(0, 13, shape) / 12


def filled(n=60, seed=0, keep=0.8):
    rng = np.random.default_rng(seed)
    truth = rated(rng, (n, 4))
    prediction = np.round(0.5 * truth + 0.5 * rng.random((n, 4)), 2)
    return prediction, truth, rng.random((n, 4)) < keep, np.arange(n)


def test_hand_computed():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert plcc(x, y)[0] == pytest.approx(0.8)
    assert srcc(x, y)[0] == pytest.approx(0.8)
    # Monotone but not linear: ranks agree fully. Pearson: cov 17.5, variances 5 and 84.
    assert srcc(x, x**2)[0] == pytest.approx(1)
    assert plcc(x, x**2)[0] == pytest.approx(25 / np.sqrt(5 * 129))
    # Ties get average ranks: x ranks (1.5, 1.5, 3), y ranks (1, 2, 3); r = 1.5 / sqrt(1.5 * 2).
    assert srcc(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0]))[0] == pytest.approx(1.5 / np.sqrt(3))


def test_agrees_with_scipy():
    prediction, truth, _, _ = filled()
    for column in range(4):
        x, y = prediction[:, column], truth[:, column]
        assert plcc(x, y)[0] == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
        assert srcc(x, y)[0] == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)


def test_weights_are_copies():
    rng = np.random.default_rng(1)
    x, y = np.round(rng.random(30), 1), rated(rng, 30)
    weights = rng.integers(0, 4, (5, 30)).astype(float)
    for row, weight in enumerate(weights):
        copies = np.repeat(np.arange(30), weight.astype(int))
        assert plcc(x, y, weights)[row] == pytest.approx(scipy.stats.pearsonr(x[copies], y[copies])[0])
        assert srcc(x, y, weights)[row] == pytest.approx(scipy.stats.spearmanr(x[copies], y[copies])[0])
        ranks = average_ranks(x, weights)[row][copies]
        np.testing.assert_allclose(ranks, scipy.stats.rankdata(x[copies]))


def test_far_from_zero_keeps_its_digits():
    rng = np.random.default_rng(2)
    x, y = rng.random(50), rng.random(50)
    assert plcc(x + 1e6, y)[0] == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-8)


def test_constant_input():
    varied, constant = np.array([0.1, 0.2, 0.4]), np.full(3, 0.1)
    for correlation in (plcc, srcc):
        assert correlation(constant, varied)[0] == 0  # always predicting the mean says nothing
        assert np.isnan(correlation(varied, constant)[0])  # nothing to predict
        assert np.isnan(correlation(varied[:1], varied[:1])[0])
        assert np.isnan(correlation(varied[:0], varied[:0])[0])
    # A resample may draw one value only; rounding must not turn that into a correlation.
    x, y = np.array([0.1, 0.1, 0.1, 0.7]), np.array([0.3, 0.1, 0.6, 0.2])
    draws = np.random.default_rng(0).integers(1, 9, (200, 4)) * np.array([1.0, 1, 1, 0])
    assert (plcc(x, y, draws) == 0).all() and (srcc(x, y, draws) == 0).all()
    assert plcc(varied, varied, np.array([[3.0, 0, 0], [1, 1, 1]]))[1] == pytest.approx(1)
    assert np.isnan(plcc(varied, varied, np.array([[3.0, 0, 0], [1, 1, 1]]))[0])


def test_accumulator_masks_and_names():
    prediction, truth, mask, index = filled()
    metrics = ScoreMetrics()
    metrics.update(prediction, truth, mask, index)
    result = metrics.compute()
    for column, name in enumerate(SCORES):
        x, y = prediction[mask[:, column], column], truth[mask[:, column], column]
        assert result[f"scores/{name}/plcc"] == pytest.approx(scipy.stats.pearsonr(x, y)[0])
        assert result[f"scores/{name}/srcc"] == pytest.approx(scipy.stats.spearmanr(x, y)[0])
        assert result[f"scores/{name}/count"] == mask[:, column].sum() < len(mask)
    for kind in ("plcc", "srcc"):
        expected = np.mean([result[f"scores/{name}/{kind}"] for name in SCORES])
        assert result[f"scores/mean/{kind}"] == pytest.approx(expected)
    assert set(result) == {
        *(f"scores/{name}/{kind}" for name in SCORES for kind in ("plcc", "srcc", "count")),
        "scores/mean/plcc",
        "scores/mean/srcc",
    }


def test_masked_values_never_matter():
    prediction, truth, mask, index = filled()
    clean, dirty = ScoreMetrics(), ScoreMetrics()
    clean.update(prediction, truth, mask, index)
    dirty.update(np.where(mask, prediction, np.nan), np.where(mask, truth, np.nan), mask, index)
    filling = np.full((3, 4), np.inf)
    dirty.update(filling, filling, np.ones((3, 4), bool), np.full(3, -1))
    assert clean.compute() == dirty.compute()


def test_a_score_without_labels():
    prediction, truth, mask, index = filled(keep=1.1)
    mask[:, 2] = False
    metrics = ScoreMetrics()
    metrics.update(prediction, truth, mask, index)
    result = metrics.compute()
    assert np.isnan(result["scores/aesthetics/plcc"]) and result["scores/aesthetics/count"] == 0
    defined = [result[f"scores/{name}/plcc"] for name in SCORES if name != "aesthetics"]
    assert result["scores/mean/plcc"] == pytest.approx(np.mean(defined))


def test_no_example_at_all():
    result = ScoreMetrics().compute()
    assert np.isnan(result["scores/mean/plcc"]) and result["scores/overall/count"] == 0


def test_diverged_prediction_is_named():
    prediction, truth, mask, index = filled(keep=1.1)
    prediction[7, 1] = np.nan
    with pytest.raises(ValueError, match="example 7: predicted alignment is nan"):
        ScoreMetrics().update(prediction, truth, mask, index)
