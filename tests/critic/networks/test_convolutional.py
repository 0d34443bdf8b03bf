"""The network with a tower that convolves: its maps reach the heads, its tokens the fusion stack."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import (
    ConvNextConfig,
    CriticConfig,
    EfficientNetConfig,
    HeatmapHeadConfig,
    LossConfig,
    ResNetConfig,
    ScoreHeadConfig,
    T5Config,
)
from rahf.core import batch as batch_lib
from rahf.core.errors import ConfigError
from rahf.critic import losses
from rahf.critic.networks import build, convolutional
from rahf.critic.networks.outputs import TowerMaps
from rahf.nn import functional

SMALL = CriticConfig(
    image_size=64,
    tower="efficientnet",
    finest_skip=16,
    folded_maps=1,
    efficientnet=EfficientNetConfig(4, (4, 4, 6, 6, 8, 8, 10), (1,) * 7),
    resnet=ResNetConfig(4, (4, 8, 8, 12), (1,) * 4),
    convnext=ConvNextConfig(4, (4, 6, 8, 12), (1,) * 4),
    t5=T5Config(48, 16, head_width=8, heads=2, mlp_width=16, encoder_layers=1, decoder_layers=1),
    heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=(8,)),
    score_head=ScoreHeadConfig(conv_widths=(), dense_widths=(8,)),
    tag_head=True,
)
BATCH = batch_lib.fake(2, 64, text_length=9, target_length=11, max_words=5, vocab_size=48)


@functools.cache
def network(config):
    graphdef, _ = functional.abstract(build.build(config))
    noise, params = np.random.default_rng(1), functional.init(build.build(config), 0)
    # Scales and biases that start as 0 would stop gradients.
    return graphdef, jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape, np.float32), params)


def test_a_step_reaches_every_part_and_predictions_agree_with_it():
    graphdef, params = network(SMALL)

    def run(params, batch):
        model = functional.merge(graphdef, params)
        logits = model(batch)
        return losses.total(LossConfig(tag_weight=1.0), logits, batch)[0], logits

    def apart(params, batch):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
        return model.heatmap_logits(fused), model.score_logits(fused), model.tower_maps(batch.image)

    (loss, logits), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params, BATCH)
    assert np.isfinite(loss) and logits.heatmaps.shape == (2, 64, 64, 2) and logits.scores.shape == (2, 4)
    for path, leaf in functional.flatten(gradient).items():
        assert np.abs(leaf).max() > 0, path
    heatmaps, scores, maps = jax.jit(apart)(params, BATCH)
    np.testing.assert_allclose(heatmaps, logits.heatmaps, atol=1e-5)
    np.testing.assert_allclose(scores, logits.scores, atol=1e-5)
    assert [part.shape[1:] for part in maps] == [(4, 4, 8 + 4 * 6), (2, 2, 10)]
    # Outputs that were computed before stand for the image.
    cached = BATCH._replace(image=TowerMaps(maps))
    (_, again) = jax.jit(run)(params, cached)
    for ours, theirs in zip(again, logits):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("tower", ["efficientnet", "resnet", "convnext"])
def test_heads_depend_on_fine_and_coarse_maps(tower):
    config = dataclasses.replace(SMALL, tower=tower, folded_maps=0)
    graphdef, params = network(config)
    shapes = convolutional.map_shapes(config)
    rng = np.random.default_rng(0)
    maps = tuple(rng.standard_normal((2, side, side, width)).astype(np.float32) for side, width in shapes)

    def outputs(maps):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(TowerMaps(maps)), BATCH.text_ids, BATCH.text_mask)
        return (model.heatmap_logits(fused) ** 2).sum(), (model.score_logits(fused) ** 2).sum()

    for number in range(2):
        of_maps = jax.jit(jax.grad(lambda maps, number=number: outputs(maps)[number]))(maps)
        assert all(np.abs(part).max() > 0 for part in of_maps)


def test_the_tower_gives_the_maps_that_the_config_promises():
    for tower in ("efficientnet", "resnet", "convnext"):
        head = HeatmapHeadConfig(conv_widths=(), up_widths=(8, 8))
        config = dataclasses.replace(SMALL, tower=tower, finest_skip=8, heatmap_head=head)
        graphdef, params = functional.abstract(build.build(config))
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
        maps = jax.eval_shape(lambda p, x, g=graphdef: functional.merge(g, p).tower_maps(x), params, image)
        assert tuple(part.shape[1::2] for part in maps) == convolutional.map_shapes(config)


def test_folding_keeps_every_value():
    grid = jnp.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    folded = convolutional._folded(grid, 2)
    assert folded.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(folded[0, 1, 0], np.concatenate([grid[0, 2 + i, j] for i in (0, 1) for j in (0, 1)]))


@pytest.mark.parametrize("change,message", [
    (dict(image_size=48), "model.image_size 48: expected a multiple of 32"),
    (dict(finest_skip=3), "model.finest_skip 3: expected one of 2, 4, 8, 16, 32"),
    (dict(folded_maps=4), "model.folded_maps 4: expected 0 to 3"),
    (dict(finest_skip=4, folded_maps=0), "1 stages for 3 finer maps"),
    (dict(variant="augmented-prompt"), "needs model.tower 'vit'"),
    (dict(efficientnet=EfficientNetConfig(4, (4, 4), (1, 1))), "model.efficientnet.widths: expected 7 stages"),
    (dict(tower="convnext", convnext=ConvNextConfig(4, (4, 6, 8, 12), (1,))), "4 widths but 1 depths"),
])  # fmt: skip
def test_contradictions_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        functional.abstract(build.build(dataclasses.replace(SMALL, **change)))
