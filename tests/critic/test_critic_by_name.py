"""Scores and heatmaps by name, rankings, rewards and token pairs; and arguments in the wrong order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.core.errors import ImageError
from rahf.critic.critic import Critic
from rahf.critic.provenance import ModelMismatch, Provenance, ScoreArray
from rahf.text import Tokens
from rahf.text.prompts import PromptWarning
from tests.helpers.critic_maker import PROMPTS
from tests.helpers.image_maker import encode, smooth

pytestmark = pytest.mark.usefixtures("quickly")

WEIGHTED = {"alignment": 2.0, "plausibility": -0.5}


def test_score_is_a_column_of_the_prediction(critic, pictures):
    prediction = critic.predict(pictures, PROMPTS, batch_size=2)
    for column, name in enumerate(SCORES):
        scores = critic.score(pictures, PROMPTS, name, batch_size=2)
        assert scores.shape == (5,) and scores.dtype == np.float32
        np.testing.assert_allclose(scores, prediction.scores[:, column], atol=1e-5)
        np.testing.assert_array_equal(prediction.score(name), prediction.scores[:, column])
    for column, name in enumerate(HEATMAPS):
        np.testing.assert_array_equal(prediction.heatmap(name), prediction.heatmaps[..., column])
    expected = 2 * prediction.scores[:, 1] - 0.5 * prediction.scores[:, 0]
    np.testing.assert_allclose(prediction.score(WEIGHTED), expected, atol=1e-6)
    np.testing.assert_allclose(critic.score(pictures, PROMPTS, WEIGHTED, batch_size=2), expected, atol=2e-5)
    assert critic.score(pictures[0], PROMPTS[0]).shape == (1,)
    one = critic.feedback(pictures[0], PROMPTS[0])[0]
    assert one.score("overall") == one.scores["overall"]
    assert one.score(WEIGHTED) == pytest.approx(2 * one.scores["alignment"] - 0.5 * one.scores["plausibility"])


def test_scores_of_weight_zero_are_left_out():
    """A baseline gives NaN for scores that it does not predict."""
    partial = Prediction(None, np.array([[0.25, np.nan, 0.5, np.nan]], np.float32), None)
    assert partial.score("plausibility") == 0.25 and np.isnan(partial.score("overall"))
    assert partial.score({"plausibility": 2.0, "aesthetics": 1.0, "overall": 0.0}) == 1.0
    with pytest.raises(ValueError, match="this prediction holds scores only"):
        partial.heatmap("implausibility")
    with pytest.raises(ValueError, match="no heatmap is called 'artifacts'"):
        partial.heatmap("artifacts")


def test_wrong_names_fail_before_anything_is_predicted(critic, pictures, monkeypatch):
    monkeypatch.setattr(Critic, "_run", None)
    for call in (critic.score, lambda *a: critic.rank(PROMPTS[0], pictures, a[2])):
        with pytest.raises(ValueError, match="no score 'overal'. Did you mean 'overall'"):
            call(pictures, PROMPTS, "overal")


def test_scores_of_two_models_warn(critic, pictures):
    mine = critic.score(pictures[:1], PROMPTS[0])
    with pytest.warns(ModelMismatch):
        mine - ScoreArray(np.ones(1, np.float32), Provenance("other", "x"))


def test_rank_orders_best_first(critic, pictures):
    images = [*pictures, pictures[2]]
    ranking = critic.rank(PROMPTS[0], images, "aesthetics", batch_size=2)
    np.testing.assert_allclose(ranking.scores, critic.score(images, PROMPTS[0], "aesthetics"), atol=1e-5)
    assert ranking.order.tolist() == sorted(range(6), key=lambda i: (-ranking.scores[i], i))
    assert ranking.scores[2] == ranking.scores[5] and ranking.best == int(np.argmax(ranking.scores))
    order, scores = ranking
    assert order is ranking.order and scores is ranking.scores


def test_rank_refuses_scores_that_are_not_predicted(critic, pictures, monkeypatch):
    monkeypatch.setattr(critic, "_scores", lambda params, squares, *text: np.full((len(squares), 4), np.nan))
    with pytest.raises(ValueError, match="this model does not predict 'overall'"):
        critic.rank(PROMPTS[0], pictures)
    assert np.isnan(critic.score(pictures, PROMPTS)).all()


def test_long_prompts_warn_on_the_calling_line(critic, pictures):
    prompt = "a b c d e f g h nine"
    for call in (
        lambda: critic.score(pictures[0], prompt),
        lambda: critic.rank(prompt, pictures[0]),
        lambda: critic.predict(pictures[0], prompt),
    ):
        with pytest.warns(PromptWarning, match="not judged: nine") as caught:
            call()
        assert caught[0].filename == __file__


def test_tokens_go_in_as_a_pair(critic, pictures):
    tokens = critic.tokens(PROMPTS[:2])
    assert isinstance(tokens, Tokens) and tokens.text_ids.shape == tokens.text_mask.shape == (2, 24)
    pixels = np.stack([pictures[1], pictures[1][::-1]])
    separate = critic.scores(pixels, tokens.text_ids, tokens.text_mask)
    np.testing.assert_array_equal(critic.scores(pixels, tokens), separate)
    np.testing.assert_array_equal(critic.scores(pixels, tuple(tokens)), separate)
    np.testing.assert_array_equal(critic.scores(pixels, tokens, params=critic.params), separate)
    np.testing.assert_array_equal(critic.heatmaps(pixels, tokens), critic.heatmaps(pixels, *tokens))
    np.testing.assert_allclose(jax.jit(critic.scores)(pixels, tokens), separate, atol=1e-5)
    one_by_one = jax.vmap(critic.scores)(pixels, Tokens(*map(jnp.asarray, tokens)))
    np.testing.assert_allclose(one_by_one, separate, atol=1e-5)
    for prompt in ("a cat", ["a cat"]):
        with pytest.raises(TypeError, match=r"tokens: expected those of critic.tokens\(prompts\)"):
            critic.scores(pixels, prompt)
    with pytest.raises(TypeError, match=r"critic.score\(images, prompts\) takes paths"):
        critic.scores("cat.png", tokens)


def test_reward_is_pure_and_named(critic, pictures):
    tokens = critic.tokens(PROMPTS[0])
    pixels = jnp.asarray(pictures[1], jnp.float32) / 255
    scores = critic.scores(pixels, tokens)
    reward = critic.reward("aesthetics")
    assert reward(pixels, tokens) == reward(pixels, *tokens) == scores[2] and reward(pixels, tokens).shape == ()
    np.testing.assert_allclose(critic.reward(WEIGHTED)(pixels, tokens), 2 * scores[1] - 0.5 * scores[0], rtol=1e-5)
    gradient = jax.grad(lambda x: reward(x, tokens))(pixels)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: critic.scores(x, tokens)[2])(pixels), atol=1e-7)
    with pytest.raises(ValueError, match="no score 'overal'"):
        critic.reward("overal")


def test_arguments_in_the_wrong_order_are_recognised(critic, tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(encode(smooth(8, 8)))
    array, picture = smooth(8, 8), Image.fromarray(smooth(8, 8))
    for image in (array, picture, file, file.read_bytes(), [array], (picture,)):
        with pytest.raises(TypeError, match=r"prompts: found an image .* write critic\(images, prompts\)"):
            critic("a red cat", image)
    with pytest.raises(ValueError, match=r"cat.png' is an image file, not a text; write critic\(images, prompts\)"):
        critic("a red cat", str(file))
    with pytest.raises(ValueError, match="cat.png' is an image file"):
        critic([array, array], ["a red cat", str(file)])
    with pytest.raises(ValueError, match=r"seem to be swapped: 'x.jpg' is no text; write critic.feedback\(images"):
        critic.feedback(["a red cat", "two dogs"], ["x.jpg", "y.jpg"])
    with pytest.raises(TypeError, match=r"write critic.rank\(prompt, images\)"):
        critic.rank([array, array], file)
    with pytest.raises(ValueError, match=r"write critic.rank\(prompt, images\)"):
        critic.rank([str(file)], "a red cat")
    with pytest.raises(TypeError, match="prompt: expected one text for all images, found list"):
        critic.rank(["a red cat"], [array])
    with pytest.raises(TypeError, match=r"write critic.score\(images, prompts, score\)"):
        critic.score("a red cat", array)
    with pytest.raises(ImageError, match="a red cat: No such file or directory; this looks like a prompt"):
        critic("a red cat", "a red cat")
    assert critic.score(array, "IMG_1234.JPG").shape == (1,)  # a popular prompt
