"""Features of the way up, the observer of a U-Net, and their aggregation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import UNetConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion.latents import inversion
from rahf.diffusion.networks.unet import Conditions, Observer
from rahf.nn import functional
from rahf.saliency.augsal.aggregation import Aggregation
from rahf.saliency.augsal.features import FeatureExtractor, Features, Layer, collect, inverted, layers_of, steps_of
from tests.helpers import diffusion_maker
from tests.helpers import stable_diffusion_maker as maker

RNG = np.random.default_rng(0)


def test_the_twelve_blocks_of_stable_diffusion():
    found = layers_of(UNetConfig())
    assert [layer.channels for layer in found] == [1280] * 6 + [640] * 3 + [320] * 3
    assert [layer.stride for layer in found] == [8] * 3 + [4] * 3 + [2] * 3 + [1] * 3


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline(model=maker.ATTENDING)


def test_features_are_those_of_every_time(pipe):
    """Shapes by layer; each time's are what the U-Net computes of that time alone."""
    extractor = FeatureExtractor(pipe, num_inference_steps=5, times=2)
    pictures = RNG.random((2, 8, 8, 3), np.float32)
    seen = extractor(pictures, "a cat")
    b, side = 2, 8
    expected = [(b, 2, side // layer.stride, side // layer.stride, layer.channels) for layer in extractor.layers]
    assert [x.shape for x in seen.maps] == expected and seen.temb.shape == (2, 2, 32)
    assert extractor.timesteps.tolist() == [201, 1]
    assert np.abs(seen.maps[-1][:, 0] - seen.maps[-1][:, 1]).max() > 1e-4
    with pytest.raises(ArgumentError, match="times: expected 1 to 5"):
        FeatureExtractor(pipe, num_inference_steps=5, times=6)
    with pytest.raises(ArgumentError, match="iterations: expected at least 0"):
        FeatureExtractor(pipe, num_inference_steps=5, times=2, iterations=-1)


def test_the_way_back_of_a_scheduler_that_forgets_is_finite():
    """It predicts the clean picture, clamps it, and its last step keeps nothing else: the way back is still defined."""
    scheduler = diffusion_maker.OF_PIXELS.scheduler
    assert scheduler.clip_sample and scheduler.set_alpha_to_one and scheduler.prediction_type == "sample"
    plan = steps_of(scheduler, 10, 3)
    assert (plan.a > 0).all() and np.isfinite([plan.a, plan.b]).all()
    model = lambda z, t, conditions: 0.5 * z  # noqa: E731
    z = RNG.standard_normal((2, 3, 3, 4)).astype(np.float32)
    back = inverted(model, jnp.asarray(z), None, plan)
    assert back.trajectory.shape == (4, 2, 3, 3, 4) and np.isfinite(back.trajectory).all()
    forgets = dataclasses.replace(scheduler, prediction_type="epsilon", clip_sample=False)
    np.testing.assert_array_equal(steps_of(forgets, 10, 3).a, inversion.coefficients(forgets, 10, 7).a)


def test_the_last_features_are_what_the_output_is_made_of():
    """Without attention behind it, the last block's output, normed and convolved, is the prediction."""
    pipe = maker.pipeline(model=maker.FLAT)
    latents = jnp.asarray(RNG.standard_normal((1, 2, 4, 4, 4)), jnp.float32)
    conditions = Conditions(jnp.asarray(RNG.standard_normal((2, 12, 8)), jnp.float32))

    @jax.jit
    def run(params, latents, conditions):
        model = functional.merge(pipe.graphdef, params)
        seen = collect(model, latents, np.array([7]), conditions)
        last = model.unet.conv_out(jax.nn.silu(model.unet.conv_norm_out(seen.maps[-1][:, 0])))
        return last, model(latents[0], jnp.full(2, 7), conditions)

    made, predicted = run(pipe.params, latents, conditions)
    np.testing.assert_allclose(made, predicted, atol=1e-5)


class Watcher(Observer):
    attends = True

    def __init__(self):
        self.places, self.sums = [], []

    def attention(self, place, grid, probabilities):
        self.places.append((place, grid, probabilities.shape))
        self.sums.append(probabilities.sum(-1))
        return probabilities


def test_an_observer_sees_all_attention_to_the_text_and_changes_nothing(pipe):
    latents = jnp.asarray(RNG.standard_normal((2, 8, 8, 4)), jnp.float32)
    conditions = Conditions(jnp.asarray(RNG.standard_normal((2, 12, 8)), jnp.float32))
    watcher = Watcher()

    @jax.jit
    def run(params, latents, conditions):
        model = functional.merge(pipe.graphdef, params)
        times = jnp.full(2, 300)
        return model(latents, times, conditions), model(latents, times, conditions, observer=watcher), watcher.sums

    plain, observed, sums = run(pipe.params, latents, conditions)
    np.testing.assert_allclose(observed, plain, atol=1e-5)
    # Once down and twice up, and the middle block; two heads, 12 tokens.
    assert [(place, grid) for place, grid, _ in watcher.places] == [
        ("down", (8, 8)),
        ("mid", (8, 8)),
        ("up", (8, 8)),
        ("up", (8, 8)),
    ]
    assert watcher.places[0][2] == (2, 2, 64, 12)
    for total in sums:
        np.testing.assert_allclose(total, 1, atol=1e-5)


LAYERS = (Layer(1, 0, 6, 2), Layer(0, 0, 4, 1))


@pytest.mark.parametrize("temb", [0, 5])
def test_aggregation_mixes_by_a_softmax(temb):
    """Equal shares at first; with all the weight on one time of one layer, its bottleneck alone."""
    build = lambda: Aggregation(LAYERS, 3, 4, width=8, outputs=8, groups=4, temb=temb, dtype=jnp.float32)
    graphdef, _ = functional.abstract(build)
    params = functional.init(build, 0)
    maps = tuple(jnp.asarray(RNG.standard_normal((2, 3, s, s, c)), jnp.float32) for s, c in ((2, 6), (4, 4)))
    features = Features(maps, jnp.asarray(RNG.standard_normal((2, 3, 5)), jnp.float32))

    @jax.jit
    def run(params, features):
        model = functional.merge(graphdef, params)
        alone = model.bottlenecks[1](features.maps[1][:, 2], features.temb[:, 2])
        return model(features), model.weights(), alone

    mixed, weights, _ = run(params, features)
    np.testing.assert_allclose(weights, np.full((3, 2), 1 / 6), rtol=1e-6)
    assert mixed.shape == (2, 4, 4, 8)
    params["mixing"] = jnp.zeros((3, 2)).at[2, 1].set(50.0)
    chosen, _, alone = run(params, features)
    np.testing.assert_allclose(chosen, alone, atol=1e-5)
    assert np.abs(mixed - alone).max() > 1e-2
    timed = features._replace(temb=features.temb + 1)
    assert (np.abs(run(params, timed)[0] - chosen).max() > 1e-3) == bool(temb)
    with pytest.raises(ValueError, match="features at 3 times of 1 layers, expected 3 of 2"):
        functional.merge(graphdef, params)(features._replace(maps=maps[:1]))
