"""benchmarks/motion_training.py: its steps learn and keep what is frozen; its run directories are read."""

import concurrent.futures
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.video import prepare
from rahf.config import AutoencoderKLConfig, Config, MotionConfig, MotionRendererConfig
from rahf.motion import renderer_task
from rahf.motion.renderer_network import RendererNetwork
from rahf.motion.task import MotionTask
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
    def loss(self, model, batch, key, dropout_key, step, normalizers):
        assert batch.spectrum.shape[1] == 16 and batch.image.dtype == jnp.uint8
        error = jnp.square(batch.image.astype(jnp.float32) / 255 - model.own[...] * model.other[...])
        return Loss(error.mean((1, 2, 3)).sum() / normalizers, {})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "drawn"
    prepare.prepare_scenes(folder, 4, dev=0, test=0, size=(32, 16), progress=False)
    return folder


def test_steps_learn_until_their_time(training, drawn, capsys):
    clips = training.clips(str(drawn), targets=False)
    assert clips["image"].shape == (4, 16, 32, 3) and clips["spectrum"].shape[:2] == (4, 16)
    data, params = jax.device_put(clips), functional.init(Grey, 0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stage = training.Stage(pool, "grey", Grey, training.of_task(GreyTask(), 2), params, ("own",), data)
        run = training.Run(stage, params, 0)
        run.advance(data, 0.01, 400)
        assert float(2 * run.trained["own"][0]) == pytest.approx(clips["image"].mean() / 255, abs=0.06)
        # The mean of the steps follows behind.
        assert 0 < float(run.params()["own"][0]) < 1.5 * float(run.trained["own"][0])
        assert float(run.params()["other"][0]) == 2.0 and run.steps == 400
        training.train([run], data, 0.2)
        training.train([run], data, -1)  # no time: nothing happens
    assert run.steps > 400 and '"stage": "grey"' in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "prediction"), [("diffusion", "slices"), ("diffusion", "volume")])
def test_the_loss_of_latents_is_that_of_training(training, drawn, stage, prediction):
    """On average over clips, times and noises it is the same whether clips are encoded before or in the step."""
    model = MotionConfig(
        stage=stage,
        prediction=prediction,
        width=32,
        height=16,
        terms=2,
        vae=AutoencoderKLConfig(
            in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=2
        ),
        block_out_channels=(8,),
        norm_num_groups=2,
    )
    task = MotionTask(Config(model=model), (drawn / "motion.json").read_bytes())
    params = functional.init(task.build(), 0)
    data = training.clips(str(drawn), targets=False)
    data["spectrum"] = data["spectrum"][:, :2]
    latents = {"image": data["image"], **training.encoded(task, params["vae"], data)}
    assert latents["mean"].shape == latents["std"].shape == (4, 2, 16, 32, 4)
    graphdef, _ = functional.abstract(task.build())

    @functools.partial(jax.jit, static_argnums=0)
    def losses(loss, data, keys):
        return jax.vmap(lambda key: loss(functional.merge(graphdef, params), data, key))(keys)

    keys = jax.random.split(jax.random.key(1), 64)
    means = [
        losses(loss(task, 4), values, keys)
        for loss, values in ((training.of_task, data), (training.of_latents, latents))
    ]
    error = np.hypot(*(values.std() / np.sqrt(len(keys)) for values in means))
    assert abs(means[0].mean() - means[1].mean()) < 5 * error < 0.2 * means[0].mean()


def test_its_run_directories_are_read(training, tmp_path):
    config = Config(model=MotionRendererConfig(block_out_channels=(4,), norm_num_groups=2))
    params = functional.init(lambda: RendererNetwork(config.model), 3)
    training.write_run(tmp_path / "renderer", config, params)
    loaded = renderer_task.load(tmp_path / "renderer").args[0]
    for path, value in functional.flatten(params).items():
        np.testing.assert_array_equal(functional.flatten(loaded)[path], value)
