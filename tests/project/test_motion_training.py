"""benchmarks/motion_training.py: its loop of steps learns and keeps what is frozen; its run directories are read."""

import concurrent.futures
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.video import prepare
from rahf.config import Config, MotionRendererConfig
from rahf.motion import renderer_task
from rahf.motion.renderer_network import RendererNetwork
from rahf.nn import functional, layers
from rahf.training.task import Loss

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def training():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import motion_training
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return motion_training


class Grey(nnx.Module):
    """A brightness, and one that is not trained."""

    def __init__(self):
        self.own, self.other = layers.parameter(1, fill=0.0), layers.parameter(1, fill=2.0)


class GreyTask:
    terms = 2

    def build(self):
        return Grey

    def loss(self, model, batch, key, dropout_key, step, normalizers):
        assert batch.spectrum.shape[1] == self.terms and batch.image.dtype == jnp.uint8
        error = jnp.square(batch.image.astype(jnp.float32) / 255 - model.own[...] * model.other[...])
        return Loss(error.mean((1, 2, 3)).sum() / normalizers, {})


def test_a_loop_of_steps_learns_until_its_time(training, tmp_path, capsys):
    prepare.prepare_scenes(tmp_path / "drawn", 4, dev=0, test=0, size=(32, 16), progress=False)
    clips = training.clips(str(tmp_path / "drawn"), targets=False)
    assert clips["image"].shape == (4, 16, 32, 3) and clips["spectrum"].shape[:2] == (4, 16)
    data, params = jax.device_put(clips), functional.init(Grey, 0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stage = training.Stage(pool, "grey", GreyTask(), params, ("own",), data, 2)
        run = training.Run(stage, params, 0)
        run.advance(data, 0.01, 400)
        assert float(2 * run.trained["own"][0]) == pytest.approx(clips["image"].mean() / 255, abs=0.06)
        # The mean of the steps follows behind.
        assert 0 < float(run.params()["own"][0]) < 1.5 * float(run.trained["own"][0])
        assert float(run.params()["other"][0]) == 2.0 and run.steps == 400
        training.train([run], data, time.time() + 0.2)
        training.train([run], data, time.time() - 1)  # no time: nothing happens
    assert run.steps > 400 and '"stage": "grey"' in capsys.readouterr().out


def test_its_run_directories_are_read(training, tmp_path):
    config = Config(model=MotionRendererConfig(block_out_channels=(4,), norm_num_groups=2))
    params = functional.init(lambda: RendererNetwork(config.model), 3)
    training.write_run(tmp_path / "renderer", config, params)
    loaded = renderer_task.load(tmp_path / "renderer").args[0]
    for path, value in functional.flatten(params).items():
        np.testing.assert_array_equal(functional.flatten(loaded)[path], value)
