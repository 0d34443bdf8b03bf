"""A trained saliency model: loading, predicting, gradients, the exported file, `rahf look` and `rahf evaluate`."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import rahf
from data_pipelines import store
from data_pipelines.gaze import density, examples
from data_pipelines.gaze import loader as gaze_loader
from data_pipelines.gazefusion import prepare as prepare_gazefusion
from rahf import config as config_lib
from rahf import registry
from rahf.cli import main as cli
from rahf.config import AugmentConfig, Config
from rahf.core import tree
from rahf.core.errors import ArgumentError, ConfigError, DatasetError, ExportError, UnknownNameError
from rahf.critic import loading as critic_loading
from rahf.critic.export import archive
from rahf.diffusion.latents.sgool import of_heatmap
from rahf.nn import functional
from rahf.saliency import adapt, look, maps, report
from rahf.saliency.export import read, write
from rahf.saliency.maps import SaliencyMap
from rahf.steer import sgool_files
from tests.helpers import gaze_maker

PICTURE = np.random.default_rng(5).integers(0, 256, (20, 44, 3), np.uint8)
PORTRAIT = np.ascontiguousarray(PICTURE.transpose(1, 0, 2))


def test_a_run_trains_over_cached_maps(saliency_run):
    rows = [json.loads(line) for line in (saliency_run / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert any("saliency/cc" in name for name in names) and any("kld" in name for name in names)
    assert len(list((saliency_run / "tower_cache").glob("output_*.npy"))) == 2


def test_cached_maps_are_those_of_the_picture_and_its_mirror_image(saliency_run, saliency_model, gaze_data):
    tower_maps = jax.jit(lambda p, image: functional.merge(saliency_model.graphdef, p).tower_maps(image))
    canvas = examples.canvas(store.open_split(gaze_data, "train")[1].image, gaze_maker.MODEL)
    for copy, image in enumerate((canvas, canvas[:, ::-1])):
        for number, grid in enumerate(tower_maps(saliency_model.params, image[None])):
            stored = np.load(saliency_run / "tower_cache" / f"output_{number}.npy")[2 + copy]
            np.testing.assert_allclose(stored, grid[0], atol=2e-2)


def test_training_what_is_cached_is_refused(gaze_data, tmp_path):
    config = gaze_maker.config(gaze_data, tmp_path / "run", cache_tower=True)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, trainable=()))
    with pytest.raises(ConfigError, match="is trained"):
        registry.train(config)
    augmented = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=AugmentConfig()))
    with pytest.raises(ConfigError, match="augmented pictures are other ones every time"):
        registry.task(augmented)
    data = dataclasses.replace(config.data, augment=AugmentConfig(flip_probability=0.5))
    with pytest.raises(ConfigError, match="flip_probability: saliency models mirror pictures by model.flip"):
        gaze_loader.train_loader(dataclasses.replace(config, data=data), [None])


def test_predictions_are_densities_of_the_picture(saliency_model):
    wide, tall = saliency_model([PICTURE, PORTRAIT])
    assert wide.log_density.shape == (20, 44) and tall.log_density.shape == (44, 20)
    for one in (wide, tall):
        assert one.density.sum() == pytest.approx(1, abs=1e-4) and one.heatmap.max() == 1
    # Turned canvases: a portrait has as many cells as a landscape.
    assert tall.cells.size == wide.cells.size
    (alone,) = saliency_model(PICTURE)
    np.testing.assert_allclose(alone.cells, wide.cells, atol=1e-5)
    (without,) = saliency_model(PICTURE, center_bias="none")
    assert np.abs(without.cells - alone.cells).max() > 1e-3
    with pytest.raises(ArgumentError, match="learned or none"):
        saliency_model(PICTURE, center_bias="gone")


def log_density_and_gradient(model):
    """Compiled: pixels → log-density, and the gradient of it at one pixel."""

    def at(pixels):
        logs = model.log_density(pixels)
        return logs[10, 22], logs

    return jax.jit(jax.value_and_grad(at, has_aux=True))


@pytest.fixture(scope="module")
def differentiated(saliency_model):
    function, pixels = log_density_and_gradient(saliency_model), PICTURE.astype(np.float32) / 255
    return function, pixels, function(pixels)


def test_a_mirrored_picture_has_the_mirrored_map(saliency_model):
    """The mean with the mirror image is symmetric but for the centre bias; smoothing is, too."""
    wide, turned = saliency_model([PICTURE, PICTURE[:, ::-1]], center_bias="none")
    np.testing.assert_allclose(turned.cells, wide.cells[:, ::-1], atol=1e-4)
    assert np.exp(wide.cells.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_the_pure_function_gives_the_same_and_a_gradient(saliency_model, differentiated):
    function, pixels, ((_, logs), gradient) = differentiated
    (prediction,) = saliency_model(PICTURE)
    # Resized bytes are rounded, resized floats are not.
    np.testing.assert_allclose(logs, prediction.log_density, atol=2e-2)
    direction = np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32)
    step = 3e-3 / np.abs(direction).max()
    numeric = (function(pixels + step * direction)[0][0] - function(pixels - step * direction)[0][0]) / (2 * step)
    assert float(numeric) == pytest.approx(float((gradient * direction).sum()), rel=0.05, abs=1e-3)


def test_it_is_a_critic_with_one_heatmap_and_sgool_takes_it(saliency_model, saliency_run):
    (prediction,) = saliency_model(PICTURE)
    heatmap = saliency_model.heatmap(PICTURE, "saliency")
    np.testing.assert_allclose(heatmap, prediction.heatmap, atol=1e-4)
    with pytest.raises(UnknownNameError, match="saliency"):
        saliency_model.heatmap(PICTURE, "saliensy")
    looks = sgool_files.load_saliency(saliency_model)
    assert sgool_files.load_saliency(str(saliency_run)).model_id == looks.model_id
    np.testing.assert_array_equal(of_heatmap(looks, "any prompt")(PICTURE[None])[0], heatmap)


@pytest.fixture(scope="module")
def exported(saliency_model, tmp_path_factory):
    file = tmp_path_factory.mktemp("export") / "gaze.rahf"
    write.write_export(saliency_model, file, platforms=("cpu",), about="Made in a test.", weight_license="none")
    return file


def test_an_exported_file_is_the_model(exported, saliency_model, differentiated):
    model = rahf.load(exported)
    assert model.model_id == saliency_model.model_id and model.graphdef is None
    (_, logs), gradient = log_density_and_gradient(model)(differentiated[1])
    np.testing.assert_allclose(logs, differentiated[2][0][1], atol=1e-4)
    np.testing.assert_allclose(gradient, differentiated[2][1], atol=1e-4)
    assert "Made in a test." in archive.read_archive(exported)[1]["README.md"].decode()
    with pytest.raises(ArgumentError, match="already"):
        write.write_export(model, exported)


def test_other_kinds_of_files_are_told_apart(exported, tmp_path):
    with pytest.raises(ExportError, match="rahf look"):
        critic_loading.load(exported)
    manifest, parts = archive.read_archive(exported)
    kept = {name: value for name, value in manifest.items() if name not in ("parts", "format")}
    other = tmp_path / "other.rahf"
    archive.write_archive(other, parts, kept | {"kind": "critic"})
    with pytest.raises(ExportError, match="no saliency model"):
        read.read_export(other)
    archive.write_archive(other, parts, kept | {"model_id": "another-1-0"})
    with pytest.raises(ExportError, match="parts of two models"):
        read.read_export(other)
    archive.write_archive(other, parts, kept | {"platforms": ["tpu"]})
    with pytest.raises(ExportError, match="exported for tpu"):
        read.read_export(other)


def test_look_writes_every_picture_and_names_the_others(saliency_run, saliency_model, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for place in ("x.png", "a/x.png"):
        Image.fromarray(PICTURE).save(tmp_path / place)
    (tmp_path / "no.jpg").write_bytes(b"nothing")
    images = [tmp_path / "x.png", tmp_path / "no.jpg", tmp_path / "a" / "x.png"]
    assert look.look(saliency_model, images, tmp_path / "out", glances=2) != 0
    tree = json.loads((tmp_path / "out" / "saliency.json").read_text())
    assert [entry["files"]["map"] for entry in tree["images"]] == ["x.map.png", "x-2.map.png"]
    assert len(tree["images"][0]["scanpath"]) == 2 and tree["model"] == saliency_model.model_id
    with Image.open(tmp_path / "out" / "x.map.png") as image:
        stored = np.asarray(image, np.float64)
    np.testing.assert_allclose(stored / 65535, saliency_model(PICTURE)[0].heatmap, atol=1e-4)
    assert look.model_and_images(["photo.jpg", "b.png"]) == (look.DEFAULT, ["photo.jpg", "b.png"])
    assert look.model_and_images([str(saliency_run), "b.png"]) == (str(saliency_run), ["b.png"])
    (tmp_path / "a.png").mkdir()
    assert look.model_and_images([str(tmp_path / "a.png"), "b.png"])[0] == look.DEFAULT  # refused alone, not the job
    with pytest.raises(ArgumentError, match="pictures"):
        look.model_and_images([str(saliency_run)])


def test_evaluation_gives_every_metric_with_baselines(saliency_model, gaze_data, tmp_path):
    evaluation = report.evaluate(
        saliency_model, data=str(gaze_data), split="train", report=str(tmp_path), viewers=True, emd=True
    )
    tree = json.loads((tmp_path / "metrics.json").read_text())
    assert all(value is not None for value in tree["metrics"].values()) and evaluation.per_picture.shape[1] == 10
    low, high = tree["intervals"]["saliency/nss"]
    assert low <= tree["metrics"]["saliency/nss"] <= high
    assert tree["baselines"]["uniform"]["saliency/auc_judd"] == 0.5
    assert tree["baselines"]["centre prior"]["saliency/information_gain"] == 0
    # Everybody looks at the same spot: the others predict a viewer far better than chance.
    assert tree["baselines"]["one viewer by the rest"]["saliency/auc_judd"] > 0.9


def test_adaptation_changes_eight_numbers_and_raises_the_likelihood(saliency_model, gaze_data):
    source = store.open_split(gaze_data, "train")
    adapted = adapt.adapt(saliency_model, source, pictures=3, steps=40)
    flat, before = tree.flatten(adapted.params), tree.flatten(saliency_model.params)
    changed = [path for path in flat if np.any(np.asarray(flat[path]) != np.asarray(before[path]))]
    assert {path.split("/")[0] for path in changed} == set(adapt.ADAPTED)
    assert sum(flat[path].size for path in changed) == 8

    def likelihood(model):
        values = []
        for record in [source[index] for index in range(3)]:
            (one,) = model(record.image)
            x, y = record.fixations[:, :2].astype(int).T
            values.append(one.log_density[np.minimum(y, 23), np.minimum(x, 39)].mean())
        return np.mean(values)

    assert likelihood(adapted) > likelihood(saliency_model) + 0.05
    with pytest.raises(ArgumentError, match="at least one picture"):
        adapt.adapt(saliency_model, source, pictures=0)


def test_data_without_densities_is_refused(tiny_data, tmp_path):
    with pytest.raises(DatasetError, match="rahf prepare saliency"):
        registry.train(gaze_maker.config(tiny_data, tmp_path / "run"))


def test_scanpath_by_hand():
    p = np.full((10, 20), 1e-6)
    p[2, 3], p[2, 4], p[8, 17] = 0.5, 0.1, 0.3
    one = SaliencyMap("x", (100, 200), np.log(p / p.sum()).astype(np.float32))
    first, second, *_ = one.scanpath(3)
    # The neighbour, 10 pixels away, is within 0.06 · 200 = 12 pixels and is not looked at again.
    assert (first.x, first.y) == (35, 25) and first.mass == pytest.approx(0.6 / p.sum(), rel=1e-3)
    assert (second.x, second.y) == (175, 85)
    flat = SaliencyMap("x", (4, 6), np.full((2, 3), -np.log(6), np.float32))
    assert flat.entropy == pytest.approx(0, abs=1e-6)
    assert np.exp(maps.at_size(flat.cells, (4, 6))).sum() == pytest.approx(1, abs=1e-6)


def test_the_shipped_config_describes_the_shipped_family():
    config = config_lib.load("configs/saliency/lite.py")
    assert isinstance(config, Config) and config.model.family == "saliency" and config.start.model.endswith("frozen")


def test_crops_with_its_maps(saliency_run, saliency_model, tmp_path):
    """rahf prepare gazefusion: a run predicts the maps; the record's map is the model's, blurred and stretched."""
    (tmp_path / "pictures").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "captions.jsonl").write_text('{"uid": "a", "caption": "a red cat"}\n')
    arguments = ["--images", str(tmp_path / "pictures"), "--captions", str(tmp_path / "captions.jsonl")]
    arguments += ["--saliency", str(saliency_run), "--size", "20", "--dev", "0", "--test", "0", "--batch-size", "2"]
    assert cli.main(["prepare", "gazefusion", *arguments, "--out", str(tmp_path / "data")]) == 0
    records = list(store.open_split(tmp_path / "data", "train"))
    assert [record.uid for record in records] == ["a.png#0", "a.png#1", "a.png#2"]
    assert {record.prompt for record in records} == {"a red cat"}
    (predicted,) = saliency_model(np.ascontiguousarray(PICTURE[:, 10:30]), batch_size=2)
    expected = prepare_gazefusion.to_unit(predicted.density, 20, 10.0)
    stored = density.decode(records[1].saliency)
    np.testing.assert_allclose(stored / stored.max(), expected, atol=1e-4)
