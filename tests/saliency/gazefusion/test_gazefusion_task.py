"""Training a ControlNet by saliency maps: where it starts, its loss and gradient, and what a run is loaded as."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rahf
from data_pipelines.gazefusion import prepare
from rahf import registry
from rahf.config import Config, DataConfig, GazeFusionConfig, OptimizerConfig, StartConfig
from rahf.core.errors import CheckpointError, ConfigError, TrainError
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import functional
from rahf.training.model_folder import write_model
from tests.helpers import stable_diffusion_maker as maker


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a run beside a tiny pipeline, on four crops of 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("gazefusion")
    (root / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(20, 255, (8, 20, 3), np.uint8)
    Image.fromarray(pixels).save(root / "pictures" / "a.png")
    (root / "pictures" / "a.txt").write_text("a red cat")
    bright = lambda crops: [crop.mean(-1) for crop in crops]
    options = prepare.Options(side=8)
    prepare.prepare(
        root / "pictures", root / "data", bright, "bright", options=options, dev=0.0, test=0.0, progress=False
    )
    return Config(
        workdir=str(root / "run"),
        data=DataConfig(path=str(root / "data"), batch_size=2, eval_batch_size=2, eval_split="train", augment=None),
        model=GazeFusionConfig(image_size=8),
        start=StartConfig(model=str(maker.save(root / "base"))),
    )


@pytest.fixture(scope="module")
def task(config):
    return registry.task(config)


@pytest.fixture(scope="module")
def started(task):
    graphdef, shapes = functional.abstract(task.build())
    start = task.start(shapes)
    return graphdef, functional.init(task.build(), 0, loaded=start.params), start.record


def test_loss_and_gradient(task, started):
    """The pipeline gets no gradient; of the ControlNet, which starts as zero, its last layers get one."""
    graphdef, params, _ = started
    with task.train_loader() as stream:
        batch = next(stream)
    assert batch.ids[0].shape == (2, 12) and batch.hint.max() == 1

    @jax.jit
    def loss(params, batch, key):
        total = lambda p: (
            task.loss(functional.merge(graphdef, p), batch, key, None, jnp.int32(0), task.normalizers(batch)).total
        )
        return jax.value_and_grad(total)(params)

    value, gradient = loss(params, batch, jax.random.key(0))
    assert np.isfinite(value) and value > 0
    flat = functional.flatten(gradient)
    assert not any(np.any(x) for path, x in flat.items() if path.startswith("base/"))
    moved = {path.split("/")[1] for path, x in flat.items() if np.any(x)}
    assert moved == {"controlnet_down_blocks", "controlnet_mid_block"}
    # One step down the gradient, and the loss of the same draws is lower; then the hint encoder learns, too.
    length = np.sqrt(sum(np.square(x).sum() for x in flat.values()))
    better = jax.tree.map(lambda p, g: p - 0.01 / length * g, params, gradient)
    after, gradient = loss(better, batch, jax.random.key(0))
    assert after < value
    assert np.any(functional.flatten(gradient)["controlnet/controlnet_cond_embedding/conv_out/kernel"])
    other, _ = loss(params, batch._replace(example_mask=np.array([True, False])), jax.random.key(0))
    assert other != value


def test_captions_are_left_out(task):
    """A share of them, at random, in all towers together."""
    ids = (jnp.asarray(np.tile(task.encode("a red cat")[0], (400, 1))),)
    (kept,) = task.dropped_ids(ids, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(kept, ids[0])
    (some,) = task.dropped_ids(ids, jax.random.key(0), 0.25)
    empty = (np.asarray(some) == task.encode("")[0]).all(-1)
    assert 60 < empty.sum() < 140 and (np.asarray(some)[~empty] == np.asarray(ids[0])[~empty]).all()


def test_a_run_is_loaded_as_a_pipeline(config, task, started, tmp_path):
    """With the ControlNet in its place, the pipeline's parameters unchanged, and the license of the base."""
    _, params, record = started
    assert record["model"]["license"] == "mit" and record["random"]
    assert all(path.startswith("controlnet/controlnet_") for path in record["random"])
    write_model(tmp_path / "run", task.config, jax.device_get(params), task.tokenizer, {"license": "mit"})
    pipe, base = rahf.load(tmp_path / "run"), maker.pipeline()
    assert isinstance(pipe, Pipeline) and pipe.controlnet.config == task.config.model.controlnet
    jax.tree.map(np.testing.assert_array_equal, pipe.params["unet"], base.params["unet"])
    assert not np.any(pipe.controlnet.params["controlnet_mid_block"]["kernel"])
    # A run that goes on needs the pipeline's folder no more.
    again = registry.task(dataclasses.replace(config, workdir=str(tmp_path / "run"), start=StartConfig()))
    assert again.config.model == task.config.model and again.tokenizer.model == task.tokenizer.model


def test_runs_that_make_no_sense(config, tiny_run):
    replaced = lambda **fields: dataclasses.replace(config, **fields)
    with pytest.raises(TrainError, match="start.model: expected the model directory"):
        registry.task(replaced(start=StartConfig()))
    with pytest.raises(CheckpointError, match="of the family 'critic', expected 'stable-diffusion'"):
        registry.task(replaced(start=StartConfig(model=str(tiny_run))))
    with pytest.raises(ConfigError, match="as the pipeline is locked; found"):
        registry.task(replaced(optimizer=OptimizerConfig(trainable=("base/*",))))
    with pytest.raises(ConfigError, match="model.image_size: expected a multiple of 2, a cell of the latents, found 9"):
        registry.task(replaced(model=GazeFusionConfig(image_size=9)))
