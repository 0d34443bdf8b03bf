"""The motion model: frequency attention that starts as nothing, losses and their gradients, stages, drawing."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.video import prepare, read
from data_pipelines.video.loader import MotionBatch, eval_batches, train_loader
from rahf import images, registry
from rahf.config import AutoencoderKLConfig, Config, ConfigError, DataConfig, MotionConfig, StartConfig
from rahf.core.errors import ArgumentError, DataError, TrainError
from rahf.motion import losses
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.model import MotionGenerator
from rahf.motion.network import MotionModel
from rahf.motion.task import MotionTask
from rahf.nn import functional

#: Latents of 6 x 10. One level of the denoiser: what compiles here takes most of the time of these tests.
TINY = MotionConfig(
    width=20,
    height=12,
    terms=3,
    vae=AutoencoderKLConfig(
        in_channels=4,
        out_channels=4,
        latent_channels=2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    ),
    block_out_channels=(4,),
    num_attention_heads=2,
    norm_num_groups=2,
)
SCALES = np.array([3.0, 2.0, 1.0], np.float32)


@pytest.fixture(scope="module")
def params():
    return functional.init(lambda: MotionModel(TINY), seed=0)


def model_of(config, params):
    graphdef, _ = functional.abstract(lambda: MotionModel(config))
    return functional.merge(graphdef, params)


def batch(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return MotionBatch(
        rng.integers(0, 256, (count, 12, 20, 3), dtype=np.uint8),
        rng.normal(size=(count, 3, 12, 20, 4)).astype(np.float32),
        np.arange(1, count + 1, dtype=np.int32),
        rng.integers(0, 256, (count, 12, 20, 3), dtype=np.uint8),
        np.array([True] * count),
        np.arange(count),
    )


def at_stage(stage, **changes):
    return dataclasses.replace(TINY, stage=stage, **changes)


@jax.jit
def denoised(params, latents, timesteps, photographs):
    """With attention across frequencies, without, and one frequency alone."""
    model = model_of(TINY, params)
    joint, apart = (model.denoise(latents, timesteps, photographs, joint) for joint in (True, False))
    alone = model.denoise_slice(latents[:, 1], timesteps, jnp.full(len(latents), 1), photographs)
    return joint, apart, alone


def test_frequency_attention_starts_as_stage_2(params):
    """To the last bit; with another last projection it mixes the frequencies of a clip, and not the clips."""
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(2, 3, 6, 10, 2)).astype(np.float32)
    photographs, timesteps = rng.normal(size=(2, 6, 10, 3)).astype(np.float32), np.array([7, 900])
    joint, apart, alone = denoised(params, latents, timesteps, photographs)
    np.testing.assert_array_equal(joint, apart)
    np.testing.assert_allclose(apart[:, 1], alone, atol=1e-5)
    flat = functional.flatten(params)
    opened = {p: v + 0.3 if p.startswith("frequency") and "to_out/kernel" in p else v for p, v in flat.items()}
    opened = functional.unflatten(opened)
    mixed = denoised(opened, latents, timesteps, photographs)[0]
    changed = latents.copy()
    changed[0, 2] += 1
    other = denoised(opened, changed, timesteps, photographs)[0]
    assert np.abs(mixed - joint).max() > 1e-3 and np.abs(other[0, 0] - mixed[0, 0]).max() > 1e-4
    np.testing.assert_allclose(other[1], mixed[1], atol=1e-6)


def test_gradients_of_an_error_by_hand():
    """Neighbours differ by 1 along x in each row, by 0 along y; halved once, by 2."""
    ramp = np.tile(np.arange(4.0), (2, 1))[None, :, :, None].astype(np.float32)
    assert float(losses.multi_scale_gradient(jnp.asarray(ramp))[0]) == pytest.approx(1.0)  # then one row is left
    ramp = np.tile(np.arange(4.0), (4, 1))[None, :, :, None].astype(np.float32)
    assert float(losses.multi_scale_gradient(jnp.asarray(ramp))[0]) == pytest.approx(1 + 2)


@functools.cache
def compiled(stage):
    """The task of a stage, and its loss, parts and gradient as a function of (parameters, batch)."""
    config = Config(data=DataConfig(), model=at_stage(stage))
    task = MotionTask(config, json.dumps({"scales": SCALES.tolist()}).encode())

    def total(params, given):
        loss = task.loss(
            model_of(task.config.model, params), given, jax.random.key(0), None, 0, task.normalizers(given)
        )
        return loss.total, loss.parts

    return task, jax.jit(jax.value_and_grad(total, has_aux=True))


def gradients(stage, params, given):
    """Loss of a batch, its parts, and the largest gradient of every part of the network."""
    task, function = compiled(stage)
    (value, parts), gradient = function(params, given)
    largest = {}
    for path, leaf in functional.flatten(gradient).items():
        assert np.isfinite(leaf).all(), path
        largest[path.split("/")[0]] = max(largest.get(path.split("/")[0], 0.0), float(np.abs(leaf).max()))
    return task, float(value), parts, largest


def test_the_autoencoder_learns_alone(params):
    task, value, parts, largest = gradients("autoencoder", params, batch())
    assert task.config.optimizer.trainable == ("vae",)
    assert value == pytest.approx(float(parts["l1"] + 0.2 * parts["gradient"] + 1e-6 * parts["kl"]), rel=1e-5)
    assert largest["vae"] > 0 and largest["unet"] == largest["frequency"] == largest["latent_scale"] == 0


def test_an_autoencoder_of_clips_that_stand_still_has_a_finite_gradient(params):
    still = batch()._replace(spectrum=np.zeros((2, 3, 12, 20, 4), np.float32))
    assert 0 < gradients("autoencoder", params, still)[3]["vae"] < 1e4


def test_the_autoencoder_sees_what_moves():
    """Of a clip that moves in one frequency, that one but for a few draws; of one that stands still, any."""
    normalised = np.zeros((2, 3, 4, 5, 4), np.float32)
    normalised[0, 1] = -0.5
    keys = jax.random.split(jax.random.key(0), 2000).reshape(1000, 2)
    drawn = np.asarray(jax.vmap(lambda keys: losses.moving_frequencies(keys, jnp.asarray(normalised)))(keys))
    shares = [np.bincount(of_clip, minlength=3) / 1000 for of_clip in drawn.T]
    np.testing.assert_allclose(shares, [[0.002, 0.996, 0.002], [1 / 3] * 3], atol=0.05)
    assert shares[0][1] < 1


def test_plain_normalisation_is_a_field_of_the_config(params):
    """The loss is that of the other normalisation on what gives the same input to the network."""
    plain, given = at_stage("autoencoder", normalisation="plain"), batch()
    key = jax.random.split(jax.random.key(0), 2)
    loss = jax.jit(lambda params, given: losses.autoencoder(model_of(plain, params), given, SCALES, key).l1.mean())
    seen = spectrum_lib.normalise(given.spectrum, SCALES, "plain")
    same = given._replace(spectrum=np.asarray(spectrum_lib.denormalise(seen, SCALES)))
    _, _, parts, _ = gradients("autoencoder", params, same)
    assert float(loss(params, given)) == pytest.approx(float(parts["l1"]), rel=1e-3)


def test_denoisers_leave_the_autoencoder_alone(params):
    """An untrained denoiser is as far from the noise as its own output is large."""
    task, value, _, largest = gradients("frequency", params, batch())
    assert task.config.optimizer.trainable == ("frequency",)
    assert np.isfinite(value) and value > 0.5 and largest["vae"] == 0
    assert largest["frequency"] > 0 and largest["unet"] > 0  # the stage before learns by the same network


def test_the_second_stage_trains_the_denoiser(params):
    task, function = compiled("diffusion")
    assert task.config.optimizer.trainable == ("unet",)
    (value, parts), _ = jax.eval_shape(function, params, batch())
    assert value.shape == () and parts == {}


def test_levels_halve_odd_sides_and_double_them_again():
    """Latents of 5 x 10 and three levels: 5, 3, 2."""
    config = at_stage("frequency", height=10, block_out_channels=(4, 8, 8))
    graphdef, shapes = functional.abstract(lambda: MotionModel(config))
    noise = lambda params, latents: functional.merge(graphdef, params).denoise(  # noqa: E731
        latents, jnp.zeros(2, int), jnp.zeros((2, 5, 10, 3))
    )
    latents = jax.ShapeDtypeStruct((2, 3, 5, 10, 2), jnp.float32)
    assert jax.eval_shape(noise, shapes, latents).shape == (2, 3, 5, 10, 2)


def test_all_frequencies_as_channels():
    shapes = functional.abstract(lambda: MotionModel(at_stage("diffusion", prediction="volume")))[1]
    assert shapes["unet"]["conv_in"]["kernel"].shape == (3, 3, 3 * 2 + 3, 4) and "frequency" not in shapes
    model = at_stage("diffusion", prediction="volume")

    def noise(latents):
        built = model_of(model, functional.init(lambda: MotionModel(model), seed=0))
        return built.denoise(latents, jnp.zeros(1, int), jnp.zeros((1, 6, 10, 3)))

    assert jax.eval_shape(noise, jax.ShapeDtypeStruct((1, 3, 6, 10, 2), jnp.float32)).shape == (1, 3, 6, 10, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=21), "21 x 12 cannot be divided by 2"),
        (dict(block_out_channels=(3, 8)), r"\(3, 8\) cannot be divided into norm_num_groups 2"),
        (dict(num_attention_heads=3), "cannot be shared by num_attention_heads 3"),
        (dict(prediction="volume", stage="frequency"), 'stop at "diffusion"'),
        (dict(vae=AutoencoderKLConfig()), "a frequency has 4 channels"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        MotionModel(dataclasses.replace(TINY, **changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "drawn"
    prepare.prepare_scenes(folder, 4, dev=0.25, test=0.0, size=(32, 16), progress=False)
    return str(folder)


def test_stages_and_sizes_are_checked(data, tmp_path):
    fitting = dataclasses.replace(TINY, width=32, height=16, terms=16)
    config = Config(workdir=str(tmp_path / "run"), data=DataConfig(path=data), model=fitting)
    task = registry.task(config)
    assert isinstance(task, MotionTask) and [*task.saved_files()] == ["motion.json"]
    np.testing.assert_allclose(task.scales, read.description(data).scales)
    # Fewer terms than the data have, as of the ablations.
    fewer = registry.task(dataclasses.replace(config, model=dataclasses.replace(fitting, terms=4)))
    np.testing.assert_array_equal(fewer.scales, task.scales[:4])
    with fewer.train_loader() as loader:
        assert next(loader).spectrum.shape[1:3] == (4, 16)
    for changed, message in (
        (
            dict(model=dataclasses.replace(fitting, terms=17)),
            "and 16 terms; the model is configured for 32 x 16 and 17",
        ),
        (dict(model=TINY), "clips of 32 x 16 pixels and 16 terms; the model is configured for 20 x 12 and 3"),
        (dict(model=dataclasses.replace(fitting, stage="diffusion")), 'starts from a run of stage "autoencoder"'),
        (dict(model=dataclasses.replace(fitting, stage="frequency")), 'starts from a run of stage "diffusion"'),
        (dict(start=StartConfig(vision="tower")), "no published towers"),
        (dict(data=DataConfig(path=(data, data))), "reads one dataset, found 2"),
    ):
        with pytest.raises(TrainError, match=message):
            registry.task(dataclasses.replace(config, **changed))


def test_batches_go_on_where_they_were(data):
    loader = train_loader(data, "train", 2, seed=0)
    with loader:
        first, state, second = next(loader), loader.get_state(), next(loader)
        assert first.image.shape == (2, 16, 32, 3) and first.spectrum.shape == (2, 16, 16, 32, 4)
        for number, time, target in zip(first.index, first.time, first.target):
            record = read.clip(data, f"train:{number}")
            np.testing.assert_array_equal(images.load_rgb(record.targets[record.times.index(time)]), target)
        loader.set_state(state)
        np.testing.assert_array_equal(next(loader).index, second.index)
        with pytest.raises(DataError, match="other data or another seed"):
            loader.set_state({**state, "seed": 1})
    (last,) = eval_batches(data, "dev", 4, terms=5)
    assert last.spectrum.shape == (4, 5, 16, 32, 4)
    assert last.example_mask.tolist() == [True, False, False, False] and last.index.tolist() == [0, -1, -1, -1]


def test_drawing(params):
    """Another seed, another motion; equal arguments, the same. Self-guidance towards a loop has the same shapes."""
    described = read.Description(8, 4.0, 3, 20, 12, SCALES)
    generator = MotionGenerator(Config(model=at_stage("frequency")), params, described)
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    draw = lambda seed: generator.volume(picture, seed, num_inference_steps=2)  # noqa: E731
    first = draw(0)
    assert first.spectrum.shape == (3, 12, 20, 2) and (first.frames, first.period) == (8, 2.0)
    assert np.isfinite(first.spectrum).all() and (draw(1).spectrum != first.spectrum).any()
    np.testing.assert_array_equal(draw(0).spectrum, first.spectrum)
    guided = generator._compiled(2, True, 2)
    small = np.zeros((1, 12, 20, 3), np.uint8)
    assert jax.eval_shape(guided, params, small, 0, 1.75, 0.2).shape == (1, 3, 12, 20, 4)
    with pytest.raises(ArgumentError, match="guidance_scale: expected 0 or more, found -1"):
        generator.volume(picture, guidance_scale=-1.0)
