"""DOODL and SGOOL: energies fall, back ends, golden boxes, and that no weight on crops is DOODL to the bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.errors import ArgumentError, NotFinite
from rahf.diffusion.latents import doodl as doodl_lib
from rahf.diffusion.latents.doodl import DoodlOptions, doodl
from rahf.diffusion.latents.sgool import SaliencyOptions, of_heatmap, salient_boxes, sgool
from rahf.nn import energy
from tests.helpers import stable_diffusion_maker as maker

QUICK = DoodlOptions(iterations=4, num_inference_steps=3, guidance_scale=2.0, clip=0.05, perturbation=1e-3)
#: 1 minus the mean of red.
RED = energy.function(lambda pixels: 1 - pixels[..., 0].mean((1, 2)), name="red")


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline(model=maker.FLAT)


@pytest.fixture(scope="module")
def result(pipe):
    calls = []
    progress = lambda done, total, values: calls.append((done, total, values.shape))
    result = doodl(pipe, "cat", RED, seeds=[0, 1], options=QUICK, keep_every=2, progress=progress)
    assert calls == [(n + 1, 4, (2,)) for n in range(4)]
    return result


def test_the_energy_falls(result):
    assert result.images.shape == (2, 8, 8, 3) and result.energy.shape == (5, 2)
    assert (result.energy[-1] < result.energy[0]).all()
    np.testing.assert_allclose(result.energy[-1], 1 - result.images[..., 0].mean((1, 2)), atol=1e-5)
    assert sorted(result.history) == [0, 2] and result.history[0].shape == (2, 8, 8, 3)


def test_the_noise_keeps_its_norm(pipe, result):
    noise = pipe.task("cat", None, [0, 1]).noise
    np.testing.assert_allclose(np.linalg.norm(result.latents.reshape(2, -1), axis=1),
                               np.linalg.norm(noise.reshape(2, -1), axis=1), rtol=1e-5)  # fmt: skip
    assert np.abs(result.latents - noise).max() > 1e-2


def test_the_other_back_end(pipe):
    """DDIM with recomputed steps: its first pictures are those of the pipeline."""
    options = dataclasses.replace(QUICK, backend="ddim")
    result = doodl(pipe, "cat", RED, seeds=[0, 1], options=options, keep_every=4)
    assert (result.energy[-1] < result.energy[0]).all()
    plain = pipe("cat", seeds=[0, 1], num_inference_steps=3, guidance_scale=2.0).images
    np.testing.assert_allclose(result.history[0], plain, atol=1e-4)


def test_no_weight_on_crops_is_doodl_to_the_bit(pipe, result):
    never = lambda pictures: pytest.fail("looked at the pictures")
    same = sgool(
        pipe, "cat", RED, never, seeds=[0, 1], options=QUICK, salient=SaliencyOptions(weight=0.0), keep_every=2
    )
    np.testing.assert_array_equal(same.images, result.images)
    np.testing.assert_array_equal(same.energy, result.energy)
    np.testing.assert_array_equal(same.latents, result.latents)


def test_sgool(pipe):
    """Looks every second update; the first energy is that of picture and crop by hand."""
    looks = []

    def saliency(pictures):
        looks.append(pictures)
        maps = np.zeros((len(pictures), 4, 4), np.float32)
        maps[:, 1:3, 2:4] = 1
        return maps

    salient = SaliencyOptions(weight=0.25, refresh_every=2, padding=0.0)
    result = sgool(pipe, "cat", RED, saliency, seeds=[0, 1], options=QUICK, salient=salient, keep_every=4)
    assert len(looks) == 2 and (result.energy[-1] < result.energy[0]).all()
    first = result.history[0]
    np.testing.assert_allclose(looks[0], first, atol=1e-5)
    boxes = jnp.tile(jnp.asarray([0.5, 0.25, 1.0, 0.75]), (2, 1))
    by_hand = 0.75 * RED(first) + 0.25 * RED(doodl_lib.crop(jnp.asarray(first), boxes))
    np.testing.assert_allclose(result.energy[0], by_hand, atol=1e-4)


def test_saliency_of_a_critic(tiny_critic):
    """Any model with the heatmap interface; one prompt serves all pictures."""
    pictures = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    maps = of_heatmap(tiny_critic, "a red cat", "misalignment")(pictures)
    assert maps.shape == (2, 32, 32)
    expected = tiny_critic.heatmaps(jnp.asarray(pictures), *tiny_critic.tokens(["a red cat"] * 2))[..., 1]
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_crops():
    picture = np.random.default_rng(0).uniform(size=(1, 8, 12, 3)).astype(np.float32)
    whole = doodl_lib.crop(jnp.asarray(picture), jnp.asarray([[0.0, 0.0, 1.0, 1.0]]))
    np.testing.assert_allclose(whole, picture, atol=1e-6)
    flat = jnp.zeros((1, 8, 8, 3)).at[:, 4:, 4:].set(1.0)
    quarter = doodl_lib.crop(flat, jnp.asarray([[0.5, 0.5, 1.0, 1.0]]))
    np.testing.assert_allclose(quarter[0, 2:, 2:], 1.0, atol=1e-6)
    gradient = jax.grad(lambda x: doodl_lib.crop(x, jnp.asarray([[0.5, 0.5, 1.0, 1.0]])).sum())(flat)
    assert float(gradient[0, 4:, 4:].sum()) > 0 and not np.asarray(gradient[0, :3, :3]).any()


@pytest.mark.parametrize(
    "place, size, box",
    [
        # a square of 4 of 16 cells, padded by 10 % on each side: 4.8 cells
        ((slice(4, 8), slice(8, 12)), (16, 16), (7.6 / 16, 3.6 / 16, 12.4 / 16, 8.4 / 16)),
        # a small one grows to a quarter of the side
        ((slice(7, 9), slice(7, 9)), (16, 16), (6 / 16, 6 / 16, 10 / 16, 10 / 16)),
        # moved inside at the corner
        ((slice(0, 4), slice(12, 16)), (16, 16), (11.2 / 16, 0, 1, 4.8 / 16)),
        # wide: square by the longer side, at most the shorter side of the picture
        ((slice(6, 10), slice(0, 16)), (16, 16), (0, 0, 1, 1)),
        # on a picture twice as wide as high the square is square in pixels
        ((slice(4, 8), slice(8, 12)), (16, 32), (15.2 / 32, 1.2 / 16, 24.8 / 32, 10.8 / 16)),
    ],
)
def test_golden_boxes(place, size, box):
    heatmap = np.zeros((1, 16, 16), np.float32)
    heatmap[0][place] = 1
    boxes, weights = salient_boxes(heatmap, size)
    np.testing.assert_allclose(boxes[0, 0], box, atol=1e-6)
    np.testing.assert_array_equal(weights, [[1]])


def test_which_components_count():
    """The heaviest first; specks below 1 % of the area are dropped; nothing salient is the whole picture."""
    maps = np.zeros((3, 32, 32), np.float32)
    maps[0, 2:8, 2:8], maps[0, 20:30, 20:30], maps[0, 0, 31] = 1.0, 0.9, 1.0
    maps[1] = 0.5
    options = SaliencyOptions(parts=3, padding=0.0, least_side=0.0)
    boxes, weights = salient_boxes(maps, (32, 32), options)
    np.testing.assert_allclose(boxes[0, :2] * 32, [[20, 20, 30, 30], [2, 2, 8, 8]])
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(boxes[1:, 0], [[0, 0, 1, 1]] * 2)


def test_what_is_not_finite_is_named():
    values, finite = np.array([0.5, np.nan]), np.array([True, True])
    message = r"picture 1: its energy is not finite at update 3 \(energies: red\)"
    with pytest.raises(NotFinite, match=message):
        doodl_lib._check_finite(values, finite, 3, RED)
    with pytest.raises(NotFinite, match="picture 0: its gradient is not finite"):
        doodl_lib._check_finite(values[:1], ~finite[:1], 3, RED)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: DoodlOptions(iterations=0), "iterations"),
        (lambda: DoodlOptions(clip=0), "clip"),
        (lambda: DoodlOptions(momentum=1.0), "momentum"),
        (lambda: SaliencyOptions(weight=2.0), "weight"),
        (lambda: SaliencyOptions(parts=0), "parts"),
        (lambda: salient_boxes(np.full((1, 4, 4), -1.0), (4, 4)), "at least 0"),
        (lambda: doodl(maker.pipeline(inpaints=True), "cat", RED), "model of inpainting"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_maps_of_another_number(pipe):
    with pytest.raises(ArgumentError, match=r"expected maps \[2,h,w\], found shape \(3, 4, 4\)"):
        sgool(pipe, "cat", RED, lambda pictures: np.ones((3, 4, 4)), seeds=[0, 1], options=QUICK)
