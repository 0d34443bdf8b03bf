"""The critic: equal to a direct call of the network, indifferent to batching, clear about bad models."""

import dataclasses
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
from data_pipelines.loading import examples
from data_pipelines.store.records import Record
from rahf import config as config_lib
from rahf.core.batch import Prediction
from rahf.core.errors import CheckpointError
from rahf.critic import apply
from rahf.critic.critic import Critic, _batch_size
from rahf.critic.provenance import ModelMismatch
from rahf.images import inputs
from rahf.nn import functional
from rahf.text import split_words, train_tokenizer
from tests.helpers.critic_maker import PROMPTS, assert_same
from tests.helpers.image_maker import encode, smooth


def direct(critic: Critic, data: list[bytes], prompts: list[str]) -> Prediction:
    """What evaluation computes: the loader's examples through the network."""
    config, tokenizer = critic.config, critic.tokenizer
    rows = []
    for number, (image, prompt) in enumerate(zip(data, prompts)):
        words = tuple(split_words(prompt))
        record = Record(str(number), prompt, words, (1,) * len(words), image, None, None, np.full(4, np.nan))
        rows.append(examples.example(record, number, config.data, config.model.image_size, tokenizer))
    suffix = tokenizer.suffix_ids[0]

    @jax.jit
    def run(params, batch):
        return apply.predict(functional.merge(critic.graphdef, params), batch, suffix)

    return jax.device_get(run(critic.params, examples.stack(rows)))


def test_prediction_equals_evaluation(critic):
    large = smooth(500, 700, 3)
    data = [encode(large, "JPEG"), encode(large), encode(smooth(20, 50), "WEBP", lossless=True)]
    expected = direct(critic, data, PROMPTS[:3])
    prediction = critic(data, PROMPTS[:3])
    assert_same(prediction, expected)
    for name, field in zip(Prediction._fields, prediction):
        assert field.dtype == np.float32 and field.flags.writeable, name
    assert prediction.heatmaps.shape == (3, 32, 32, 2) and prediction.word_probabilities.shape == (3, 8)
    assert np.ptp(prediction.scores, 0).min() > 0.01  # the network does look at its input
    for one in zip(critic.feedback(data, PROMPTS[:3]), expected.scores, expected.word_probabilities):
        np.testing.assert_allclose(list(one[0].scores.values()), one[1], atol=1e-5)
        np.testing.assert_allclose(one[0].word_probabilities, one[2][: len(one[0].words)], atol=1e-5)


def test_batch_size_and_company_change_nothing(critic, pictures):
    together = critic(pictures, PROMPTS)
    for size in (1, 4):
        assert_same(critic(pictures, PROMPTS, batch_size=size), together)
    alone = critic(pictures[3], PROMPTS[3])
    assert_same(alone, Prediction(*(field[3:4] for field in together)))


def test_last_batch_compiles_nothing(tiny_run, pictures):
    critic = rahf.load(tiny_run)
    for count in (5, 4, 3, 2, 1):
        critic(pictures[:count], PROMPTS[:count], batch_size=2)
    assert critic._forward._cache_size() == 1
    critic.feedback(pictures, PROMPTS, batch_size=2)
    assert critic._forward._cache_size() == 1


def test_default_batch_is_small_for_few_and_bounded_for_many(critic):
    assert [_batch_size(None, n) for n in (1, 2, 3, 5, 16, 17, 1000)] == [1, 2, 4, 8, 16, 16, 16]
    assert _batch_size(7, 1000) == 7
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        critic([np.zeros((4, 4, 3), np.uint8)], "a cat", batch_size=0)


def test_bfloat16_computes_near_float32(critic, tiny_run, pictures):
    half = rahf.load(tiny_run, dtype="bfloat16")
    assert half.config.model.compute_dtype == "bfloat16" and half.model_id == critic.model_id
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    prediction, expected = half(pictures, PROMPTS), critic(pictures, PROMPTS)
    assert prediction.scores.dtype == np.float32
    difference = np.abs(prediction.scores - expected.scores).max()
    assert 1e-6 < difference < 0.1
    with pytest.raises(ValueError, match="expected float32 or bfloat16, found float16"):
        rahf.load(tiny_run, dtype=np.float16)


def test_progress_only_on_request_and_on_stderr(critic, pictures, capfd, monkeypatch):
    critic(pictures, PROMPTS, batch_size=2, progress=True)
    assert capfd.readouterr() == ("", "")  # not a terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    critic(pictures, PROMPTS, batch_size=2)
    assert capfd.readouterr() == ("", "")
    critic(pictures, PROMPTS, batch_size=2, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "predicting" in err


def test_long_lists_show_how_far_they_are(critic, pictures, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(inputs, "_MANY", 4)
    critic(pictures, PROMPTS, batch_size=2)  # 5 images are many now
    assert "predicting" in capfd.readouterr().err
    critic(pictures, PROMPTS, batch_size=2, progress=False)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "rich.console", None)  # as where only an exported file is read
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    critic(pictures, PROMPTS, batch_size=2)
    assert "predicting 2/5" in capfd.readouterr().err


def test_predictions_and_feedback_carry_what_the_critic_is(critic, pictures):
    prediction, one = critic(pictures, PROMPTS), critic.feedback(pictures[0], PROMPTS[0])[0]
    assert prediction.provenance == critic.provenance
    assert prediction.model_id == one.model_id == critic.model_id
    assert prediction.preprocessing_hash == one.preprocessing_hash and re.fullmatch(
        "[0-9a-f]{12}", one.preprocessing_hash
    )
    assert prediction.weight_license == one.weight_license == "not specified"
    assert prediction.percentiles is None and one.percentiles is None
    tree = one.to_json()
    assert tree["preprocessing"] == one.preprocessing_hash and tree["weight_license"] == "not specified"
    other = dataclasses.replace(one, model_id="other-1-abc")
    assert one.compare(one) == dict.fromkeys(one.scores, 0.0)
    with pytest.warns(ModelMismatch, match="no common scale"):
        one.compare(other)


def test_model_id_follows_the_parameters(critic, tiny_run):
    assert critic.model_id == rahf.load(tiny_run / "checkpoints" / "best" / "7").model_id
    assert re.fullmatch(r"tiny-7-[0-9a-f]{12}", critic.model_id)
    params = jax.tree.map(lambda x: x, critic.params)
    params["projection"]["bias"] = params["projection"]["bias"].at[0].add(1e-6)
    other = Critic(critic.config, params, critic.tokenizer, "tiny", 7)
    assert other.model_id != critic.model_id


@pytest.fixture
def copied(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_load_says_what_is_wrong(copied, tmp_path):
    with pytest.raises(CheckpointError, match="no such file or directory"):
        rahf.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a model: expected a run directory"):
        rahf.load(tmp_path / "empty")
    config = json.loads((copied / "config.json").read_text())
    config["model"]["vit"]["width"] = 48
    (copied / "config.json").write_text(json.dumps(config))
    shapes = r"another architecture:\n(.*\n)*.*shape \(192, 32\), expected \(192, 48\)"
    with pytest.raises(CheckpointError, match=shapes):
        rahf.load(copied)
    config["model"]["vit"]["widht"] = config["model"]["vit"].pop("width")
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(config_lib.ConfigError, match="unknown field 'widht'. Did you mean 'width'?"):
        rahf.load(copied)


def test_load_checks_the_vocabulary(copied, critic):
    model = copied / "tokenizer.model"
    model.unlink()
    with pytest.raises(CheckpointError, match="its vocabulary cannot be read.*tokenizer.model"):
        rahf.load(copied)
    letters = ["".join(chr(0x4E00 + i * 50 + j) for j in range(50)) for i in range(8)]
    model.write_bytes(train_tokenizer(letters, 1000))
    with pytest.raises(CheckpointError, match="pieces, model.t5.vocab_size is only .* not the vocabulary"):
        rahf.load(copied)
