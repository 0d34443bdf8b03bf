"""The fast heatmap head: what it saves at full size, and that nothing else about it differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, CriticConfig, HeatmapHeadConfig, T5Config, ViTConfig
from rahf.core.batch import Batch, spec
from rahf.critic.networks import heads
from rahf.critic.networks.build import build
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.nn.flops import count_flops
from rahf.training.step import loss_and_gradients

F32 = np.dtype("float32")
#: ViT-L/16 at 384 pixels and T5-base; scanned, which is traced faster and counts the same.
LARGE = CriticConfig(
    image_size=384,
    vit=ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096),
    t5=T5Config(mlp_width=3072, ff="relu", tie_embeddings=True),
    scan_layers=True,
)
QUARTER = dataclasses.replace(LARGE, heatmap_head=HeatmapHeadConfig(kind="quarter"))


def head(config, image_size=16, grid=2, inputs=8):
    """Compiled head and its parameters by path, of which none is constant."""
    head = lambda: heads.HeatmapHead(inputs, image_size, config, grid=grid, dtype=F32)
    graphdef, _ = functional.abstract(head)
    return jax.jit(lambda params, x: functional.merge(graphdef, params)(x)), functional.init(head, 0)


def tokens(*sizes):
    return np.random.default_rng(0).standard_normal(sizes, np.float32)


def test_a_training_step_takes_less_than_half():
    shapes = spec(1, 384, 64, 64, 30)
    del shapes["index"]
    batch = Batch(**{n: jax.ShapeDtypeStruct(*s) for n, s in shapes.items()}, index=None)
    training = []
    for config in (LARGE, QUARTER):
        graphdef, params = functional.abstract(build(config))
        step = lambda p, b: loss_and_gradients(CriticTask(Config(model=config), None), graphdef, p, b, 0)  # noqa: B023
        training.append(count_flops(step, params, batch))
    graphdef, params = functional.abstract(build(LARGE))
    forward = count_flops(lambda p, b: functional.merge(graphdef, p)(b), params, batch)
    assert 1.9e12 < forward < 2.1e12
    _, params = functional.abstract(lambda: heads.HeatmapHead(768, 384, LARGE.heatmap_head, dtype=F32))
    graphdef, _ = functional.abstract(lambda: heads.HeatmapHead(768, 384, LARGE.heatmap_head, dtype=F32))
    grid = jax.ShapeDtypeStruct((1, 24, 24, 768), jnp.float32)
    both = 2 * count_flops(lambda p, x: functional.merge(graphdef, p)(x), params, grid)
    assert 0.68 < both / forward < 0.75
    assert training[0] / training[1] >= 2.3
    assert training[0] == pytest.approx(3 * forward, rel=0.01)  # pixels need no gradient


@pytest.mark.parametrize(
    ("image_size", "grid", "stages"), [(384, 24, 2), (512, 32, 2), (64, 8, 1), (224, 16, 2), (32, 8, 0)]
)
def test_stages_lead_to_a_quarter(image_size, grid, stages):
    """Patches of 16, 16, 8, 14 (the first side from a quarter on) and 4 pixels."""
    config = HeatmapHeadConfig(kind="quarter")
    assert heads.up_widths(config, image_size, grid) == config.up_widths[:stages]
    assert 4 * grid * 2**stages >= image_size and (stages == 0 or 2 * grid * 2**stages < image_size)
    assert heads.up_widths(HeatmapHeadConfig(), image_size, grid) == config.up_widths


def test_too_few_stages_are_an_error():
    with pytest.raises(ValueError, match="a quarter of the image side 384 it takes 2 stages, up_widths has only 1"):
        heads.up_widths(HeatmapHeadConfig(kind="quarter", up_widths=(8,)), 384, 24)


def test_it_is_the_full_head_without_its_last_stages():
    full = HeatmapHeadConfig((6,), (6, 5, 4))
    run, params = head(dataclasses.replace(full, kind="quarter"))
    same, same_params = head(dataclasses.replace(full, up_widths=(6,)))
    _, full_params = head(full)
    assert functional.flatten(params).keys() == functional.flatten(same_params).keys()
    assert functional.flatten(full_params).keys() - functional.flatten(params).keys() == {
        f"up_{stage}/{part}" for stage in (1, 2) for part in functional.flatten(full_params["up_0"])
    }
    x = tokens(2, 2, 2, 8)
    np.testing.assert_array_equal(run(params, x), same(same_params, x))


@pytest.mark.parametrize("kind", ["full", "quarter"])
def test_both_kinds_start_at_the_prior(kind):
    run, params = head(HeatmapHeadConfig((8,), (8, 6, 4), kind=kind, prior=0.02))
    actual = np.asarray(jax.nn.sigmoid(run(params, tokens(2, 2, 2, 8))))
    assert actual.shape == (2, 16, 16) and actual.std() > 0
    assert 0.015 < actual.mean() < 0.027


def test_the_way_to_the_image_side_is_bilinear():
    """Four times the side, half-pixel centres: output 6 of 16 is at 1.125, between the inputs 1 and 2."""
    run, params = head(HeatmapHeadConfig(kind="quarter", conv_widths=(), up_widths=()), grid=4, inputs=1)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1.0  # both last convolutions hand their input through
    for name in ("last", "out"):
        params[name] = {"kernel": kernel, "bias": np.zeros(1, np.float32)}
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, :, :, 0] = [1.0, 10.0, 100.0, 1000.0]
    rows = np.asarray(run(params, x))[0]
    expected = [1, 1, 2.125, 4.375, 6.625, 8.875, 21.25, 43.75, 66.25, 88.75, 212.5, 437.5, 662.5, 887.5, 1000, 1000]
    np.testing.assert_allclose(rows, [expected] * 16, rtol=1e-5)
    # Linear, so the gradient is its transpose: <resize(x), y> = <x, gradient of <resize(.), y> at x>.
    y = tokens(1, 16, 16)
    gradient = jax.grad(lambda x: (run(params, x) * y).sum())(x + 1.0)
    np.testing.assert_allclose((np.asarray(run(params, x)) * y).sum(), (x * gradient).sum(), rtol=1e-4)
