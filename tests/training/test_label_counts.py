"""How many labels a run has learned from; and signs that it has learned nothing."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import ClipBaselineConfig, ClipConfig, Config, CriticConfig, LossConfig
from rahf.core.errors import CheckpointError
from rahf.critic.families import Outputs
from rahf.critic.task import CriticTask, part_of
from rahf.training import label_counts, run_folder
from rahf.training.checkpoint import Checkpointer
from rahf.training.state import TrainState
from rahf.training.task import Start

NAMES = Outputs().label_names


def test_counts_add_up_and_are_kept(tmp_path):
    assert label_counts.read(tmp_path) == {}
    counts = label_counts.added({"score/overall": 2, "keyword": None}, [{"score/overall": 3, "keyword": 4}, {"new": 0}])
    assert counts == {"score/overall": 5, "keyword": None, "new": 0}
    label_counts.write(tmp_path, counts)
    assert label_counts.read(tmp_path) == counts
    for text in ("[]", "{", '{"a": -1}', '{"a": "1"}', '{"a": true}'):
        (tmp_path / label_counts.FILE).write_text(text)
        with pytest.raises(CheckpointError, match="label_counts.json: damaged"):
            label_counts.read(tmp_path)
    (tmp_path / label_counts.FILE).unlink()
    os.mkfifo(tmp_path / label_counts.FILE)
    with pytest.raises(CheckpointError, match="label_counts.json: damaged .*a FIFO, not a regular file"):
        label_counts.read(tmp_path)


def test_what_has_seen_no_label_is_not_predicted():
    outputs = Outputs().learnt({"score/overall": 7, "score/alignment": 0, "heatmap/implausibility": None, "keyword": 0})
    assert outputs.scores == ("plausibility", "aesthetics", "overall")  # those that were not counted stay
    assert outputs.heatmaps == Outputs().heatmaps and not outputs.keywords
    assert outputs.not_learnt == ("score/alignment", "keyword")
    assert outputs.note() == (
        "not learnt, and so not predicted: alignment score, misaligned words; no example that it was trained on had "
        "such a label"
    )
    assert Outputs().learnt({}) == Outputs() and Outputs().note() is None


def test_a_part_without_weight_teaches_nothing():
    task = CriticTask(Config(loss=LossConfig(keyword_weight=0.0)), None)
    assert task.unweighted_parts == ("keyword",)


@pytest.mark.parametrize("variant", ["multi-head", "augmented-prompt"])
def test_a_start_brings_what_it_has_learned(variant):
    config = CriticConfig(variant=variant, task_ids=((2,),) * 6 if variant != "multi-head" else ())
    task = CriticTask(Config(model=config), None)
    heads = {name: part_of(config, name) for name in NAMES}
    assert heads["keyword"] == "decoder" and len({*heads.values()}) == (7 if variant == "multi-head" else 3)
    assert task.labels_at_start(Start({}, {})) == dict.fromkeys(NAMES, 0)  # random parameters
    taken = {"model": {"parts": [*heads.values()], "labels": dict.fromkeys(NAMES, 9) | {"keyword": 0}}}
    assert task.labels_at_start(Start({}, taken)) == dict.fromkeys(NAMES, 9) | {"keyword": 0}
    taken["model"]["parts"].remove("decoder")  # start.fresh
    taken["model"]["labels"] = {}  # a model of a version that did not count
    assert task.labels_at_start(Start({}, taken)) == dict.fromkeys(NAMES) | {"keyword": 0}


def test_published_clip_needs_no_label_of_ours():
    task = CriticTask(Config(model=ClipBaselineConfig(clip=ClipConfig(heatmap="gradient"))), None)
    names = ["heatmap/misalignment", "score/alignment"]
    assert task.labels_at_start(Start({"vit": {}}, {})) == dict.fromkeys(names)
    assert task.labels_at_start(Start({}, {})) == dict.fromkeys(names, 0)


def save(run, lora_b):
    saver = Checkpointer(run, keep=1)
    adapters = {"w": {"kernel": {"a": jnp.ones((4, 2)), "b": jnp.full((2, 4), lora_b)}}}
    lora = {"scale": jnp.float32(1), "adapters": adapters}
    saver.save(TrainState(jnp.int32(3), {"w": {"kernel": jnp.ones((4, 4))}}, (), None, lora), {"examples": 8})
    saver.close()


def test_signs_that_the_weights_are_those_of_the_start(tmp_path):
    for name, b, rate, sign in (("zero", 0.0, 1e-3, "adapters are zero"), ("still", 0.5, 0.0, "learning_rate is 0"),
                                ("alive", 0.5, 1e-3, None)):  # fmt: skip
        run = tmp_path / name
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"optimizer": {"learning_rate": rate}}))
        save(run, b)
        signs = run_folder.signs_of_no_training(*run_folder.find(run))
        assert len(signs) == (sign is not None) and all(sign in one and one.startswith("dead: ") for one in signs)
    (tmp_path / "still" / "model.json").write_text("{}")  # imported: no run of ours
    assert run_folder.signs_of_no_training(*run_folder.find(tmp_path / "still")) == []


def test_weights_that_are_not_finite_are_not_loaded(tmp_path):
    """Though their checksums are right."""
    (tmp_path / "config.json").write_text("{}")
    saver = Checkpointer(tmp_path, keep=1)
    saver.save_best(1, {"a": jnp.ones(3), "b": {"c": jnp.asarray([1.0, np.nan])}}, {})
    saver.close()
    _, state = run_folder.find(tmp_path)
    with pytest.raises(CheckpointError, match=r"params/b/c: values not finite .NaN or infinite."):
        run_folder.load_params(state, {"a": jnp.ones(3), "b": {"c": jnp.ones(2)}})
