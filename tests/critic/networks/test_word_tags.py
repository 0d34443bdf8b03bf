"""The tag head: targets and loss by hand, and that it teaches the tower."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, LossConfig, ResNetBaselineConfig
from rahf.core.batch import Batch
from rahf.core.errors import ConfigError
from rahf.critic import losses
from rahf.critic.networks import word_tags
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.training.step import loss_and_gradients
from tests.helpers.model_maker import SMALLEST, fake, made

TAGGED = dataclasses.replace(SMALLEST, tag_head=True)
VOCABULARY = SMALLEST.t5.vocab_size


def words(**fields):
    """Two examples: pieces 10 11 | 12 | 13 with the second word misaligned, and 12 | 14, without labels."""
    none = np.zeros((2, 4), np.int32)
    batch = Batch(**dict.fromkeys(Batch._fields))._replace(
        prompt_ids=np.array([[10, 11, 12, 13, 1, 0], [12, 14, 1, 0, 0, 0]], np.int32),
        word_end=np.array([[1, 2, 3, -1], [0, 1, -1, -1]], np.int32),
        word_labels=none + [[1, 0, 1, 0], [1, 1, 0, 0]],
        word_mask=np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool),
        heatmap_mask=np.zeros((2, 2), bool),
        score_mask=np.zeros((2, 4), bool),
        target_mask=np.zeros((2, 6), bool),
        target_ids=np.zeros((2, 6), np.int32),
    )
    return batch._replace(**fields)


def pieces(mask):
    return [np.flatnonzero(row).tolist() for row in np.asarray(mask)]


def test_targets():
    tags = jax.jit(word_tags.tag_targets, static_argnums=1)(words(), VOCABULARY)
    assert pieces(tags.in_prompt) == [[10, 11, 12, 13], []]  # neither the end of sequence nor padding
    assert pieces(tags.shown) == [[10, 11, 13], []]
    everything = words(word_mask=np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool))
    assert pieces(word_tags.tag_targets(everything, VOCABULARY).shown) == [[10, 11, 13], [12, 14]]


def test_a_word_said_twice_is_shown_if_one_of_them_is():
    twice = words(prompt_ids=np.array([[10, 12, 12, 13, 1, 0], [12, 14, 1, 0, 0, 0]], np.int32))
    assert pieces(word_tags.tag_targets(twice, VOCABULARY).shown)[0] == [10, 12, 13]


def test_words_cut_off_are_left_out():
    cut = words(word_end=np.array([[1, 2, -1, -1], [0, 1, -1, -1]], np.int32))
    assert pieces(word_tags.tag_targets(cut, VOCABULARY).in_prompt)[0] == [10, 11, 12]


def test_loss_by_hand():
    # Said in the batch: 10, 11, 12, 13. Logits ln 3 say 3/4; of the example with labels 10, 11, 13 are shown.
    logits = np.zeros((2, VOCABULARY), np.float32) + math.log(3)
    batch = words()
    complete = losses.counts(LossConfig(), batch, None, VOCABULARY)
    actual = losses._tag_mean(logits, batch, complete)
    assert float(actual) == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4, rel=1e-5)
    assert float(losses._tag_mean(None, batch, complete)) == 0


def test_log_mean_exp_over_places():
    graphdef, _ = functional.abstract(lambda: word_tags.TagHead(2, 3, dtype=jnp.dtype("float32")))
    kernel, bias = np.array([[1.0, 0, 0], [0, 2, 0]], np.float32), np.array([0, 0, -1], np.float32)
    head = functional.merge(graphdef, {"kernel": kernel, "bias": bias})
    seen = np.log(np.array([[[2.0, 1], [4, 3]]], np.float32))
    # mean(2, 4), mean(1, 9), mean(1, 1) · e^-1
    np.testing.assert_allclose(head(seen), [[math.log(3), math.log(5), -1]], rtol=1e-5)


@pytest.mark.parametrize("step, weight", [(0, 8.0), (5, 5.0), (10, 2.0), (99, 2.0), (None, 8.0)])
def test_weight_falls(step, weight):
    config = LossConfig(0.0, 0.0, 0.0, tag_weight=8.0, tag_steps=10, tag_rest=0.25)
    parts = losses.Parts(*map(jnp.float32, (1, 1, 1, 0.5)))
    assert float(losses._weighted(config, parts, step)) == pytest.approx(weight / 2)


def test_only_the_tower_and_the_head_learn_from_it():
    graphdef, params = made(TAGGED)
    config = Config(model=TAGGED, loss=LossConfig(0.0, 0.0, 0.0, tag_weight=1.0))
    one = jax.jit(lambda params: loss_and_gradients(CriticTask(config, None), graphdef, params, fake(2), 0))
    (loss, parts), gradients = one(params)
    assert float(loss) == pytest.approx(float(parts["tag"])) and float(loss) > 0.1
    moved = {path.split("/")[0] for path, leaf in functional.flatten(gradients).items() if np.abs(leaf).max() > 0}
    assert moved == {"vit", "tags"}


def test_without_a_head_there_is_no_loss():
    graphdef, params = made(SMALLEST)
    logits = functional.merge(graphdef, params)(fake(2))
    _, parts = losses.total(LossConfig(tag_weight=1.0), logits, fake(2))
    assert float(parts.tag) == 0
    assert "tag" not in CriticTask(Config(model=SMALLEST), None).loss_parts


@pytest.mark.parametrize("head, weight", [(True, 0.0), (False, 1.0)])
def test_head_and_weight_belong_together(head, weight):
    config = Config(model=dataclasses.replace(SMALLEST, tag_head=head), loss=LossConfig(tag_weight=weight))
    with pytest.raises(ConfigError, match="model.tag_head .* set both or neither"):
        losses.check(config)
    losses.check(Config())
    with pytest.raises(ConfigError, match="model.tag_head False with loss.tag_weight 1.0"):
        losses.check(Config(model=ResNetBaselineConfig(), loss=LossConfig(tag_weight=1.0)))
