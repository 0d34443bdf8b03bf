"""The network's output, its blur and centre bias, and the loss against the metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.gaze.examples import GazeBatch
from rahf.config import (
    Config,
    ConfigError,
    ConvNextConfig,
    EfficientNetConfig,
    SaliencyConfig,
    SaliencyLossConfig,
    ViTConfig,
)
from rahf.metrics import saliency as metrics
from rahf.nn import efficientnet, functional
from rahf.saliency import from_run, losses, network, predictor
from tests.helpers.gaze_maker import MODEL


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    frames = np.array([[0, 0, 4, 8], [1, 2, 2, 4]], np.int32)
    inside = np.zeros((2, 4, 8), bool)
    inside[0], inside[1, 1:3, 2:6] = True, True
    density = rng.random((2, 4, 8)).astype(np.float32) * inside
    density /= density.sum((1, 2), keepdims=True)
    counts = (rng.integers(0, 3, (2, 4, 8)) * inside).astype(np.float32)
    image = rng.integers(0, 256, (2, 16, 32, 3), np.uint8)
    mask = np.ones(2, bool)
    return GazeBatch(image, frames, counts, density, ~mask, mask, np.arange(2)), inside


def test_a_density_inside_the_frame_with_and_without_centre_bias():
    build = lambda: network.SaliencyNetwork(MODEL)
    graphdef, _ = functional.abstract(build)
    params = functional.init(build, 0)
    batch, inside = drawn()

    @jax.jit
    def function(params, bias):
        model = functional.merge(graphdef, params)
        return model(batch.image, batch.frame, bias), model.centre(batch.frame, (4, 8))

    (logs, centre), (without, _) = function(params, 1.0), function(params, 0.0)
    np.testing.assert_allclose(np.exp(logs).sum((1, 2)), 1, rtol=1e-5)
    assert (np.asarray(logs)[~inside] == network.OUTSIDE).all()
    # What the bias adds is the same for every picture content: a function of the place in the picture alone.
    difference = np.where(inside, np.asarray(logs) - np.asarray(without) - np.asarray(centre), np.nan)
    spread = np.nanmax(difference, (1, 2)) - np.nanmin(difference, (1, 2))
    np.testing.assert_allclose(spread, 0, atol=1e-4)
    assert sum(functional.count({name: params[name]}) for name in network.ADAPTED) <= 20


def test_centre_bias_by_hand():
    centre = network.Centre()
    graphdef, params = functional.split(centre)
    params["place"], params["spread"] = jnp.array([0.25, 0.5]), jnp.log(jnp.array([0.5, 1.0]))
    params["floor"], params["gain"] = jnp.array([-1.0]), jnp.array([2.0])
    values = jax.jit(lambda p, frame: functional.merge(graphdef, p)(frame, (1, 2)))(params, jnp.array([[0, 0, 1, 2]]))
    # Cells at u = 0.25 and 0.75, v = 0.5: q = 0 and 1.
    expected = [2 * np.log(1 + np.exp(-1)), 2 * np.log(np.exp(-0.5) + np.exp(-1))]
    np.testing.assert_allclose(values[0, 0], expected, rtol=1e-6)


def test_blur_against_a_loop():
    x = np.random.default_rng(1).normal(size=(1, 3, 5)).astype(np.float32)
    frame, sigma = jnp.array([[0, 1, 3, 3]]), 0.8
    expected = np.zeros((3, 5))
    for row in range(3):
        for column in range(5):
            weights = {
                (r, c): np.exp(-((row - r) ** 2 + (column - c) ** 2) / (2 * sigma**2))
                for r in range(3)
                for c in range(1, 4)
            }
            expected[row, column] = sum(w * x[0][place] for place, w in weights.items()) / sum(weights.values())
    np.testing.assert_allclose(jax.jit(network.blurred)(x, sigma, frame)[0], expected, rtol=1e-4)


def test_the_loss_is_made_of_the_metrics():
    batch, inside = drawn(2)
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 8)), jnp.float32)
    logs = jax.jit(network.log_density)(logits, batch.frame)
    values = jax.jit(losses.measures)(logs, batch)
    for number, frame in enumerate(batch.frame):
        cut = (slice(frame[0], frame[0] + frame[2]), slice(frame[1], frame[1] + frame[3]))
        counts = batch.counts[number][cut].astype(int)
        cells = np.repeat(np.argwhere(counts), counts[counts > 0], 0)
        points = (cells[:, ::-1] + 0.5) / np.array(counts.shape[::-1])
        truth = metrics.Fixated(points, batch.density[number][cut])
        row = dict(zip(metrics.PER_PICTURE, metrics.picture_metrics(np.asarray(logs[number])[cut], truth)))
        for name in ("kld", "cc", "sim", "nss"):
            assert values[name][number] == pytest.approx(row[name], abs=2e-4), name
        assert values["likelihood"][number] / np.log(2) == pytest.approx(row["information_gain"], abs=1e-4)
    config = SaliencyLossConfig()
    batch = batch._replace(example_mask=np.array([True, False]))
    total, parts = jax.jit(lambda logs, batch: losses.total(config, logs, batch, 1.0))(logs, batch)
    by_hand = sum(weight * values[name][0] for name, weight in losses.weights(config).items())
    assert float(total) == pytest.approx(float(by_hand), rel=1e-5) and set(parts) == set(losses.PARTS)


def test_pictures_without_fixations_have_no_likelihood():
    batch, _ = drawn()
    batch = batch._replace(counts=np.zeros_like(batch.counts))
    values = jax.jit(losses.measures)(np.where(batch.density > 0, -3.0, network.OUTSIDE).astype(np.float32), batch)
    assert not np.any(values["nss"]) and not np.any(values["likelihood"]) and np.isfinite(values["cc"]).all()


def test_the_frozen_part_of_a_tower_and_the_rest_are_the_tower():
    config = EfficientNetConfig(stem_width=4, widths=(4,) * 7, depths=(1,) * 7)
    build = lambda: efficientnet.EfficientNet(config, dtype=jnp.dtype("float32"))
    graphdef, _ = functional.abstract(build)
    params = functional.init(build, 0)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def maps(params):
        tower = functional.merge(graphdef, params)
        return tower.maps(image), tower.maps_from(tower.maps_until(image, 3), 3)

    whole, parts = maps(params)
    assert [grid.shape[1] for grid in whole] == [16, 8, 4, 2, 1]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes, strides",
    [
        ({}, [4, 8]),
        ({"stride": 8, "widths": (6,)}, [8]),
        ({"tower": "efficientnet", "image_height": 32, "widths": (8, 8, 8, 4)}, [4, 8, 16, 32]),
        ({"tower": "vit", "vit": ViTConfig(patch_size=8, width=8), "image_height": 32, "widths": (6,)}, [8]),
    ],
)
def test_maps_of_every_tower(changes, strides):
    model = dataclasses.replace(MODEL, scales=(1.0,))
    assert [stride for stride, _ in network.map_widths(dataclasses.replace(model, **changes))] == strides


def test_a_vision_transformer_gives_a_density():
    vit = ViTConfig(patch_size=8, width=8, depth=1, heads=2, mlp_width=8)
    config = SaliencyConfig(image_height=16, image_width=16, tower="vit", vit=vit, stride=4, widths=(4,), blocks=1)
    shapes = jax.eval_shape(
        lambda: network.SaliencyNetwork(config)(jnp.zeros((2, 16, 16, 3)), jnp.zeros((2, 4), jnp.int32))
    )
    assert shapes.shape == (2, 4, 4)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"stride": 5}, "model.stride 5"),
        ({"widths": (6,)}, "1 widths, but the tower gives 2"),
        ({"image_height": 20}, "multiple of 8"),
        ({"tower": "vit"}, "square"),
        (
            {"tower": "vit", "vit": ViTConfig(patch_size=8), "image_height": 32, "widths": (6,), "scales": (2.0,)},
            "of a vision transformer",
        ),
        ({"scales": (1.0, 1.2)}, "scales 1.2: model.image_height 16 becomes 19.2, expected a multiple of 8"),
        ({"scales": (0.0,)}, "scales 0: model.image_height 16 becomes 0"),
        ({"scales": ()}, "expected at least one"),
        ({"tower": "efficientnet", "image_height": 32, "widths": (8,) * 4, "frozen_stages": 8}, "frozen_stages 8"),
        ({"convnext": ConvNextConfig(patch_size=4, widths=(4,), depths=(1,)), "stride": 8}, "expected one of 4"),
    ],
)
def test_bad_sizes_are_named(changes, match):
    with pytest.raises(ConfigError, match=match):
        network.map_widths(dataclasses.replace(MODEL, **({"scales": (1.0,)} | changes)))


def test_scales_are_joined_cell_by_cell():
    """Canvases by their size; frames to the cells that they touch; a mean of densities, each of sum 1 in the frame."""
    config = dataclasses.replace(MODEL, scales=(1.0, 1.5, 2.0), smoothing=0.0)
    whole = Config(model=config)
    assert predictor.canvases(whole) == ((32, 64), (64, 32))
    assert predictor.scaled_canvases(config, (64, 32)) == [(64, 32), (48, 24), (32, 16)]
    largest, middle, small = (dataclasses.replace(MODEL, image_height=s, image_width=2 * s) for s in (32, 24, 16))
    frame = jnp.array([[0, 0, 8, 16], [3, 1, 3, 12]], jnp.int32)
    assert from_run.scaled_frame(frame, largest, small).tolist() == [[0, 0, 4, 8], [1, 0, 2, 7]]
    assert from_run.scaled_frame(frame, largest, middle).tolist() == [[0, 0, 6, 12], [2, 0, 3, 10]]
    canvas = np.zeros((1, 32, 64, 3), np.uint8)
    canvas[:, :, :8] = 255
    plain = from_run.resized_canvas(canvas, dataclasses.replace(small, mirrored=False))
    assert plain.shape == (1, 16, 32, 3) and plain[0, 0, 0, 0] > 0.999 and plain[0, 0, 8, 0] == 0
    both = from_run.resized_canvas(canvas, small)
    assert both.shape == (2, 16, 32, 3) and both[1, 0, -1, 0] > 0.999 and both[1, 0, 0, 0] == 0

    # A flat density stays flat up to the edges of its frame; the mean of two is their mean.
    flat = [network.log_density(jnp.zeros((2, s // 4, s // 2)), from_run.scaled_frame(frame, largest, c))
            for s, c in ((32, largest), (16, small))]  # fmt: skip
    plain = dataclasses.replace(largest, smoothing=0.0)
    joined = np.exp(from_run.joined(plain, flat, frame))
    np.testing.assert_allclose(joined[0], 1 / 128, rtol=1e-4)
    np.testing.assert_allclose(joined[1, 3:6, 1:13], 1 / 36, rtol=1e-4)
    spot = jnp.where(jnp.arange(8)[:, None] * 16 + jnp.arange(16) == 5 * 16 + 4, 30.0, 0.0)
    one = network.log_density(jnp.stack([spot, spot]), frame)
    mean = np.exp(from_run.joined(plain, [one, flat[1]], frame))
    assert mean[1, 5, 4] == pytest.approx(0.5 + 0.5 / 36, rel=1e-3) and mean[1].sum() == pytest.approx(1, rel=1e-4)
    assert mean[1, 0, 0] == 0


def test_a_model_of_two_scales_gives_the_mean_of_both():
    """From a picture of the larger canvas's size: the mean of what each canvas gives alone."""
    build = lambda: network.SaliencyNetwork(MODEL)
    params = functional.init(build, 0)
    two = Config(model=dataclasses.replace(MODEL, scales=(1.0, 1.5), mirrored=False, smoothing=0.0))
    model = from_run.of_params(two, params, "two", 0, "none")
    picture = np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)
    (found,) = model([picture])
    assert found.cells.shape == (6, 12) and np.exp(found.cells).sum() == pytest.approx(1, abs=1e-4)
    alone = []
    for height, width in ((24, 48), (16, 32)):
        single = dataclasses.replace(two.model, image_height=height, image_width=width, scales=(1.0,))
        (function,) = from_run.network_functions(Config(model=single))[:1]
        pixels = jax.image.resize(picture[None] / np.float32(255), (1, height, width, 3), "linear", antialias=True)
        frame = jnp.array([[0, 0, height // 4, width // 4]], jnp.int32)
        density = np.exp(jax.jit(function)(params, pixels, frame, jnp.ones(1)))
        alone.append(np.asarray(jax.image.resize(density, (1, 6, 12), "linear"))[0])
    mean = sum(one / one.sum() for one in alone) / 2
    np.testing.assert_allclose(np.exp(found.cells), mean, rtol=1e-3)
