"""Precision and recall of marked pixels, and differences of metrics paired by example."""

import numpy as np
import pytest

from rahf.metrics import MarkMetrics, ScoreMetrics, bootstrap_intervals, paired_differences


def one(prediction, truth, annotators=None):
    metrics = MarkMetrics()
    maps = [np.stack([np.asarray(x)] * 2, -1)[None] for x in (prediction, truth)]
    people = None if annotators is None else [(np.asarray(annotators, bool), None)]
    metrics.update(*maps, np.array([[True, False]]), np.array([0]), people)
    return metrics


def test_by_hand():
    """Marked pixels have .9 and .3, others .6 and .1: at .9 precision 1, recall 1/2; at .3 precision 2/3, recall 1."""
    metrics = one(np.array([[0.9, 0.6], [0.3, 0.1]], np.float32), np.array([[255, 0], [128, 127]], np.uint8))
    values = metrics.compute()
    assert values["marks/implausibility/average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert values["marks/implausibility/precision"] == 0.5
    assert values["marks/implausibility/recall"] == 0.5
    assert values["marks/implausibility/base_rate"] == 0.5
    assert np.isnan(values["marks/misalignment/f1"])
    curve = metrics.curve("implausibility")
    assert (curve.precision[0], curve.recall[0], curve.human) == (0.5, 1, None)
    assert metrics.curve("misalignment") is None


def test_average_precision_agrees_with_a_slow_sum_over_pixels():
    rng = np.random.default_rng(0)
    predictions = (rng.integers(0, 128, (3, 5, 7)) / 128).astype(np.float32)
    truths = rng.random((3, 5, 7)).round().astype(np.float32)
    metrics = MarkMetrics()
    for place, (p, t) in enumerate(zip(predictions, truths)):
        metrics.update(p[None, ..., None].repeat(2, -1), t[None, ..., None].repeat(2, -1), [[True, True]], [place])
    area, before = 0.0, 0.0
    for level in sorted(set(predictions.ravel()), reverse=True):
        called = predictions >= level
        recall = (called & (truths > 0)).sum() / truths.sum()
        area += (recall - before) * (called & (truths > 0)).sum() / called.sum()
        before = recall
    assert metrics.compute()["marks/misalignment/average_precision"] == pytest.approx(area)


def test_people_are_judged_by_the_others():
    """Three people; the one who stands alone has no pixel right, and makes the others miss none."""
    people = [[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[0, 0, 0, 1]]]
    values = one(np.zeros((1, 4), np.float32), np.array([[170, 170, 0, 85]], np.uint8), people).compute()
    # By the others, of whom one is enough of two: A and B hit two pixels and miss the last one each; C is wrong.
    assert values["marks/implausibility/precision_human"] == pytest.approx(4 / 5)
    assert values["marks/implausibility/recall_human"] == pytest.approx(4 / (4 + 1 + 1 + 2))


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    truth, mask, index = rng.random((40, 4)), np.ones((40, 4), bool), np.arange(40)
    first, second = ScoreMetrics(), ScoreMetrics()
    noise = rng.normal(size=(40, 4))
    first.update(truth + 0.5 * noise, truth, mask, index)
    second.update(truth + 0.6 * noise, truth, mask, index)
    difference = paired_differences(first, second, resamples=200)["scores/mean/plcc"]
    assert difference.low > 0 and difference.larger == 1
    unpaired = bootstrap_intervals(first, 200)["scores/mean/plcc"]
    assert difference.high - difference.low < 0.5 * (unpaired[1] - unpaired[0])
    same = paired_differences(first, first, resamples=10)["scores/mean/plcc"]
    assert same == (0, 0, 0, 0.5)
    other = ScoreMetrics()
    other.update(truth, truth, mask, index + 1)
    with pytest.raises(ValueError, match="not the same ones"):
        paired_differences(first, other)
