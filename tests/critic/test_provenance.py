"""What predictions carry: model, preprocessing, license, percentiles; and the warning when models are mixed."""

import copy
import dataclasses
import json
import pickle
import warnings

import jax
import numpy as np
import pytest

from rahf.core import labels
from rahf.core.batch import Prediction
from rahf.critic import provenance
from rahf.critic.provenance import CriticPrediction, ModelMismatch, NamedScores, Provenance, Quantiles, ScoreArray

SCORES = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]], np.float32)
ONE, OTHER = Provenance("one-7-abc", "p1"), Provenance("other-9-def", "p1")


def test_quantiles_by_hand():
    # 0, 0.01, …, 1: the quantiles are the values themselves, so the percentile is 100 times the score.
    scores = np.repeat(np.linspace(0, 1, 101)[:, None], 4, 1)
    scores[:, 1] = scores[:, 1] ** 2
    quantiles = Quantiles.from_scores(scores, "m", "a test set")
    assert quantiles.count == 101
    percentiles = quantiles.percentiles(np.array([[0.25, 0.25, 0.0, 1.0], [-1.0, 2.0, 0.505, 0.5]]))
    np.testing.assert_allclose(percentiles, [[25, 50, 0, 100], [0, 100, 50.5, 50]], atol=1e-3)
    assert percentiles.dtype == np.float32
    again = Quantiles.from_json(quantiles.to_json())
    assert again == quantiles and again.reference == "a test set"
    text = quantiles.to_json()
    huge = text.replace("1.0]", "1" + "0" * 400 + "]", 1)
    counts = [text.replace('"count": 101', f'"count": {value}') for value in ("0", "-1", "1e400", "true", '"7"')]
    odd = (text.replace("0.5", '"x"', 1), text.replace("1.0]", "NaN]", 1), huge, "[" * 100_000, *counts)
    for broken in ("{}", "[", '{"scores": 3}', *odd):
        with pytest.raises(ValueError, match="reference quantiles are damaged.*evaluate the model again"):
            Quantiles.from_json(broken)
    falling = json.loads(quantiles.to_json())
    falling["scores"]["overall"].reverse()
    with pytest.raises(ValueError, match="damaged"):
        Quantiles.from_json(json.dumps(falling))


def test_scores_of_different_models_warn_when_they_meet():
    mine, same, foreign = ScoreArray(SCORES, ONE), ScoreArray(SCORES * 2, ONE), ScoreArray(SCORES, OTHER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = mine - same
        assert isinstance(difference, ScoreArray) and difference.provenance == ONE
        np.testing.assert_array_equal(np.asarray(difference), -SCORES)
        assert type(mine > 0.3) is np.ndarray and (mine > 0.3).sum() == 5
        assert np.argmax(mine[:, 3]) == 1 and mine[0].provenance == ONE
        mine += 0  # in place
        assert mine.provenance == ONE
        assert np.concatenate([mine, same]).shape == (4, 4)
        with pytest.warns(ModelMismatch, match="one-7-abc"):
            pickle.loads(pickle.dumps(mine)) - foreign  # a worker process hands the model over, too
    for meet in (
        lambda: mine > foreign,
        lambda: mine - foreign,
        lambda: foreign[0, 0:1] == mine[0, 0:1],
        lambda: np.maximum(mine, foreign),
        lambda: mine - ScoreArray(SCORES, dataclasses.replace(ONE, preprocessing_hash="p2")),
    ):
        with pytest.warns(ModelMismatch, match="scores of different models are compared: one-7-abc .*no common scale"):
            meet()


def test_predictions_know_their_model():
    quantiles = Quantiles.from_scores(np.repeat(np.linspace(0, 1, 11)[:, None], 4, 1), "one-7-abc", "tests")
    source = dataclasses.replace(ONE, weight_license="MIT", quantiles=quantiles)
    prediction = CriticPrediction(np.zeros((2, 4, 4, 2)), SCORES, np.zeros((2, 3)), source)
    assert isinstance(prediction, Prediction) and len(tuple(prediction)) == 3
    assert (prediction.model_id, prediction.preprocessing_hash, prediction.weight_license) == ("one-7-abc", "p1", "MIT")
    np.testing.assert_allclose(prediction.percentiles, SCORES * 100, atol=1e-4)
    assert CriticPrediction(None, SCORES, None, ONE).percentiles is None
    with pytest.warns(ModelMismatch):
        _ = prediction.scores < CriticPrediction(None, SCORES, None, OTHER).scores


def test_unknown_scores_are_answered_with_the_nearest():
    np.testing.assert_array_equal(labels.weights("overall"), [0, 0, 0, 1])
    np.testing.assert_array_equal(labels.weights({"alignment": 2, "plausibility": -0.5}), [-0.5, 2, 0, 0])
    with pytest.raises(ValueError, match="no score is called 'plausability'. Did you mean 'plausibility'?"):
        labels.weights("plausability")
    with pytest.raises(
        ValueError, match="no score is called 'x'. Known: aesthetics, alignment, overall, plausibility."
    ):
        labels.weights({"x": 1.0})
    with pytest.raises(ValueError, match="expected a name or finite weights"):
        labels.weights({"overall": np.nan})
    with pytest.raises(ValueError, match="expected a name or finite weights"):
        labels.weights({})
    with pytest.raises(KeyError, match="no score is called 'overal'. Did you mean 'overall'?"):
        NamedScores(overall=0.5)["overal"]
    assert NamedScores(overall=0.5) == {"overall": 0.5} and json.dumps(NamedScores(overall=0.5)) == '{"overall": 0.5}'


def test_model_id_outlives_new_fields_of_the_config(tiny_critic):
    """Only what was chosen counts; an added field with a default is nobody's choice."""
    config = tiny_critic.config
    named = (tiny_critic.params, tiny_critic.tokenizer, "x", None)
    first = provenance.model_id(config, *named)
    extended = dataclasses.make_dataclass("Model", [("later", int, 3)], bases=(type(config.model),), frozen=True)
    fields = {f.name: getattr(config.model, f.name) for f in dataclasses.fields(config.model)}
    assert provenance.model_id(dataclasses.replace(config, model=extended(**fields)), *named) == first
    assert provenance.model_id(dataclasses.replace(config, model=extended(**fields, later=4)), *named) != first
    other = dataclasses.replace(config.model, vit=dataclasses.replace(config.model.vit, activation="gelu-tanh"))
    assert provenance.model_id(dataclasses.replace(config, model=other), *named) != first
    half = dataclasses.replace(config.model, compute_dtype="bfloat16")
    assert provenance.model_id(dataclasses.replace(config, model=half), *named) == first


def test_preprocessing_hash_follows_all_that_happens_before_the_network(tiny_critic):
    config, tokenizer = tiny_critic.config, tiny_critic.tokenizer
    described = provenance.describe_preprocessing(config, tokenizer)
    first = provenance.preprocessing_hash(described)
    assert first == tiny_critic.provenance.preprocessing_hash and len(first) == 12
    others = [
        dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=64)),
        dataclasses.replace(config, model=dataclasses.replace(config.model, image_mean=(0.4, 0.5, 0.5))),
        dataclasses.replace(config, data=dataclasses.replace(config.data, max_prompt_tokens=25)),
        dataclasses.replace(config, data=dataclasses.replace(config.data, max_words=9)),
    ]
    hashes = {provenance.preprocessing_hash(provenance.describe_preprocessing(other, tokenizer)) for other in others}
    assert len(hashes | {first}) == 5
    moved = dataclasses.replace(config, workdir="elsewhere", data=dataclasses.replace(config.data, path="other"))
    assert provenance.preprocessing_hash(provenance.describe_preprocessing(moved, tokenizer)) == first


def test_predictions_are_pickled_copied_and_mapped():
    arrays = [np.ones(shape, np.float32) for shape in ((1, 4, 4, 2), (1, 4), (1, 3))]
    prediction = CriticPrediction(*arrays, Provenance("m", "h"))
    for again in (pickle.loads(pickle.dumps(prediction)), copy.copy(prediction), copy.deepcopy(prediction)):
        assert again.model_id == "m" and again.scores.provenance == prediction.provenance
        assert all(np.array_equal(a, b) for a, b in zip(again, prediction))
    assert pickle.loads(pickle.dumps(prediction.scores)).provenance == prediction.provenance
    doubled = jax.tree.map(lambda array: 2 * np.asarray(array), prediction)
    assert type(doubled) is Prediction and (doubled.scores == 2).all()
