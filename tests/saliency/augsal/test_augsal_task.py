"""Training Augsal's readouts: loss and gradient, what is frozen, what a run is loaded as, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rahf
from rahf import registry
from rahf.cli import main as cli
from rahf.config import AugsalConfig, AugsalLossConfig, Config, DataConfig, MeshConfig, OptimizerConfig, StartConfig
from rahf.core.errors import ArgumentError, CheckpointError, ConfigError, TrainError
from rahf.nn import functional
from rahf.saliency import adapt, loading
from rahf.saliency.augsal.properties import PROPERTIES
from rahf.saliency.augsal.task import PARTS, middle_boxes, random_boxes
from rahf.saliency.export import write
from rahf.steer import sgool_files
from rahf.training import sharding
from rahf.training.model_folder import write_model
from tests.helpers import stable_diffusion_maker as maker

#: U-Net and autoencoder of one level, of 8 x 8 pixels and as many latents.
MODEL = AugsalConfig(
    image_size=8,
    resolution=4,
    num_inference_steps=4,
    times=2,
    bottleneck_width=4,
    features=8,
    groups=4,
    readout_widths=(4, 4, 4),
    saliency_widths=(8, 8, 4, 4),
    edit_probability=1.0,
    loss=AugsalLossConfig(edit_loss="hinge"),
)


@pytest.fixture(scope="module")
def config(gaze_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("augsal")
    return Config(
        workdir=str(root / "run"),
        data=DataConfig(path=str(gaze_data), batch_size=2, eval_batch_size=2, eval_split="train", augment=None),
        model=MODEL,
        start=StartConfig(model=str(maker.save(root / "base", maker.FLAT))),
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
    """The pipeline gets no gradient, every readout and both stacks of aggregation do."""
    graphdef, params, record = started
    assert record["model"]["license"] == "mit" and all(path.startswith("readouts/") for path in record["random"])
    with task.train_loader() as stream:
        batch = next(stream)
    assert batch.image.shape == (2, 8, 8, 3) and batch.density.shape == (2, 4, 4)

    @jax.jit
    def loss(params, batch, key):
        def total(params):
            result = task.loss(
                functional.merge(graphdef, params), batch, key, None, jnp.int32(0), task.normalizers(batch)
            )
            return result.total, result.parts

        return jax.value_and_grad(total, has_aux=True)(params)

    (value, parts), gradient = loss(params, batch, jax.random.key(0))
    assert set(parts) == set(PARTS) and np.isfinite(value)
    factors = [0.2, -0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert float(value) == pytest.approx(sum(f * float(parts[name]) for f, name in zip(factors, PARTS)), rel=1e-4)
    assert 0 < parts["edit"] < 0.2  # the margin is 0.1, and an untrained map hardly changes
    flat = functional.flatten(gradient)
    assert not any(np.any(x) for path, x in flat.items() if path.startswith("base/"))
    moved = {path.split("/")[1] for path, x in flat.items() if np.any(x)}
    assert moved == {"low", "high", "saliency", *PROPERTIES}
    length = np.sqrt(sum(np.square(x).sum() for x in flat.values()))
    better = jax.tree.map(lambda p, g: p - 0.01 / length * g, params, gradient)
    assert loss(better, batch, jax.random.key(0))[0][0] < value
    # Examples that only fill the batch do not count.
    masked = batch._replace(example_mask=np.array([True, False]))
    assert loss(params, masked, jax.random.key(0))[0][0] != value


def test_evaluation(task, started, monkeypatch):
    """Means of the parts, weighted as the loss without edits, and roots of the properties' errors."""
    graphdef, params, _ = started
    columns = np.float32([[1, 0.5, *[4.0] * len(PROPERTIES)]] * 2)
    monkeypatch.setattr(task, "measured", lambda model, batch: dict(zip(PARTS, jnp.asarray(columns).T)))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    evaluator = task.evaluator(graphdef, mesh)
    result = evaluator.evaluate(params)
    rows = sum(batch.example_mask.sum() for batch in task.eval_loader(mesh))
    assert list(result.metrics) == list(task.metric_names()) and result.count == rows > 0
    assert result.metrics["loss/total"] == pytest.approx(0.2 * 1 - 0.2 * 0.5 + 0.1 * 4 * len(PROPERTIES))
    assert result.metrics["saliency/cc"] == 0.5 and result.metrics["properties/red/rmse"] == 2
    assert evaluator.summary(result.metrics) == "cc 0.5000, kld 1.0000"


def test_a_run_is_measured_as_a_saliency_model(task, started, gaze_data, tmp_path):
    """Its density is the readout over its sum; `rahf evaluate` and `rahf look` take the run."""
    _, params, _ = started
    run = tmp_path / "run"
    write_model(run, task.config, jax.device_get(params), task.tokenizer, {"license": "mit"})
    model = loading.load(run)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (seen,) = model([picture])
    readout = np.asarray(rahf.load(run)(picture).saliency[0])
    np.testing.assert_allclose(np.exp(seen.cells), readout / readout.sum(), rtol=1e-4)
    (wide,) = model([picture[:4]])
    assert wide.log_density.shape == (4, 8) and np.exp(wide.log_density).sum() == pytest.approx(1, abs=1e-4)
    gradient = jax.grad(lambda pixels: model.log_density(pixels)[2, 3])(picture / np.float32(255))
    assert np.isfinite(gradient).all() and np.any(gradient)

    evaluate = ["evaluate", str(run), "--data", str(gaze_data), "--split", "train", "--limit", "2", "--batch-size", "1"]
    assert cli.main(evaluate) == 0
    metrics = json.loads((run / "report/train/metrics.json").read_text())
    assert metrics["meta"]["examples"] == 2 and -1 < metrics["metrics"]["saliency/cc"] < 1
    Image.fromarray(picture).save(tmp_path / "picture.png")
    assert cli.main(["look", str(run), str(tmp_path / "picture.png"), "--out", str(tmp_path / "look")]) == 0
    assert (tmp_path / "look/saliency.json").is_file()
    assert sgool_files.load_saliency(str(run)).model_id == model.model_id
    with pytest.raises(ArgumentError, match="no learned centre bias"):
        model([picture], center_bias="none")
    with pytest.raises(ArgumentError, match="adapt: run has no centre bias"):
        adapt.adapt(model, [], 2)
    with pytest.raises(ArgumentError, match="is no saliency network"):
        write.write_export(model, tmp_path / "model.rahf")


def test_boxes_lie_in_the_frames():
    frame = np.array([[0, 0, 8, 8], [2, 1, 4, 6]], np.int32)
    np.testing.assert_allclose(middle_boxes(frame, 8)[1], [2.5 / 8, 3 / 8, 5.5 / 8, 5 / 8])
    boxes = np.concatenate([random_boxes(jax.random.key(n), frame, (0.2, 0.7), 8)[1:] for n in range(50)]) * 8
    assert boxes[:, 0].min() >= 1 and boxes[:, 1].min() >= 2 and boxes[:, 2].max() <= 7 and boxes[:, 3].max() <= 6
    sides = (boxes[:, 2:] - boxes[:, :2]) / [6, 4]
    assert 0.2 <= sides.min() < 0.3 and 0.6 < sides.max() <= 0.7


def test_a_run_is_loaded_and_reads_out_pictures(config, task, started, tmp_path):
    _, params, _ = started
    write_model(tmp_path / "run", task.config, jax.device_get(params), task.tokenizer, {"license": "mit"})
    model = rahf.load(tmp_path / "run")
    pictures = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    readings = model(pictures, [[0, 0, 0.5, 1], [0.25, 0.25, 1, 1]])
    assert readings.saliency.shape == (2, 4, 4) and readings.properties.shape == (2, 6)
    assert readings.classes.shape == (2, 0) and 0 < readings.saliency.min() <= readings.saliency.max() < 1
    # `measure` reads the box around a region.
    region = np.zeros((2, 8, 8))
    region[0, :, :4], region[1, 2:, 2:] = 1, 1
    eight_bits = np.round(pictures * 255).astype(np.uint8)
    expected = model(eight_bits, [[0, 0, 0.5, 1], [0.25, 0.25, 1, 1]]).properties
    np.testing.assert_allclose(model.measure(pictures, region), expected, atol=1e-6)
    wide = model.measure(pictures[:, :4], region[:, :4])  # letterboxed: 8 x 4 pixels in the middle of 8 x 8
    assert wide.shape == (2, 6) and np.isfinite(wide).all()
    with pytest.raises(ArgumentError, match="expected 8 x 8 pixels, as trained"):
        model(np.zeros((1, 16, 16, 3)))
    with pytest.raises(ArgumentError, match="left < right"):
        model(pictures, [[0, 0, 0, 1], [0, 0, 1, 1]])
    # A run that goes on needs the pipeline's folder no more.
    again = registry.task(dataclasses.replace(config, workdir=str(tmp_path / "run"), start=StartConfig()))
    assert again.config.model == task.config.model and again.tokenizer.model == task.tokenizer.model


def test_runs_that_make_no_sense(config, tiny_run):
    replaced = lambda **fields: dataclasses.replace(config, **fields)
    model = lambda **fields: replaced(model=dataclasses.replace(MODEL, **fields))
    with pytest.raises(TrainError, match="start.model: expected the model directory"):
        registry.task(replaced(start=StartConfig()))
    with pytest.raises(CheckpointError, match="of the family 'critic', expected 'stable-diffusion'"):
        registry.task(replaced(start=StartConfig(model=str(tiny_run))))
    for changed, message in (
        (replaced(optimizer=OptimizerConfig(trainable=("base/*",))), "as the pipeline is locked; found"),
        (model(resolution=3), "model.image_size: expected a multiple of 3"),
        (model(classes=5), "has regions with classes to learn from"),
        (model(gamma=(1.0,)), "model.gamma: expected 4 numbers"),
        (model(patch_sides=(0.5, 0.2)), "model.patch_sides"),
        (model(edit_probability=1.5), "model.edit_probability: expected 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            registry.task(changed)
    with pytest.raises(ArgumentError, match="times: expected 1 to 4"):
        registry.task(model(times=9))
