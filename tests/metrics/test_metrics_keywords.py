"""Precision, recall and F1 of misaligned words against hand-counted examples and plain loops."""

import numpy as np
import pytest

from rahf.metrics.keywords import KeywordMetrics, Threshold, average_precision, choose_threshold, precision_recall_f1


def filled(n=40, k=9, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(k) < rng.integers(0, k + 1, n)[:, None]
    truth = (rng.random((n, k)) > 0.2).astype(np.int32)
    probability = np.round(0.5 * (truth == 0) + 0.5 * rng.random((n, k)), 1)
    return (probability < 0.5).astype(np.int32), truth, mask, np.arange(n), probability


def test_hand_counted():
    #         a  yellow  cat | two  dogs  padding
    truth = np.array([[1, 0, 0], [1, 1, 0]])
    predicted = np.array([[0, 0, 1], [1, 0, 0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    metrics = KeywordMetrics()
    metrics.update(predicted, truth, mask, np.arange(2))
    assert metrics.compute() == {  # found 1, wrongly called 2, missed 1
        "keywords/precision": pytest.approx(1 / 3),
        "keywords/recall": pytest.approx(1 / 2),
        "keywords/f1": pytest.approx(2 / 5),
        "keywords/macro_precision": pytest.approx((1 / 2 + 0) / 2),
        "keywords/macro_recall": pytest.approx((1 / 2 + 0) / 2),
        "keywords/macro_f1": pytest.approx((1 / 2 + 0) / 2),
        "keywords/base_rate": pytest.approx(2 / 5),
        "keywords/words": 5,
        "keywords/misaligned": 2,
    }


def test_the_published_table_is_micro_averaged():
    # RAHF, multi-head: precision 62.9, recall 33.0, printed F1 43.3. Counts with just these rates:
    tp, actual, called = 62.9 * 33.0, 62.9 * 100, 33.0 * 100
    precision, recall, f1 = precision_recall_f1(*map(np.array, (tp, called - tp, actual - tp)))
    assert (precision, recall) == (pytest.approx(0.629), pytest.approx(0.330))
    assert round(100 * float(f1), 1) == 43.3


def test_against_loops():
    predicted, truth, mask, index, _ = filled()
    metrics = KeywordMetrics("keywords_constrained")
    metrics.update(predicted, truth, mask, index)
    result = metrics.compute()
    totals, prompts = np.zeros(3), []
    for p_row, t_row, m_row in zip(predicted, truth, mask):
        tp = fp = fn = 0
        for p, t, m in zip(p_row, t_row, m_row):
            tp += m and p == 0 and t == 0
            fp += m and p == 0 and t == 1
            fn += m and p == 1 and t == 0
        totals += (tp, fp, fn)
        if m_row.any():
            precision = tp / (tp + fp) if tp + fp else 0
            recall = tp / (tp + fn) if tp + fn else 0
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
            prompts.append((precision, recall, f1))
    tp, fp, fn = totals
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    expected = (precision, recall, 2 * precision * recall / (precision + recall), *np.mean(prompts, axis=0))
    names = ("precision", "recall", "f1", "macro_precision", "macro_recall", "macro_f1")
    for name, value in zip(names, expected):
        assert result[f"keywords_constrained/{name}"] == pytest.approx(value), name
    assert 0 < (mask.any(1)).sum() < len(mask)  # an example without any word is in it


def test_prompts_without_misaligned_words_bound_the_macro_average():
    truth = np.array([[0, 1], [1, 1], [1, 1], [0, 0]])
    metrics = KeywordMetrics()
    metrics.update(truth, truth, np.ones((4, 2), bool), np.arange(4))
    result = metrics.compute()
    assert result["keywords/f1"] == 1
    assert result["keywords/macro_f1"] == result["keywords/macro_precision"] == 0.5


def test_always_aligned_and_nothing_to_find():
    truth = np.array([[0, 1, 1]])
    mask = np.ones((1, 3), bool)
    metrics = KeywordMetrics()
    metrics.update(np.ones((1, 3), int), truth, mask, np.arange(1))
    assert [metrics.compute()[f"keywords/{name}"] for name in ("precision", "recall", "f1")] == [0, 0, 0]
    metrics = KeywordMetrics()
    metrics.update(truth, np.ones((1, 3), int), mask, np.arange(1))
    result = metrics.compute()
    assert result["keywords/precision"] == 0
    assert np.isnan(result["keywords/recall"]) and np.isnan(result["keywords/f1"])
    assert all(np.isnan(KeywordMetrics().compute()[f"keywords/{n}"]) for n in ("precision", "recall", "f1"))


def test_masked_words_never_matter():
    predicted, truth, mask, index, probability = filled()
    clean, dirty = KeywordMetrics(), KeywordMetrics()
    clean.update(predicted, truth, mask, index, probability)
    wide = ((0, 0), (0, 4))  # a process whose prompts are longer
    dirty.update(
        np.pad(np.where(mask, predicted, 7), wide),
        np.pad(np.where(mask, truth, -3), wide),
        np.pad(mask, wide),
        index,
        np.pad(np.where(mask, probability, np.nan), wide),
    )
    dirty.update(predicted, truth, mask, np.full(len(index), -1), probability)
    assert clean.compute() == dirty.compute()


def test_average_precision():
    # Ranking + - + : precision 1 at recall 1/2, 2/3 at recall 1.
    chance, positive = np.array([0.9, 0.8, 0.3]), np.array([True, False, True])
    assert average_precision(chance, positive)[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # All tied: one threshold, precision is the base rate.
    assert average_precision(np.full(4, 0.5), np.array([1, 0, 0, 1], bool))[0] == pytest.approx(0.5)
    assert np.isnan(average_precision(chance, np.zeros(3, bool))[0])
    copies = np.array([[2.0, 1.0, 0.0]])
    repeated = average_precision(np.array([0.9, 0.9, 0.8]), np.array([True, True, False]))
    assert average_precision(chance, positive, copies)[0] == pytest.approx(repeated[0])


def test_average_precision_against_loops():
    _, truth, mask, index, probability = filled()
    metrics = KeywordMetrics()
    metrics.update((probability < 0.5).astype(int), truth, mask, index, probability)
    chance, positive = probability[mask], truth[mask] == 0
    expected, last = 0.0, 0.0
    for threshold in sorted(set(chance), reverse=True):
        called = chance >= threshold
        recall = (called & positive).sum() / positive.sum()
        expected += (recall - last) * (called & positive).sum() / called.sum()
        last = recall
    assert metrics.compute()["keywords/average_precision"] == pytest.approx(expected)


def test_threshold_is_the_best_of_all():
    _, truth, mask, _, probability = filled()
    threshold = choose_threshold(probability, truth, mask)
    scores = {}
    for value in np.unique(probability[mask]):
        called = probability[mask] >= value
        actual = truth[mask] == 0
        scores[value] = 2 * (called & actual).sum() / (called.sum() + actual.sum())
    assert threshold.f1 == pytest.approx(max(scores.values()))
    called, actual = probability[mask] >= threshold.value, truth[mask] == 0
    assert 2 * (called & actual).sum() / (called.sum() + actual.sum()) == pytest.approx(threshold.f1)
    one = choose_threshold(np.array([[0.8, 0.2]]), np.array([[0, 1]]), np.ones((1, 2), bool))
    assert one == Threshold(0.5, 1.0)
    with pytest.raises(ValueError, match="no labelled word is misaligned"):
        choose_threshold(probability, np.ones_like(truth), mask)


def test_wrong_labels_and_probabilities_are_refused():
    predicted, truth, mask, index, probability = filled()
    mask[5, 2] = True
    predicted[5, 2] = -1
    with pytest.raises(ValueError, match="example 5, word 2: predicted label -1"):
        KeywordMetrics().update(predicted, truth, mask, index)
    predicted[5, 2], probability[5, 2] = 1, 1.5
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        KeywordMetrics().update(predicted, truth, mask, index, probability)
