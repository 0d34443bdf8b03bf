"""Training: what a run writes, what it keeps as best, how it stops, and what it refuses before it starts."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
from data_pipelines import store
from data_pipelines.loading.loader import TrainLoader
from rahf import config as config_lib
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import NotFinite, NotPredicted, TrainError
from rahf.critic.evaluation.evaluator import CriticEvaluation, metric_names
from rahf.critic.losses import OF_LABELS
from rahf.training import label_counts, loop, progress
from rahf.training import state as state_lib
from rahf.training.checkpoint import Checkpointer
from rahf.training.step import StepMetrics
from tests.helpers import train_maker
from tests.helpers.train_maker import train


def steps(folder) -> list[str]:
    return sorted((p.name for p in folder.iterdir()), key=lambda name: (len(name), name))


# What a run writes


def test_a_run_directory_holds_everything(finished_run, tiny_config, tiny_data):
    expected = dataclasses.replace(config_lib.load(str(tiny_config)), workdir=str(finished_run))
    assert config_lib.from_json((finished_run / "config.json").read_text()) == expected
    assert (finished_run / "tokenizer.model").read_bytes() == (tiny_data / "tokenizer.model").read_bytes()
    assert steps(finished_run / "checkpoints/latest") == ["8", "12"]  # keep_checkpoints is 2
    assert steps(finished_run / "checkpoints/best") == ["12"]
    assert len(list((finished_run / "tensorboard").glob("events.out.tfevents.*"))) == 1
    names = ["checkpoints", "config.json", "label_counts.json", "metrics.jsonl", "tensorboard", "tokenizer.model"]
    assert steps(finished_run) == sorted(names, key=lambda name: (len(name), name))


def test_rows_and_events_say_the_same(finished_run):
    rows = train_maker.rows(finished_run)
    training = {row["step"]: row for row in rows if "loss/total" in row}
    assert list(training) == [2, 4, 6, 8, 10, 12]
    total = training[12]["loss/heatmap"] + training[12]["loss/score"] + training[12]["loss/keyword"]
    assert training[12]["loss/total"] == pytest.approx(total, abs=1e-5)  # all weights are 1
    assert training[12]["loss/total"] < training[2]["loss/total"] - 0.3  # it learns
    # 3e-3 after a warm-up of 4 steps, then 3e-3 · sqrt(4 / step)
    assert [training[s]["learning_rate"] for s in (2, 4, 8)] == pytest.approx([1.5e-3, 3e-3, 3e-3 / 2**0.5])
    evaluated = {row["step"]: row for row in rows if "eval/loss/total" in row}
    assert list(evaluated) == [6, 12]
    assert evaluated[12]["eval/loss/total"] < evaluated[6]["eval/loss/total"]
    assert "eval/keywords_constrained/f1" in evaluated[6] and "eval/keywords/f1" not in evaluated[6]
    assert "eval/keywords/f1" in evaluated[12]  # generation is slow: at the end only

    events = (next((finished_run / "tensorboard").glob("events*"))).read_bytes()
    for name in training[2].keys() | {k for k, v in evaluated[12].items() if v is not None}:
        assert name == "step" or name.encode() in events, name


def test_the_average_is_what_is_kept_as_best(finished_run):
    _, latest = train_maker.stored(finished_run, "latest")
    _, best = train_maker.stored(finished_run, "best")
    path = "['decoder']['layer_0']['attention']['key']['kernel']"
    assert best["['params']" + path].tobytes() == latest["['ema']" + path].tobytes()
    assert best["['params']" + path].tobytes() != latest["['params']" + path].tobytes()


def test_rows_of_before_a_resumption_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, "a": 3}\n{"step": 8, "a"')
    assert [row["step"] for row in progress.read_rows(file)] == [2, 4, 6]  # the last line was cut off
    reporter = progress.Reporter(tmp_path, steps=8, start=4)
    reporter.write(6, {"a": float("nan"), "b": float("inf"), "c": 1.5})
    reporter.close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert (rows[2]["a"], rows[2]["b"], rows[2]["c"]) == (None, None, 1.5)
    assert progress.read_rows(tmp_path / "absent.jsonl") == []


def test_other_processes_are_silent(tmp_path, capfd):
    reporter = progress.Reporter(tmp_path, steps=8, start=0, active=False)
    reporter.train(2, {"loss/total": 1.0}, 16)
    reporter.say("hello")
    reporter.close()
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def test_time_left_is_readable():
    assert [progress._duration(s) for s in (0.4, 59, 61, 3660)] == ["0 s", "59 s", "1 min 01 s", "1 h 01 min"]


# Which checkpoint is the best


def loop_around(evaluator, checkpoints, **train_fields) -> loop._Run:
    """The inside of a run, with an evaluator of ours."""
    run = object.__new__(loop._Run)
    run.config = config_lib.Config(train=config_lib.TrainConfig(**{"steps": 10_000, **train_fields}))
    run.checkpoints = checkpoints
    run.task = SimpleNamespace(loss_parts=OF_LABELS, needs_thorough=lambda name: name.startswith("keywords/"))
    run.best = loop._value(run.config, checkpoints.best_metrics() or {})
    run.evaluator = SimpleNamespace(evaluate=evaluator, summary=lambda metrics: "")
    run.reporter = SimpleNamespace(write=lambda *_: None, say=lambda *_: None, pause=lambda: None)
    return run


@pytest.fixture
def scripted(tmp_path):
    """Evaluates at given steps, finding given values of a metric; returns the steps of the best checkpoints."""

    def run(values: dict[int, float], **train_fields) -> list[str]:
        checkpoints = Checkpointer(tmp_path / "run", keep=2)
        found = iter(values.values())

        def evaluator(*_, **__):
            return CriticEvaluation({"scores/mean/plcc": next(found), "loss/total": 1.0}, {}, {}, [], 8, 0.0)

        inside = loop_around(evaluator, checkpoints, best_metric="scores/mean/plcc", **train_fields)
        for step in values:
            inside.evaluate(step, SimpleNamespace(best_params={"kernel": jnp.full(2, step, jnp.float32)}))
        checkpoints.close()
        return steps(tmp_path / "run/checkpoints/best")

    return run


def test_a_metric_that_is_not_a_number_is_never_best(scripted):
    assert scripted({2: np.nan}) == []
    assert scripted({4: 0.3, 6: np.nan, 8: 0.2, 10: 0.3}) == ["4"]  # equal is not better
    assert scripted({12: 0.25}) == ["4"]  # a resumed run knows what was best
    assert scripted({14: 0.4}) == ["14"]


def test_the_smallest_can_be_best(scripted):
    assert scripted({2: np.nan, 4: 0.5, 6: 0.7, 8: 0.4}, best_mode="min") == ["8"]
    assert scripted({10: 0.41}, best_mode="min") == ["8"]


def test_keywords_are_generated_where_they_decide():
    asked = []

    def evaluator(params, thorough):
        asked.append(thorough)
        return CriticEvaluation({"loss/total": 1.0}, {}, {}, [], 8, 0.0)

    for metric in ("keywords/f1", "keywords_constrained/f1"):
        run = loop_around(evaluator, Kept(), steps=4, best_metric=metric)
        for step in (2, 4):
            run.evaluate(step, SimpleNamespace(best_params=None))
    assert asked == [True, True, False, True]


def test_every_metric_of_an_evaluation_may_decide(finished_run):
    evaluated = [row for row in train_maker.rows(finished_run) if row["step"] == 12 and "eval/loss/total" in row]
    assert {name.removeprefix("eval/") for name in evaluated[0]} - {"step"} == set(metric_names())


# Losses that are not finite


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path, monkeypatch, capsys):
    run, take, taken = tmp_path / "run", TrainLoader.__next__, []

    def broken_at_9(self):
        batch = take(self)
        taken.append(1)
        if len(taken) == 9:
            batch.scores[3, 1] = np.nan
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", broken_at_9)
        assert train(tiny_config, run) == 1
    error = capsys.readouterr().err
    # The checkpoint of step 8 is what the loss of step 9 was computed with.
    assert re.match(r"rahf: step 9: score loss is not finite \(heatmap loss 0\.\d+, score loss nan, keyword", error)
    assert f"last good checkpoint: step 4, {run}/checkpoints/latest/4. " in error
    assert "lower optimizer.learning_rate or optimizer.clip_norm to go on from there" in error
    assert steps(run / "checkpoints/latest") == ["4"]
    assert steps(run / "checkpoints/best") == ["6"]


def test_bad_parameters_leave_no_checkpoint(tiny_config, tmp_path, monkeypatch, capsys):
    run, create = tmp_path / "run", state_lib.create

    def infinite(config, made, given):
        state = create(config, made, given)
        last = state.params["heatmap_misalignment"]["out"]
        last["bias"] = jax.device_put(last["bias"] + np.inf, last["bias"].sharding)
        return state

    monkeypatch.setattr(state_lib, "create", infinite)
    assert train(tiny_config, run) == 1
    error = capsys.readouterr().err
    assert "rahf: step 1: heatmap loss is not finite" in error
    assert "there is no checkpoint yet" in error and "to begin again" in error
    assert steps(run / "checkpoints/latest") == steps(run / "checkpoints/best") == []


def measured(**changes) -> StepMetrics:
    values = {
        "heatmap": 0.1,
        "score": 0.2,
        "keyword": 3.0,
        "tag": 0.0,
        "total": 3.3,
        "gradient": 1.0,
        "parameters": 50.0,
    } | changes
    parts = {name: np.float32(values[name]) for name in OF_LABELS}
    return StepMetrics(
        np.float32(values["total"]), parts, np.float32(values["gradient"]), np.float32(values["parameters"])
    )


class Kept:
    """Checkpoints of some steps."""

    def __init__(self, *found: int):
        self.found, self.folder = list(found), train_maker.HERE

    @property
    def latest_step(self):
        return max(self.found, default=None)

    def best_metrics(self):
        return None

    def discard(self, step):
        self.found = [s for s in self.found if s != step]


@pytest.mark.parametrize(
    "changes, named, kept",
    [
        ({"keyword": np.nan, "total": np.nan, "gradient": np.nan}, "keyword loss", [4]),
        ({"score": np.inf, "heatmap": np.nan}, "heatmap loss", [4]),
        ({"total": np.inf}, "total loss", [4]),
        ({"gradient": np.inf}, "gradient norm", [4]),
        ({"parameters": np.inf}, "parameter norm", [4, 8]),  # an update too far: before it all was well
    ],
)
def test_what_is_not_finite_is_named(changes, named, kept):
    run = object.__new__(loop._Run)
    run.checkpoints, run.task = Kept(4, 8), SimpleNamespace(loss_parts=OF_LABELS)
    run.check(9, measured())
    with pytest.raises(
        TrainError, match=rf"^step 9: {named} is not finite \(.*\); last good checkpoint: step {kept[-1]}, "
    ):
        run.check(9, measured(**changes))
    assert run.checkpoints.found == kept


def test_an_evaluation_that_is_not_finite_keeps_nothing():
    def evaluator(*_, **__):
        raise NotFinite("one of the scores of example 3 of the evaluated split is not finite")

    run = loop_around(evaluator, Kept())
    with pytest.raises(TrainError, match=r"step 50: one of the scores of example 3 .* finite; there is no checkpoint"):
        run.evaluate(50, SimpleNamespace(best_params=None))


# Labels that are missing


def test_missing_labels_weigh_nothing(tiny_config, tiny_data, tmp_path, capsys):
    """No score at all, every second map of one kind, words of the first half: losses are of what is there."""
    source = store.open_split(tiny_data, "train")
    records = []
    for number in range(24):
        record = source[number]._replace(scores=np.full(4, np.nan, np.float32))
        if number % 2:
            record = record._replace(misalignment=None)
        if number >= 16:
            record = record._replace(word_labels=None)
        records.append(record)
    vocabulary = (tiny_data / "tokenizer.model").read_bytes()
    store.write_dataset(tmp_path / "data", {"train": records[8:], "dev": records[:8]}, "test", vocabulary)
    run = tmp_path / "run"
    assert train(tiny_config, run, "--data.path", str(tmp_path / "data"), "--train.steps", "2") == 0
    rows = train_maker.rows(run)
    assert rows[0]["loss/score"] is None  # not 0: nothing was compared
    assert "score –  " in capsys.readouterr().out
    assert rows[0]["loss/heatmap"] > 0 and rows[0]["loss/keyword"] > 5
    assert rows[1]["eval/scores/mean/plcc"] is None and rows[1]["eval/scores/overall/count"] == 0
    assert rows[1]["eval/loss/score"] is None
    assert np.isfinite(rows[1]["eval/loss/total"])
    counts = [rows[1][f"eval/heatmaps/{name}/count"] for name in ("implausibility", "misalignment")]
    assert counts == [8, 4]
    # What loads the run knows which heads have seen no label.
    learned = label_counts.read(run)
    assert [learned[f"score/{name}"] for name in SCORES] == [0] * 4
    assert learned["heatmap/implausibility"] == 16 and learned["heatmap/misalignment"] == 8 and learned["keyword"] > 8
    critic = rahf.load(run)
    assert critic.outputs.scores == () and critic.outputs.heatmaps == HEATMAPS and critic.outputs.keywords
    with pytest.raises(NotPredicted, match="does not predict 'overall'.*no score at all"):
        critic.reward("overall")
