"""Sources on the same examples: metrics, differences paired by example, what is trivial, and the command."""

import json

import numpy as np
import pytest

from rahf.cli import main as cli
from rahf.comparison import measure
from rahf.comparison.measure import common, compare
from rahf.comparison.sources import Coverage, ModelSource, open_sources
from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError
from rahf.metrics import EvaluationMetrics
from tests.helpers.predictions_maker import labels_of, write_predictions


def test_perfect_predictions_are_perfect_and_trivial_ones_are_not(tiny_data, tmp_path):
    labels = labels_of(tiny_data)
    perfect = write_predictions(tmp_path, labels, "perfect.jsonl")
    noisy = write_predictions(tmp_path, labels, "noisy.jsonl", noise=0.4)
    comparison = compare(open_sources([str(perfect), str(noisy)]), labels, resamples=50)
    best, worse = comparison.sources
    assert (best.name, worse.name, comparison.count) == ("perfect", "noisy", len(labels))
    for name in ("scores/mean/plcc", "regions/implausibility/mask_iou", "marks/implausibility/average_precision"):
        assert best.metrics[name] == pytest.approx(1), name
        assert worse.metrics[name] < best.metrics[name], name
        low, high = worse.intervals[name]
        assert low <= worse.metrics[name] <= high
        difference = comparison.differences[0, 1][name]
        assert difference.value == pytest.approx(best.metrics[name] - worse.metrics[name])
        assert difference.low > 0 and difference.larger == 1
    assert best.metrics["heatmaps/implausibility/mse"] < 1e-6
    assert best.metrics["words/f1"] == 1
    trivial = comparison.trivial
    assert trivial["all bad"]["words/recall"] == 1
    assert trivial["all bad"]["words/precision"] == pytest.approx(best.metrics["words/base_rate"])
    assert trivial["none bad"]["words/f1"] == 0
    assert trivial["all bad"]["marks/implausibility/precision"] == pytest.approx(
        best.metrics["marks/implausibility/base_rate"]
    )
    for name in ("all bad", "none bad", "centre"):
        assert trivial[name]["scores/mean/plcc"] == 0
        ending = {"all bad": "_all", "none bad": "_none", "centre": "_centre"}[name]
        for measured in ("mask_iou", "cell_accuracy"):
            one = f"regions/implausibility/{measured}"
            np.testing.assert_equal(trivial[name][one], best.metrics[one + ending])


def test_a_label_counts_only_where_every_source_that_predicts_its_kind_predicts_it():
    n, y = False, True
    first = Coverage(np.array([[y] * 4, [n] * 4]), np.array([[y, n], [y, n]]), np.array([y, y]))
    second = Coverage(np.array([[y, n, n, n], [y, n, n, n]]), np.array([[y, y], [n, y]]), np.array([n, n]))
    counted = common([first, second])
    np.testing.assert_array_equal(counted.scores, [[y] * 4, [n] * 4])
    np.testing.assert_array_equal(counted.heatmaps, [[y, y], [n, y]])
    np.testing.assert_array_equal(counted.words, [y, y])


@pytest.mark.filterwarnings("ignore::rahf.text.prompts.PromptWarning")
def test_a_model_has_the_numbers_of_its_own_arrays(tiny_data, tiny_critic):
    """The way over `Feedback` loses nothing: metrics computed from `critic(images, prompts)` are the same."""
    labels = labels_of(tiny_data)
    records = [labels.source[i] for i in range(len(labels))]
    prediction = tiny_critic([r.image for r in records], [r.prompt for r in records], batch_size=16)
    comparison = compare([ModelSource(tiny_critic, "tiny")], labels, resamples=2)
    expected = EvaluationMetrics(threads=1)
    for place in range(len(labels)):
        truth = labels[place]
        index = np.array([place])
        rated = np.isfinite(truth.record.scores)[None]
        expected.scores.update(prediction.scores[place][None], np.nan_to_num(truth.record.scores)[None], rated, index)
        expected.heatmaps.update(
            prediction.heatmaps[place][None], truth.heatmaps[None], truth.heatmap_mask[None], index
        )
    for name, value in (expected.scores.compute() | expected.heatmaps.compute()).items():
        assert comparison.sources[0].metrics[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name


def test_people_stand_beside_models_where_their_maps_were_kept(tiny_data, tmp_path):
    labels = labels_of(tiny_data)

    class WithPeople:
        source = labels.source

        def __len__(self):
            return len(labels)

        def __getitem__(self, place):
            truth = labels[place]
            marked = truth.heatmaps[:, :, 0] > 127
            return truth._replace(annotators=(np.stack([marked] * 3), None))

    file = write_predictions(tmp_path, labels, noise=0.3)
    metrics = compare(open_sources([str(file)]), WithPeople(), resamples=2).sources[0].metrics
    assert measure.human(metrics, "regions/implausibility/mask_iou") == 1
    assert measure.human(metrics, "marks/implausibility/f1") == 1
    assert measure.human(metrics, "marks/misalignment/f1") is None
    assert measure.human(metrics, "heatmaps/implausibility/cc") is None


def test_the_command_prints_a_table_writes_json_and_counts_what_it_refuses(tiny_data, tmp_path, capsys):
    labels = labels_of(tiny_data)
    file = write_predictions(tmp_path, labels, noise=0.2, model="theirs <b>")
    with file.open("a") as stream:
        stream.write('{"uid": "nobody", "scores": {"overall": 1}}\n{"uid": 3\n')
    out = tmp_path / "compared.json"
    arguments = ["compare", "--predictions", str(file), "--data", str(tiny_data), "--json", str(out)]
    assert cli.main([*arguments, "--resamples", "10"]) == 3
    text = capsys.readouterr().out
    assert "2 lines refused (malformed 1, no such example 1)" in text
    assert "AUC-Judd" in text and "centre" in text
    tree = json.loads(out.read_text())
    (source,) = tree["sources"]
    assert source["name"] == "theirs <b>"
    assert [one["line"] for one in source["refused"]] == [len(labels) + 1, len(labels) + 2]
    assert source["metrics"]["scores/overall/count"] == len(labels)
    assert set(tree["labels"]) == {*(f"{n} score" for n in SCORES), "implausibility map", "misalignment map", "words"}


def test_nothing_to_compare_is_an_error(tiny_data, tmp_path):
    with pytest.raises(ArgumentError, match="nothing to compare"):
        open_sources([])
    labels = labels_of(tiny_data)
    a = write_predictions(tmp_path, labels, "a.jsonl")
    lines = a.read_text().splitlines(keepends=True)
    (tmp_path / "first.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "last.jsonl").write_text("".join(lines[5:]))
    with pytest.raises(ArgumentError, match="no example is predicted by all sources"):
        compare(open_sources([str(tmp_path / "first.jsonl"), str(tmp_path / "last.jsonl")]), labels)
    with pytest.raises(ArgumentError, match="none of its 1 lines"):
        (tmp_path / "other.jsonl").write_text('{"uid": "x", "scores": {"overall": 1}}\n')
        compare(open_sources([str(tmp_path / "other.jsonl")]), labels)
