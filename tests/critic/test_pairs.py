"""Pairs of known direction: the damage stays in its box, the ranking loss by hand, and its part in a run's loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, CriticConfig, LossConfig, TrainConfig
from rahf.core import batch as batch_lib
from rahf.core.errors import ConfigError
from rahf.critic import pairs
from rahf.critic.networks.outputs import Logits
from rahf.critic.task import CriticTask

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)


def test_damage_stays_in_its_box_and_is_repeatable():
    worsened = jax.jit(pairs.worsened)
    worse = worsened(jax.random.key(0), IMAGES)
    whole = IMAGES.astype(np.float32) / 255
    assert worse.image.min() >= 0 and worse.image.max() <= 1 and worse.visible.all()
    outside = np.asarray(worse.region) == 0
    np.testing.assert_allclose(np.asarray(worse.image)[outside], whole[outside], atol=1e-6)
    assert (np.abs(worse.image - whole).max((1, 2, 3)) > 0.1).all()
    np.testing.assert_array_equal(worsened(jax.random.key(0), IMAGES).image, worse.image)
    assert np.abs(worsened(jax.random.key(1), IMAGES).image - worse.image).max() > 0.1
    # A grey wall stays one where its pixels are shifted: that is not worse. Noise is.
    flat = worsened(jax.random.key(0), np.full((40, 16, 16, 3), 128, np.uint8))
    changed = np.abs(flat.image - 128 / 255).max((1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(flat.visible, changed)
    assert 8 < changed.sum() < 32


def test_ranking_by_hand():
    """Inside, the mean rises by 0.05: short of 0.2 by 0.15, and enough for 0.04."""
    before, after = np.array([[[0.1, 0.3], [0.9, 0.9]]]), np.array([[[0.2, 0.3], [0.0, 0.0]]])
    region = np.array([[[1.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_allclose(pairs.ranking(before, after, region, 0.2), [0.15], atol=1e-6)
    np.testing.assert_allclose(pairs.ranking(before, after, region, 0.04), [0.0], atol=1e-6)


def test_a_run_with_pairs():
    """The part joins the loss with its weight; a critic that sees the damage has none, and labels that are missing do
    not count."""
    config = Config(loss=LossConfig(heatmap_weight=0.0, score_weight=0.0, keyword_weight=0.0, pair_weight=0.5))
    task = CriticTask(config, None)
    assert task.loss_parts[-1] == "pair"
    fields = {name: None for name in batch_lib.Batch._fields}
    mask = np.ones((6, 2), bool)
    mask[4:] = False
    tokens = np.zeros((6, 1), np.int32)
    batch = batch_lib.Batch(**fields)._replace(
        image=IMAGES, heatmaps=np.zeros((6, 16, 16, 2), np.uint8), heatmap_mask=mask, scores=np.zeros((6, 4)),
        score_mask=np.zeros((6, 4), bool), target_ids=tokens, target_mask=tokens > 0, word_mask=tokens > 0,
    )  # fmt: skip
    clean = jnp.asarray(IMAGES / 255, jnp.float32)

    whole = task.normalizers(batch)

    @jax.jit
    def run(hotter, normalizers):
        def model(batch, dropout_key):
            change = jnp.abs(batch.image.astype(jnp.float32) - clean) if batch.image.dtype != np.uint8 else 0 * clean
            hot = hotter * (change.max(-1) > 1e-3)
            return Logits(jnp.stack([hot, hot], -1), jnp.zeros((6, 4)), None)

        return task.loss(model, batch, jax.random.key(0), None, jnp.int32(0), normalizers)

    blind, seeing = run(0.0, whole), run(9.0, whole)
    assert float(blind.parts["pair"]) == pytest.approx(0.1) and float(blind.total) == pytest.approx(0.05)
    assert float(seeing.parts["pair"]) == 0.0
    # A part of a batch is divided by the count of the whole.
    halved = run(0.0, whole._replace(heatmaps=2 * whole.heatmaps))
    assert float(halved.parts["pair"]) == pytest.approx(0.05)


def test_pairs_that_cannot_be_compared_are_refused():
    paired = Config(loss=LossConfig(pair_weight=1.0))
    for changed, message in (
        (
            dict(model=CriticConfig(variant="augmented-prompt")),
            "set model.variant to multi-head",
        ),
        (dict(train=TrainConfig(cache_tower=True)), "set train.cache_tower to False"),
    ):
        with pytest.raises(ConfigError, match=message):
            pairs.check(dataclasses.replace(paired, **changed))
