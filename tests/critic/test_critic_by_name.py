"""Scores and heatmaps by name, rankings, rewards and token pairs; and arguments in the wrong order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.core.errors import ImageError, NotFinite, NotPredicted
from rahf.critic import energy
from rahf.critic.critic import Critic
from rahf.critic.provenance import ModelMismatch, Provenance, ScoreArray
from rahf.steer.best_of_n import select
from rahf.text import Tokens
from rahf.text.prompts import PromptWarning
from tests.helpers.critic_maker import PROMPTS
from tests.helpers.image_maker import encode, smooth

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
        with pytest.raises(ValueError, match="no score is called 'overal'. Did you mean 'overall'"):
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


def test_scores_that_are_not_finite_are_an_error_that_names_the_picture(critic, pictures, monkeypatch):
    def bad(params, squares, *text):
        return np.where(np.arange(len(squares))[:, None] == 1, np.nan, np.full((len(squares), 4), 0.5))

    monkeypatch.setattr(critic, "_scores", bad)
    for call in (lambda: critic.rank(PROMPTS[0], pictures), lambda: critic.score(pictures, PROMPTS)):
        with pytest.raises(NotFinite, match=r"image 1: the network's scores are not finite"):
            call()


def test_what_is_not_predicted_is_refused(critic, pictures, monkeypatch):
    """A head that no label was ever compared with: NaN in predictions, an error wherever it would decide."""
    learnt = dict.fromkeys(critic.outputs.label_names, 5) | {
        "score/overall": 0,
        "heatmap/misalignment": 0,
        "keyword": 0,
    }
    partial = Critic(critic.config, critic.params, critic.tokenizer, network=critic.network,
                     outputs=critic.outputs.learnt(learnt))  # fmt: skip
    prediction, whole = partial(pictures[:2], PROMPTS[:2]), critic(pictures[:2], PROMPTS[:2])
    assert np.isnan(prediction.scores[:, 3]).all() and np.isnan(prediction.word_probabilities).all()
    np.testing.assert_array_equal(np.asarray(prediction.scores)[:, :3], np.asarray(whole.scores)[:, :3])
    np.testing.assert_array_equal(prediction.heatmaps[..., 0], whole.heatmaps[..., 0])
    assert np.isnan(prediction.heatmaps[..., 1]).all()
    never = "does not predict 'overall': no example that it was trained on had such a label; it predicts plausibility"
    for call in (
        lambda: partial.score(pictures, PROMPTS),
        lambda: partial.rank(PROMPTS[0], pictures),
        lambda: partial.reward({"overall": 1, "alignment": 1}),
        lambda: energy.score(partial, PROMPTS[0], "overall"),
    ):
        with pytest.raises(NotPredicted, match=never):
            call()
    for call in (
        lambda: energy.heatmap(partial, PROMPTS[0], "misalignment"),
        lambda: prediction.heatmap("misalignment"),
        lambda: prediction.score(),
        lambda: select(prediction, "overall", best_of=False),
        lambda: partial.feedback(pictures, PROMPTS, generate=True),
    ):
        with pytest.raises(NotPredicted):
            call()
    weighted = {"alignment": 2.0, "plausibility": -1.0, "overall": 0.0}  # NaN does not reach the sum
    expected = 2 * np.asarray(whole.scores)[:, 1] - np.asarray(whole.scores)[:, 0]
    np.testing.assert_allclose(partial.score(pictures[:2], PROMPTS[:2], weighted), expected, atol=1e-5)
    tokens = partial.tokens(PROMPTS[0])
    pixels = np.full((1, 32, 32, 3), 0.5, np.float32)
    total = float(energy.score(partial, PROMPTS[0], weighted)(pixels)[0])
    assert np.isclose(total, 1 - float(partial.reward(weighted)(pixels, tokens)[0]), atol=1e-5)
    feedback = partial.feedback(pictures[0], PROMPTS[0])[0]
    assert feedback.to_json()["scores"]["overall"] is None and feedback.decided_by == "nothing"
    with pytest.raises(NotPredicted):
        feedback.score("overall")
    assert "not learnt, and so not predicted: misalignment heatmap, overall score, misaligned words" in repr(partial)


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
    with pytest.raises(ValueError, match="no score is called 'overal'"):
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
