"""The trained renderer: at its start it draws what splatting draws, and every part of it can learn."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.video.loader import MotionBatch
from rahf.config import Config, ConfigError, MotionRendererConfig
from rahf.motion import render
from rahf.motion.renderer_network import RESIDUAL, RendererNetwork
from rahf.motion.renderer_task import RendererTask
from rahf.nn import functional

TINY = MotionRendererConfig(block_out_channels=(4, 8), norm_num_groups=2)


@pytest.fixture(scope="module")
def params():
    return functional.init(lambda: RendererNetwork(TINY), seed=0)


class Ramp:
    """In the place of a network: pictures are compared in their first column."""

    def difference(self, one, other):
        return abs(one[:, :, 0] - other[:, :, 0]).mean((1, 2))


def inputs(height=9, width=11):
    rng = np.random.default_rng(0)
    pictures = rng.random((1, height, width, 3), dtype=np.float32)
    flow = rng.normal(scale=1.5, size=(1, height, width, 2)).astype(np.float32)
    return pictures, flow, np.abs(flow).sum(-1)


def test_it_starts_as_splatting(params):
    """Also with odd sides, which are halved upwards."""
    graphdef, _ = functional.abstract(lambda: RendererNetwork(TINY))
    draw, splatted = (
        jax.jit(lambda params, *given: functional.merge(graphdef, params)(*given)),
        jax.jit(render.splatted),
    )
    np.testing.assert_array_equal(draw(params, *inputs()), splatted(*inputs())[0])
    # Once it has learned, it changes what the motion uncovers, and nothing of a photograph that stands still.
    opened = {**params, "conv_out": {**params["conv_out"], "bias": np.ones(3, np.float32)}}
    pictures, flow, importance = inputs()
    base, coverage = splatted(pictures, flow, importance)
    share = 1 - np.clip(np.asarray(coverage), 0, 1)
    assert share.max() > 0.5
    change = np.asarray(draw(opened, pictures, flow, importance) - base)
    np.testing.assert_allclose(change, np.repeat(RESIDUAL * share[..., None], 3, -1), atol=1e-6)
    np.testing.assert_allclose(draw(opened, pictures, 0 * flow, 0 * importance), pictures, atol=1e-6)


def test_average_splatting_is_a_field_of_the_config():
    build = lambda: RendererNetwork(dataclasses.replace(TINY, block_out_channels=(2,), splat="average"))  # noqa: E731
    pictures, flow, importance = inputs()
    graphdef, _ = functional.abstract(build)
    drawn = jax.jit(lambda params: functional.merge(graphdef, params)(pictures, flow, importance))(
        functional.init(build, seed=0)
    )
    base = jax.jit(render.splatted)(pictures, flow, importance, np.zeros_like(importance))[0]
    np.testing.assert_allclose(drawn, base, atol=1e-6)
    assert np.abs(base - jax.jit(render.splatted)(pictures, flow, importance)[0]).max() > 0.01


def test_every_part_learns(params):
    """With a last convolution that is no longer zero, and a perceptual loss."""
    task = RendererTask(Config(model=TINY), frames=8)
    task.perceptual, task.loss_parts = Ramp(), ("l1", "gradient", "perceptual")
    graphdef, _ = functional.abstract(task.build())
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 2, 8, 10, 3), dtype=np.uint8)
    spectrum = rng.normal(scale=3, size=(2, 3, 8, 10, 4)).astype(np.float32)
    batch = MotionBatch(
        pictures[0], spectrum, np.array([3, 5], np.int32), pictures[1], np.array([True, True]), np.arange(2)
    )
    flat = functional.flatten(params)
    opened = functional.unflatten({p: v + 0.1 if p == "conv_out/kernel" else v for p, v in flat.items()})

    def total(params):
        loss = task.loss(functional.merge(graphdef, params), batch, None, None, 0, task.normalizers(batch))
        return loss.total, loss.parts

    (value, parts), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(opened)
    by_hand = parts["l1"] + 0.2 * parts["gradient"] + 0.1 * parts["perceptual"]
    assert float(value) == pytest.approx(float(by_hand), rel=1e-5) and parts["perceptual"] > 0
    for path, leaf in functional.flatten(gradient).items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_the_network_of_the_perceptual_loss_is_named_in_the_config():
    task = RendererTask(Config(model=dataclasses.replace(TINY, perceptual="lite")), frames=8)
    assert task.perceptual.name == "EfficientNet-Lite tower of lite"
    assert [*task.metric_names()] == ["loss/total", "loss/l1", "loss/gradient", "loss/perceptual"]
    with pytest.raises(ConfigError, match="model.perceptual_weight: expected 0 or more, found -1"):
        RendererTask(Config(model=dataclasses.replace(TINY, perceptual_weight=-1.0)), frames=8)


def test_widths_that_do_not_fit():
    model = MotionRendererConfig(block_out_channels=(4, 6), norm_num_groups=4)
    with pytest.raises(ConfigError, match=r"\(4, 6\) cannot be divided into norm_num_groups 4"):
        RendererTask(Config(model=model), frames=8)
