"""Merging over batches and processes, bootstrap intervals, the mean baseline."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from rahf.core.batch import SCORES, Batch, fake
from rahf.metrics import (
    EvaluationMetrics,
    KeywordMetrics,
    MeanBaseline,
    ScoreMetrics,
    TrainingMean,
    bootstrap_intervals,
)


def batches(count=4, size=6):
    """Batches with missing labels, an empty map, and filling at the end."""
    numbered = []
    for number in range(count):
        rng = np.random.default_rng(number)
        batch = fake(batch_size=size, image_size=8, seed=number)
        batch.heatmaps[0, :, :, 1] = batch.heatmaps[number, :, :, 0] = 0
        batch.index[:] += number * size
        batch.score_mask[:] = rng.random(batch.score_mask.shape) < 0.8
        batch.heatmap_mask[:] = rng.random(batch.heatmap_mask.shape) < 0.9
        numbered.append(batch)
    last = numbered[-1]
    last.example_mask[-2:] = False
    last.index[-2:] = -1
    return numbered


def outputs(batch: Batch):
    rng = np.random.default_rng(int(batch.index[0]) + 1000)
    size = len(batch.index)
    chance = rng.random(batch.word_labels.shape)
    return {
        "heatmaps": rng.random((size, 8, 8, 2)).astype(np.float32),
        "scores": rng.random((size, 4)).astype(np.float32),
        "labels": rng.integers(0, 2, batch.word_labels.shape),
        "labels_constrained": (chance < 0.5).astype(int),
        "probability": chance,
    }


def evaluate(some) -> EvaluationMetrics:
    metrics = EvaluationMetrics()
    for batch in some:
        metrics.update(batch, **outputs(batch))
    return metrics


def same(left: dict, right: dict):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name] == pytest.approx(right[name], rel=1e-12, nan_ok=True), name


def test_names_are_those_of_the_design():
    names = set(evaluate(batches()).compute())
    maps = ("mse", "mse_empty", "cc", "kld", "sim", "nss", "nss_weighted", "nss_majority", "auc_judd")
    expected = {f"scores/{s}/{m}" for s in (*SCORES, "mean") for m in ("plcc", "srcc")}
    expected |= {f"scores/{s}/count" for s in SCORES}
    for heatmap in ("implausibility", "misalignment"):
        expected |= {f"heatmaps/{heatmap}/{m}" for m in (*maps, "count", "count_empty", "count_majority")}
    for prefix in ("keywords", "keywords_constrained"):
        each = ("precision", "recall", "f1")
        expected |= {f"{prefix}/{m}" for m in (*each, *(f"macro_{e}" for e in each))}
        expected |= {f"{prefix}/{m}" for m in ("base_rate", "words", "misaligned")}
    assert names == expected | {"keywords_constrained/average_precision"}


def test_merging_in_any_order_equals_one_pass():
    some = batches()
    together = evaluate(some)
    same(evaluate(some[:1]).merge(evaluate(some[1:])).compute(), together.compute())
    same(evaluate(some[::-1]).compute(), together.compute())
    same(evaluate(some[2:]).merge(evaluate(some[:2])).intervals(50), together.intervals(50))


def test_exchange_between_processes():
    some = batches()
    together = evaluate(some)
    gathered = EvaluationMetrics()
    for part in (evaluate(some[:1]), evaluate(some[1:])):
        arrays = part.to_arrays(rows=30)  # equal shapes, as an all-gather needs
        assert {len(array) for array in arrays.values()} == {30}
        gathered.add_arrays(arrays)
    same(gathered.compute(), together.compute())
    same(EvaluationMetrics.from_arrays(together.to_arrays()).compute(), together.compute())
    with pytest.raises(ValueError, match="do not fit into 3 rows"):
        together.to_arrays(rows=3)


def test_a_process_without_examples():
    together = evaluate(batches())
    nothing = EvaluationMetrics()
    assert {len(a) for a in nothing.to_arrays(rows=5).values()} == {5}
    same(nothing.add_arrays(EvaluationMetrics().to_arrays(rows=5)).merge(together).compute(), together.compute())


def test_duplicates_count_once():
    some = batches()
    together = evaluate(some).compute()
    same(evaluate([*some, some[1], some[0]]).compute(), together)


def test_filling_changes_nothing():
    some = batches(1)
    kept = Batch(*(field[:4] for field in some[0]))
    full, cut = EvaluationMetrics(), EvaluationMetrics()
    out = outputs(some[0])
    full.update(some[0], **out)
    cut.update(kept, **{name: value[:4] for name, value in out.items()})
    assert not some[0].example_mask[4:].any()
    some[0].index[4:] = (100, 101)  # the mask alone must do
    full.update(some[0], **out)
    same(full.compute(), cut.compute())


def test_decoders_without_predictions_are_not_reported():
    metrics = EvaluationMetrics()
    for batch in batches():
        out = outputs(batch)
        metrics.update(batch, out["heatmaps"], out["scores"], labels_constrained=out["labels_constrained"])
    names = metrics.compute()
    assert "keywords_constrained/f1" in names and "keywords/f1" not in names


def test_wrong_arrays_are_refused():
    arrays = ScoreMetrics().to_arrays()
    del arrays["truth"]
    with pytest.raises(ValueError, match="expected arrays .*truth"):
        ScoreMetrics.from_arrays(arrays)
    with pytest.raises(TypeError, match="cannot merge KeywordMetrics into ScoreMetrics"):
        ScoreMetrics().merge(KeywordMetrics())


def slow_intervals(metrics: EvaluationMetrics, resamples: int):
    """Draws examples, copies their rows under new indexes, and computes everything from the start."""
    arrays = metrics.to_arrays()
    number = len(arrays["scores.index"])
    rng = np.random.default_rng(0)
    counts = rng.multinomial(number, np.full(number, 1 / number), size=resamples)
    results = []
    for row in counts:
        copies = np.repeat(np.arange(number), row)
        drawn = {name: array[copies] for name, array in arrays.items()}
        drawn |= {name: np.arange(number) for name in drawn if name.endswith(".index")}
        results.append(EvaluationMetrics.from_arrays(drawn).compute())
    return results


def test_intervals_equal_computing_each_resample_anew():
    metrics = evaluate(batches())
    fast, results = metrics.intervals(resamples=40), slow_intervals(metrics, 40)
    counted = {n for n in results[0] if n.split("/")[-1].startswith(("count", "words", "misaligned"))}
    assert set(fast) == set(results[0]) - counted
    for name, interval in fast.items():
        values = np.array([r[name] for r in results])
        expected = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected), rel=1e-9, abs=1e-12), name


def test_interval_of_a_correlation_covers_as_theory_says():
    rng = np.random.default_rng(0)
    truth = rng.random((1000, 4))
    prediction = truth + 0.3 * rng.standard_normal(truth.shape)
    metrics = ScoreMetrics()
    metrics.update(prediction, truth, np.ones((1000, 4), bool), np.arange(1000))
    low, high = bootstrap_intervals(metrics, resamples=300)["scores/overall/plcc"]
    exact = scipy.stats.pearsonr(prediction[:, 3], truth[:, 3]).confidence_interval(0.95)
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.012)
    assert bootstrap_intervals(metrics, resamples=50, seed=1) == bootstrap_intervals(metrics, resamples=50, seed=1)
    assert bootstrap_intervals(metrics, resamples=50, seed=1) != bootstrap_intervals(metrics, resamples=50, seed=2)


def test_handling_resamples_in_parts_changes_nothing(monkeypatch):
    metrics = evaluate(batches())
    together = metrics.intervals(resamples=30)
    monkeypatch.setattr("rahf.metrics.bootstrap._CELLS", 100)
    same(metrics.intervals(resamples=30), together)


def test_intervals_without_examples_or_with_nonsense():
    assert all(np.isnan(pair).all() for pair in bootstrap_intervals(ScoreMetrics(), resamples=3).values())
    with pytest.raises(ValueError, match="0 < level < 1"):
        bootstrap_intervals(ScoreMetrics(), level=95.0)


def test_training_mean_counts_existing_labels_only():
    some = batches(2)
    mean = TrainingMean()
    for batch in some:
        mean.update(batch.heatmaps, batch.heatmap_mask, batch.scores, batch.score_mask)
    maps = np.concatenate([b.heatmaps for b in some]) / 255
    keep = np.concatenate([b.heatmap_mask for b in some])
    for kind in range(2):
        np.testing.assert_allclose(mean.heatmaps()[:, :, kind], maps[keep[:, kind], :, :, kind].mean(0), rtol=1e-6)
    scores, rated = (np.concatenate([getattr(b, n) for b in some]) for n in ("scores", "score_mask"))
    expected = [scores[rated[:, i], i].mean() for i in range(4)]
    np.testing.assert_allclose(mean.scores(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no training example"):
        TrainingMean().heatmaps()
    empty = TrainingMean()
    empty.update(some[0].heatmaps, some[0].heatmap_mask & False, some[0].scores, some[0].score_mask & False)
    assert (empty.scores() == 0.5).all() and (empty.heatmaps() == 0).all()


def test_mean_baseline():
    some = batches()
    rng = np.random.default_rng(0)
    mean_maps, mean_scores = rng.random((8, 8, 2)).astype(np.float32), np.float32([0.5, 0.6, 0.7, 0.8])
    baseline = MeanBaseline(mean_maps, mean_scores)
    expected = EvaluationMetrics()
    for batch in some:
        baseline.update(batch)
        size, words = len(batch.index), np.ones_like(batch.word_labels)
        maps = np.repeat(mean_maps[None], size, 0)
        expected.update(batch, maps, np.repeat(mean_scores[None], size, 0), words, words, 0.0 * words)
    result = baseline.compute()
    same(result, expected.compute())
    for name in SCORES:
        assert result[f"scores/{name}/plcc"] == result[f"scores/{name}/srcc"] == 0
    assert result["keywords/f1"] == result["keywords_constrained/recall"] == 0
    assert 0.3 < result["heatmaps/implausibility/auc_judd"] < 0.7


def test_mean_baseline_of_another_size_is_resized():
    baseline = MeanBaseline(np.full((3, 5, 2), 0.25, np.float32), np.full(4, 0.5, np.float32))
    for batch in batches():
        baseline.update(batch)
    result = baseline.compute()
    assert result["heatmaps/misalignment/cc"] == 0
    assert result["heatmaps/misalignment/auc_judd"] == 0.5
    assert result["heatmaps/misalignment/mse_empty"] == pytest.approx(0.0625)


def test_importable_without_jax():
    modules = "rahf.metrics, rahf.critic.drawing, rahf.critic.evaluation.report.page"
    code = f"import sys, {modules}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
