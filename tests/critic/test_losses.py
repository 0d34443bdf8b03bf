"""Losses against hand-computed values; masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from rahf.config import LossConfig
from rahf.core import batch as batch_lib
from rahf.critic import losses
from rahf.critic.apply import word_probabilities
from rahf.critic.networks.outputs import Logits

total = jax.jit(losses.total, static_argnums=(0, 4))
heatmap_values = jax.jit(losses.heatmap_values, static_argnums=2)
score_values = jax.jit(losses.score_values, static_argnums=2)
sequence_values = jax.jit(losses.sequence_values)
masked_mean = jax.jit(losses.masked_mean)
probabilities = jax.jit(word_probabilities, static_argnums=3)
gradients = jax.jit(jax.value_and_grad(losses.total, argnums=1, has_aux=True), static_argnums=0)


def close(found, wanted, **kwargs):
    np.testing.assert_allclose(np.asarray(found), wanted, **{"rtol": 1e-5, "atol": 1e-7} | kwargs)


# One heatmap of 1 x 2 pixels: predicted 1/2 and 3/4, true 0 and 1.
MAP = logit(np.array([0.5, 0.75], np.float32)).reshape(1, 1, 2, 1)
TRUE = np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1)


def test_heatmap_mse():
    close(heatmap_values(MAP, TRUE, "mse"), [[(1 / 4 + 1 / 16) / 2]])


def test_heatmap_weighted_mse():
    # Weights 1/255 and 256/255, divided by their mean 257/510: 2/257 and 512/257.
    wanted = (2 / 257 * 1 / 4 + 512 / 257 * 1 / 16) / 2
    close(heatmap_values(MAP, TRUE, "weighted-mse"), [[wanted]])
    constant = np.full_like(TRUE, 0.3)
    close(heatmap_values(MAP, constant, "weighted-mse"), heatmap_values(MAP, constant, "mse"))


def test_heatmap_bce():
    close(heatmap_values(MAP, TRUE, "bce"), [[(math.log(2) + math.log(4 / 3)) / 2]])


def test_places_by_hand():
    """Of two pixels a quarter and three quarters of the label; how hot the prediction is does not count."""
    true = jnp.array([[[[0.25]], [[0.75]]]])
    for heat in (1.0, 0.5, 0.01):
        logits = lambda *values: jax.scipy.special.logit(heat * jnp.array(values)[None, :, None, None])  # noqa: E731
        close(losses.place_values(logits(0.2, 0.6), true), [[0.0]], atol=1e-6)
        wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
        close(losses.place_values(logits(0.3, 0.3), true), [[wanted]])
    both = losses.heatmap_values(logits(0.3, 0.3), true, "mse", 0.5)
    close(both, heatmap_values(logits(0.3, 0.3), true, "mse") + 0.5 * wanted)


def test_empty_labels_say_nothing_about_places():
    value, slope = jax.value_and_grad(lambda x: losses.place_values(x, jnp.zeros_like(x)).sum())(MAP)
    assert value == 0 and (slope == 0).all()


@pytest.mark.parametrize("kind", ["mse", "weighted-mse", "bce"])
def test_the_best_prediction_is_the_truth(kind):
    true = np.array([0.1, 0.4, 0.7, 0.9], np.float32).reshape(1, 2, 2, 1)
    value = jax.jit(jax.value_and_grad(lambda logits: heatmap_values(logits, true, kind).sum()))
    best, gradient = value(logit(true))
    close(gradient, np.zeros((1, 2, 2, 1)), atol=1e-6)
    assert value(logit(true) + 0.3)[0] > best


def test_heatmaps_are_averaged_one_by_one():
    rng = np.random.default_rng(0)
    logits, true = rng.standard_normal((2, 3, 5, 2)), rng.random((2, 3, 5, 2))
    found = heatmap_values(jnp.asarray(logits), jnp.asarray(true), "mse")
    for i in range(2):
        for m in range(2):
            close(found[i, m], np.mean((expit(logits[i, ..., m]) - true[i, ..., m]) ** 2))


def test_score_values():
    logits, true = logit(np.array([[0.5, 0.8]], np.float32)), np.array([[0.1, 1.0]], np.float32)
    close(score_values(logits, true, "mse"), [[0.16, 0.04]])
    cross = [-(0.1 * math.log(0.5) + 0.9 * math.log(0.5)), -math.log(0.8)]
    close(score_values(logits, true, "bce"), [cross])


def test_sequence_values():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], np.float32)) + 7.0
    close(sequence_values(logits, np.array([[0, 1]])), [[math.log(2), math.log(10)]])
    close(sequence_values(np.zeros((1, 1, 32)), np.array([[5]])), [[math.log(32)]])


def test_masked_mean():
    values = jnp.asarray([[1.0, 2.0], [6.0, jnp.nan]])
    close(masked_mean(values, jnp.asarray([[True, True], [True, False]])), 3.0)
    close(masked_mean(values, jnp.zeros((2, 2), bool)), 0.0)
    assert np.isnan(masked_mean(values, jnp.ones((2, 2), bool)))


# The whole


def hand_made():
    """Two examples of 2 x 2 pixels and three target tokens, with logits of probability 1/2 or certainty."""
    batch = batch_lib.fake(2, 2, 4, 5, 2, vocab_size=8)
    heatmaps = np.zeros((2, 2, 2, 2), np.uint8)
    heatmaps[1, ..., 1] = 255
    target = np.array([[5, 6, 1, 0, 0], [7, 1, 0, 0, 0]], np.int32)
    batch = batch._replace(
        heatmaps=heatmaps,
        scores=np.array([[0.5, 0.0, 1.0, 0.5], [0.5, 0.5, 0.5, 0.1]], np.float32),
        target_ids=target,
        target_mask=target != 0,
    )
    sequence = jnp.zeros((2, 5, 8)).at[0, 0, 5].set(jnp.log(9.0))
    return batch, Logits(jnp.zeros((2, 2, 2, 2)), jnp.zeros((2, 4)), sequence)


def test_total_by_hand():
    batch, logits = hand_made()
    loss, parts = total(LossConfig(), logits, batch)
    close(parts.heatmap, 0.25)
    close(parts.score, (0.25 + 0.25 + 0.16) / 8)
    sequence = (math.log(16 / 9) + 4 * math.log(8)) / 5  # five tokens, the padding does not count
    close(parts.keyword, sequence)
    close(loss, 0.25 + 0.0825 + sequence)


def test_weights_and_kinds():
    batch, logits = hand_made()
    config = LossConfig(2.0, 3.0, 0.0, heatmap_loss="bce", score_loss="bce")
    loss, parts = total(config, logits, batch)
    close(parts.heatmap, math.log(2))
    close(parts.score, math.log(2))
    assert parts.keyword > 0  # reported as it is, though it weighs nothing
    close(loss, 5 * math.log(2))


def test_labels_weigh_the_same_however_many_have_them():
    batch, logits = hand_made()
    mask = np.array([[True, True, False, False], [True, False, False, True]])
    _, parts = total(LossConfig(), logits, batch._replace(score_mask=mask))
    close(parts.score, (0.0 + 0.25 + 0.16) / 3)  # plausibility twice, aesthetics never
    mask = np.array([[True, True], [True, False]])
    heatmaps = np.zeros((2, 2, 2, 2), np.uint8)
    heatmaps[..., 1] = 255
    batch = batch._replace(heatmap_mask=mask, heatmaps=heatmaps)
    logits = logits._replace(heatmaps=logits.heatmaps.at[1, ..., 0].set(20.0))
    _, parts = total(LossConfig(), logits, batch)
    close(parts.heatmap, ((0.25 + 1.0) / 2 + 0.25) / 2)


def test_nothing_labelled():
    batch, logits = hand_made()
    masks = ("heatmap_mask", "score_mask", "target_mask")
    batch = batch._replace(**{name: np.zeros_like(getattr(batch, name)) for name in masks})
    loss, parts = total(LossConfig(), logits, batch)
    assert (float(loss), *map(float, parts)) == (0,) * 5


@pytest.mark.parametrize("kind", ["mse", "bce"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, 0.7])
def test_a_missing_label_has_weight_0(kind, garbage):
    batch, logits = hand_made()
    config = LossConfig(heatmap_loss=kind, score_loss=kind)
    batch = batch._replace(
        score_mask=np.array([[True, False, True, True], [False, True, True, True]]),
        heatmap_mask=np.array([[True, False], [False, True]]),
        target_mask=batch.target_mask & np.array([[True], [False]]),
    )
    dropped = batch._replace(
        scores=np.where(batch.score_mask, batch.scores, np.float32(garbage)),
        heatmaps=np.where(batch.heatmap_mask[:, None, None], batch.heatmaps, np.uint8(99)),
        target_ids=np.where(batch.target_mask, batch.target_ids, 3),
    )
    (wanted, _), wanted_gradient = gradients(config, logits, batch)
    (found, _), gradient = gradients(config, logits, dropped)
    assert found == wanted and np.isfinite(found)
    for ours, theirs in zip(gradient[:3], wanted_gradient):
        assert np.isfinite(ours).all()
        np.testing.assert_array_equal(ours, theirs)
    assert not gradient.scores[0, 1] and not gradient.heatmaps[0, ..., 1].any()
    assert not gradient.sequence[1].any() and not gradient.sequence[0, 3:].any()
    assert gradient.heatmaps[1, ..., 1].all() and gradient.sequence[0, :3].all()


def test_suffixes_can_weigh_more():
    batch, logits = hand_made()
    target = np.array([[5, 4, 6, 1, 4], [7, 1, 0, 0, 0]], np.int32)  # one suffix, and one behind a mask
    batch = batch._replace(target_ids=target, target_mask=np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool))
    config = LossConfig(suffix_weight=3.0)
    first, rest = math.log(16 / 9), math.log(8)
    logits = logits._replace(sequence=logits.sequence.at[0, 1, 4].set(jnp.log(9.0)).at[0, 4].set(jnp.nan))
    loss, parts = total(config, logits, batch, None, 4)
    close(parts.keyword, (first + 3 * first + 4 * rest) / 8)
    close(loss, sum(parts))
    for unweighted, suffix in ((config, None), (LossConfig(), 4)):
        _, parts = total(unweighted, logits, batch, None, suffix)
        close(parts.keyword, (2 * first + 4 * rest) / 6)


def test_the_words_can_warm_up():
    batch, logits = hand_made()
    config = LossConfig(heatmap_weight=0.0, score_weight=0.0, keyword_weight=2.0, keyword_warmup_steps=4)
    share = [total(config, logits, batch, jnp.int32(step))[0] for step in (0, 1, 3, 4, 100)]
    parts = total(config, logits, batch)[1]
    close(share, np.array([0.25, 0.5, 1, 1, 1]) * 2 * float(parts.keyword))
    close(total(config, logits, batch)[0], 2 * parts.keyword)  # without a step: behind the warm-up
    close(total(LossConfig(), logits, batch, jnp.int32(0))[0], sum(parts))


# Constrained keyword scoring


def test_word_probabilities_by_hand():
    """Prompt "a ye llow cat" (pieces 5 | 6 7 | 3): after each word, the suffix 4 or what follows?"""
    prompt = np.array([[5, 6, 7, 3, 1, 0]], np.int32)
    ends = np.array([[0, 2, 3, -1]], np.int32)
    probability = np.full((1, 6, 8), 0.01, np.float32)
    probability[0, 1, [4, 6]] = 0.3, 0.6  # after "a": suffix 0.3, "ye" 0.6
    probability[0, 2, [4, 7]] = 0.9, 0.05  # inside "yellow": counts nowhere
    probability[0, 3, [4, 3]] = 0.8, 0.2  # after "yellow": suffix, "cat"
    probability[0, 4, [4, 1]] = 0.1, 0.9  # after "cat": suffix, the end
    found = probabilities(jnp.log(probability) + 3.0, prompt, ends, 4)
    close(found, [[1 / 3, 0.8, 0.1, 0.0]], rtol=1e-4)


def test_word_probabilities_of_a_full_sequence():
    """When the last word's end is the last place but one, the end of sequence follows it at the last."""
    prompt, ends = np.array([[5, 6, 1]], np.int32), np.array([[0, 1]], np.int32)
    logits = jnp.zeros((1, 3, 8)).at[0, 2, 4].set(math.log(3))
    close(probabilities(logits, prompt, ends, 4), [[0.5, 0.75]])


def test_word_probabilities_can_be_differentiated():
    prompt, ends = np.array([[5, 6, 1, 0]], np.int32), np.array([[0, 1, -1]], np.int32)
    gradient = jax.grad(lambda x: probabilities(x, prompt, ends, 4).sum())(jnp.zeros((1, 4, 8)))
    wanted = np.zeros((1, 4, 8))
    wanted[0, 1, [4, 6]] = wanted[0, 2, [4, 1]] = 0.25, -0.25
    close(gradient, wanted)


def soft_words(count, share):
    """`hand_made` with `count` target tokens in all: the first is 1 by the majority, 2 by `share` of the people."""
    batch, logits = hand_made()
    rows = {name: np.zeros((2, 5), kind) for name, kind in (("target_ids", int), ("other_ids", int),
            ("target_mask", bool), ("other_shares", np.float32))}  # fmt: skip
    rows["target_ids"][0, :2], rows["other_ids"][0, 0], rows["other_shares"][0, 0] = (1, 3), 2, share
    rows["target_mask"][0, :count] = True
    return batch._replace(**rows), logits


def test_shares_of_people_are_the_target_behind_a_word():
    batch, logits = soft_words(2, 0.25)
    logits = logits._replace(sequence=jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32))
    log_p = jax.nn.log_softmax(logits.sequence)[0]
    hard = -(log_p[0, 1] + log_p[1, 3]) / 2
    soft = -(0.75 * log_p[0, 1] + 0.25 * log_p[0, 2] + log_p[1, 3]) / 2
    close(losses.total(LossConfig(), logits, batch)[1].keyword, hard)
    close(losses.total(LossConfig(), logits, batch, soft=True)[1].keyword, soft)
    close(losses.total(LossConfig(), logits, soft_words(2, 0.0)[0], soft=True)[1].keyword, hard)
    # Token 2 begins the suffix and counts three times: its quarter has weight 3/4, of 3/4 + 3/4 + 1.
    weighted = -(0.75 * log_p[0, 1] + 0.75 * log_p[0, 2] + log_p[1, 3]) / 2.5
    close(losses.total(LossConfig(suffix_weight=3.0), logits, batch, suffix_id=2, soft=True)[1].keyword, weighted)


def test_the_best_prediction_of_a_soft_word_is_its_share():
    batch, logits = soft_words(1, 0.3)
    best = jnp.full((2, 5, 8), -20.0).at[:, :, 1].set(jnp.log(0.7)).at[:, :, 2].set(jnp.log(0.3))
    gradient = jax.grad(
        lambda values: losses.total(LossConfig(), logits._replace(sequence=values), batch, soft=True)[1].keyword
    )(best)
    close(gradient, np.zeros((2, 5, 8)), atol=1e-6)
