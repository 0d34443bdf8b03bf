"""The trained renderer: at its start it draws what splatting draws, and every part of it can learn."""

import jax
import numpy as np
import pytest

from data_pipelines.video.loader import MotionBatch
from rahf.config import Config, ConfigError, MotionRendererConfig
from rahf.motion import render
from rahf.motion.renderer_network import RendererNetwork
from rahf.motion.renderer_task import RendererTask
from rahf.nn import functional

TINY = MotionRendererConfig(block_out_channels=(4, 8), norm_num_groups=2)


@pytest.fixture(scope="module")
def params():
    return functional.init(lambda: RendererNetwork(TINY), seed=0)


def inputs(height=9, width=11):
    rng = np.random.default_rng(0)
    pictures = rng.random((1, height, width, 3), dtype=np.float32)
    flow = rng.normal(scale=1.5, size=(1, height, width, 2)).astype(np.float32)
    return pictures, flow, np.abs(flow).sum(-1)


def test_it_starts_as_splatting(params):
    """Also with odd sides, which are halved upwards."""
    graphdef, _ = functional.abstract(lambda: RendererNetwork(TINY))
    drawn = jax.jit(lambda params, *given: functional.merge(graphdef, params)(*given))(params, *inputs())
    np.testing.assert_array_equal(drawn, jax.jit(render.splatted)(*inputs())[0])


def test_every_part_learns(params):
    """With a last convolution that is no longer zero."""
    task = RendererTask(Config(model=TINY), frames=8)
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
    assert float(value) == pytest.approx(float(parts["l1"] + 0.2 * parts["gradient"]), rel=1e-5)
    for path, leaf in functional.flatten(gradient).items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_widths_that_do_not_fit():
    model = MotionRendererConfig(block_out_channels=(4, 6), norm_num_groups=4)
    with pytest.raises(ConfigError, match=r"\(4, 6\) cannot be divided into norm_num_groups 4"):
        RendererTask(Config(model=model), frames=8)
