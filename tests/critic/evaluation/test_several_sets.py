"""Metrics of several data sets."""

import math

from rahf.critic.evaluation import several_sets
from rahf.critic.evaluation.evaluator import CriticEvaluation


def evaluation(**metrics):
    return CriticEvaluation({name.replace("__", "/"): value for name, value in metrics.items()}, {}, {}, [], 5, 1.0)


def test_means_over_sets_and_the_metrics_of_each():
    one = evaluation(scores__mean__plcc=0.5, heatmaps__x__cc=math.nan, heatmaps__x__count=3.0)
    two = evaluation(scores__mean__plcc=0.75, heatmaps__x__cc=0.25, heatmaps__x__count=4.0, keywords__f1=0.5)
    assert several_sets.joined({"a": one}) is one
    joined = several_sets.joined({"a": one, "b": two})
    assert joined.metrics["scores/mean/plcc"] == 0.625
    assert joined.metrics["heatmaps/x/cc"] == 0.25  # defined in one set only
    assert joined.metrics["heatmaps/x/count"] == 7
    assert joined.metrics["sets/a/scores/mean/plcc"] == 0.5 and joined.metrics["sets/b/keywords/f1"] == 0.5
    assert "sets/a/keywords/f1" not in joined.metrics
    assert (joined.count, joined.seconds) == (10, 2.0)


def test_names():
    assert several_sets.by_name(["data/x", "other/x/", "y"]) == {"x": "data/x", "x-2": "other/x/", "y": "y"}
    assert several_sets.names({"x": "data/x"}, ["loss/total"]) == []
    assert several_sets.names({"x": "data/x", "y": "y"}, ["loss/total"]) == ["sets/x/loss/total", "sets/y/loss/total"]
    assert several_sets.plain("sets/x/keywords/f1") == several_sets.plain("keywords/f1") == "keywords/f1"
    assert [n for n in ("a/count", "a/count_empty", "keywords/words", "a/cc") if several_sets.is_count(n)] == [
        "a/count", "a/count_empty", "keywords/words",
    ]  # fmt: skip
