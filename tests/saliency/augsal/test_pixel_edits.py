"""Edits of known direction in the training of a saliency model: where they act, the loss by hand, and its part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.gaze.examples import GazeBatch
from rahf.config import ConfigError, SaliencyLossConfig
from rahf.saliency.augsal import pixel_edits
from rahf.saliency.task import SaliencyTask
from tests.helpers import gaze_maker

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(60, 190, (30, 8, 8, 3), np.uint8)
DENSITY = np.zeros((30, 4, 4), np.float32)
DENSITY[:, 1:3, 2] = [0.6, 0.3]
DENSITY[:, 0, 0] = 0.1  # less than a third of the largest


def test_edits_act_inside_the_densest_part():
    run = jax.jit(pixel_edits.edited, static_argnums=(3, 4, 5))
    result = run(jax.random.key(0), IMAGES, DENSITY, 1.0, (0.15, 0.2))
    expected = np.zeros((4, 4))
    expected[1:3, 2] = 1
    np.testing.assert_array_equal(result.mask[0], expected)
    before, inside = IMAGES.astype(np.float32) / 255, np.kron(expected, np.ones((2, 2))) > 0
    np.testing.assert_allclose(np.asarray(result.image)[:, ~inside], before[:, ~inside], atol=1e-7)
    change = (np.asarray(result.image) - before)[:, inside]
    assert result.counts.all() and (np.abs(change).max((1, 2)) > 0.01).all() and np.abs(change).max() < 0.21
    # All three kinds are drawn: one raises every channel alike, one keeps grey, one keeps the mean.
    alike = np.ptp(change, axis=(1, 2)) < 1e-3
    keeps_grey = np.abs(change.mean(2)).max(1) < 1e-3
    assert 3 < alike.sum() < 20 and 3 < keeps_grey.sum() < 20 and alike.sum() + keeps_grey.sum() < 28
    # A kind that is named is the only one.
    brighter = run(jax.random.key(0), IMAGES, DENSITY, 1.0, (0.15, 0.2), pixel_edits.KINDS.index("brightness"))
    assert (np.ptp((np.asarray(brighter.image) - before)[:, inside], axis=(1, 2)) < 1e-3).all()
    assert not run(jax.random.key(0), IMAGES, DENSITY, 0.0, (0.15, 0.2)).counts.any()
    white = run(jax.random.key(0), np.full_like(IMAGES, 255), DENSITY, 1.0, (0.15, 0.2))
    assert not white.counts[alike].any()  # it gets no brighter


def test_the_rise_by_hand():
    """Mass inside 0.2, then 0.3: it rises by log 1.5 = 0.405 nats."""
    before, after = np.log([[[0.2, 0.8]]]), np.log([[[0.3, 0.7]]])
    mask = np.array([[[1.0, 0.0]]])
    np.testing.assert_allclose(pixel_edits.rise(before, after, mask, 0.5), [0.5 - np.log(1.5)], atol=1e-6)
    np.testing.assert_allclose(pixel_edits.rise(before, after, mask, 0.4), [0.0])
    of_before, of_after = jax.grad(lambda a, b: pixel_edits.rise(a, b, mask, 0.5).sum(), (0, 1))(
        jnp.asarray(before), jnp.asarray(after)
    )
    np.testing.assert_array_equal(of_before, 0)
    np.testing.assert_allclose(of_after, [[[-1.0, 0.0]]], atol=1e-6)


def model_config(gaze_data, tmp_path, **fields):
    config = gaze_maker.config(gaze_data, tmp_path / "run")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def test_the_part_joins_the_loss(gaze_data, tmp_path):
    """A network that does not see the edit misses the margin; one that sees it has no loss."""
    weights = SaliencyLossConfig(0.0, 0.0, 0.0, 0.0, 0.0, edit_weight=2.0, edit_margin=0.3)
    task = SaliencyTask(
        model_config(gaze_data, tmp_path, edit_probability=1.0, edit_strength=(0.15, 0.2), loss=weights)
    )
    assert task.loss_parts[-1] == "edit"
    frame = np.tile(np.array([0, 0, 4, 4], np.int32), (30, 1))
    mask = np.arange(30) < 10
    batch = GazeBatch(IMAGES, frame, 0 * DENSITY, DENSITY, ~mask, mask, np.arange(30))
    clean = jnp.asarray(IMAGES / 255, jnp.float32)

    @jax.jit
    def run(hotter):
        def network(image, frame):
            change = jnp.abs(image - clean).max(-1) if image.dtype != np.uint8 else jnp.zeros((30, 8, 8))
            hot = hotter * (change.reshape(30, 4, 2, 4, 2).max((2, 4)) > 1e-3)
            return jax.nn.log_softmax(hot.reshape(30, 16)).reshape(30, 4, 4)

        return task.loss(network, batch, jax.random.key(0), None, jnp.int32(0), task.normalizers(batch))

    blind = run(0.0)
    assert float(blind.parts["edit"]) == pytest.approx(0.3, rel=1e-4) and float(blind.total) == pytest.approx(0.6)
    assert float(run(9.0).parts["edit"]) == 0.0


def test_edits_of_cached_towers_are_refused(gaze_data, tmp_path):
    config = model_config(gaze_data, tmp_path, edit_probability=0.5)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, cache_tower=True))
    with pytest.raises(ConfigError, match="model.edit_probability: edited pictures are other ones every time"):
        SaliencyTask(config)
