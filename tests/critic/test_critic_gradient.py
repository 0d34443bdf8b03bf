"""The critic's pure functions: under jit, vmap and grad, with gradients equal to finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.core.errors import ArgumentTypeError, ImageError
from rahf.critic import energy
from rahf.images.pictures import picture
from rahf.nn import pixels as pixels_lib
from tests.helpers.critic_maker import PROMPTS
from tests.helpers.image_maker import smooth


def test_scores_and_heatmaps_as_functions(critic, pictures):
    square = pictures[1].astype(np.float32) / 255
    expected = critic(square, PROMPTS[0])
    ids, mask = critic.tokens(PROMPTS[0])
    assert ids.shape == mask.shape == (1, 24) and ids.dtype == np.int32 and mask.dtype == np.bool_
    np.testing.assert_allclose(critic.scores(square[None], ids, mask), expected.scores, atol=1e-6)
    np.testing.assert_allclose(critic.heatmaps(square[None], ids, mask), expected.heatmaps, atol=1e-5)
    np.testing.assert_allclose(critic.scores(pictures[1][None], ids, mask), expected.scores, atol=1e-6)
    many = np.stack([square, square[::-1]])
    one_by_one = jnp.stack([critic.scores(x, ids, mask) for x in many])
    assert one_by_one.shape == (2, 4)
    for scores in (
        critic.scores(many, ids, mask),
        jax.jit(critic.scores)(many, ids, mask),
        jax.vmap(critic.scores, (0, None, None))(many, ids[0], mask[0]),
        jax.jit(critic.scores)(many, ids, mask, critic.params),
    ):
        np.testing.assert_allclose(scores, one_by_one, atol=1e-5)
    doubled = jax.tree.map(lambda p: p * 0, critic.params)
    np.testing.assert_allclose(critic.scores(many, ids, mask, doubled), 0.5)
    two, two_mask = critic.tokens(PROMPTS[:2])
    apart = jnp.stack([critic.scores(many[i], two[i], two_mask[i]) for i in range(2)])
    np.testing.assert_allclose(critic.scores(many, two, two_mask), apart, atol=1e-5)
    with pytest.raises(ValueError, match="2 images but 5 rows of text"):
        critic.scores(many, *critic.tokens(PROMPTS))


@pytest.mark.parametrize("size", [(32, 32), (45, 20)])
def test_gradient_equals_finite_differences(critic, size):
    ids, mask = critic.tokens("a red cat")
    pixels = jnp.asarray(smooth(*size), jnp.float32) / 255
    weights = jnp.array([1.0, -2.0, 3.0, 0.5])

    def energy(x):
        return critic.scores(x, ids, mask) @ weights

    gradient = np.asarray(jax.grad(energy)(pixels))
    assert gradient.shape == pixels.shape and np.isfinite(gradient).all()
    # The pixels that matter most, and the whole image along the gradient.
    strongest = np.argsort(-np.abs(gradient).ravel())[:4]
    directions = [jnp.zeros(gradient.size).at[i].set(1.0).reshape(gradient.shape) for i in strongest]
    directions.append(jnp.asarray(gradient / np.linalg.norm(gradient)))
    for direction in directions:
        step = 1e-2
        slope = (energy(pixels + step * direction) - energy(pixels - step * direction)) / (2 * step)
        np.testing.assert_allclose(slope, np.vdot(gradient, direction), rtol=0.03)
    np.testing.assert_allclose(jax.jit(jax.grad(energy))(pixels), gradient, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradient_is_finite_for_constant_images(critic, value):
    ids, mask = critic.tokens("a red cat")
    pixels = jnp.full((1, 40, 40, 3), value)
    assert np.isfinite(jax.grad(lambda x: critic.scores(x, ids, mask).sum())(pixels)).all()
    assert np.isfinite(jax.grad(lambda x: critic.heatmaps(x, ids, mask).sum())(pixels)).all()


def test_gradient_is_finite_and_alive_for_saturated_images(critic):
    """Every channel is 0 or 1: nothing clips on the way to the scores."""
    ids, mask = critic.tokens("a red cat")
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 2, (1, 40, 40, 3)), jnp.float32)
    gradient = np.asarray(jax.grad(lambda x: critic.scores(x, ids, mask).sum())(pixels))
    assert np.isfinite(gradient).all() and np.mean(gradient != 0) > 0.9


def test_bad_pixels_of_the_pure_functions(critic):
    ids, mask = critic.tokens("a cat")
    with pytest.raises(ImageError, match=r"\(2, 3, 40, 40\).*channels first \(CHW\)"):
        critic.scores(np.zeros((2, 3, 40, 40), np.float32), ids, mask)
    with pytest.raises(ImageError, match=r"pixels of shape \(40, 40\), expected \[B,h,w,3\]"):
        critic.scores(np.zeros((40, 40), np.float32), ids, mask)
    message = "pixels: floats from 255 to 255, expected 0..1; pixels in 0..255 given as float"
    with pytest.raises(ImageError, match=message):
        critic.heatmaps(np.full((1, 40, 40, 3), 255.0, np.float32), ids, mask)


@pytest.mark.parametrize("side", [32, 64])
def test_bytes_become_the_square_of_the_loader(side):
    for shape in ((32, 32), (90, 47), (47, 90), (60, 50), (50, 40), (40, 60), (20, 33), (1, 70), (500, 3)):
        array = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        square = picture(array, side, 0).square
        np.testing.assert_array_equal(pixels_lib.unit(jnp.asarray(array)[None], side)[0], square * np.float32(1 / 255))


def test_bytes_are_scored_as_the_critic_scores_the_picture(critic):
    array = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    tokens, expected = critic.tokens("a red cat"), critic(array, "a red cat")
    np.testing.assert_allclose(critic.scores(array, tokens), expected.scores[0], atol=1e-5)
    np.testing.assert_allclose(critic.heatmaps(array[None], tokens), expected.heatmaps, atol=1e-5)


ZEROS = np.zeros((1, 8, 8, 3), np.float32)
#: XLA's minimum and maximum of such an array are not NaN.
SOME_NAN = np.where(np.random.default_rng(0).random((2, 64, 48, 3)) > 0.9, np.nan, 0.5).astype(np.float32)


@pytest.mark.parametrize("pixels, message", [
    (np.full((1, 8, 8, 3), 40_000, np.uint16), "pixels of type uint16; expected uint8 0..255 or floats"),
    (np.zeros((1, 8, 8, 3), np.int8), "pixels of type int8; expected"),
    (np.zeros((1, 8, 8, 3), np.int64), "pixels of type int64; expected"),
    (np.zeros((1, 8, 8, 3), bool), "pixels of type bool; expected"),
    (np.full((1, 8, 8, 3), "a"), "pixels of type <U1; expected"),
    (np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 8, 8, 3), r"from -1 to 1, expected 0..1; pixels in -1..1\?"),
    (ZEROS + 1.3, "floats from 1.3 to 1.3, expected 0..1; clip them"),
    (ZEROS + np.nan, "pixels are not finite"),
    (SOME_NAN, "pixels are not finite"),
    (jnp.asarray(SOME_NAN), "pixels are not finite"),
    (np.ma.masked_array(ZEROS, ZEROS > 0.5), "pixels: a masked array, .* use pixels.filled"),
    ([np.zeros((8, 8, 3)), np.zeros((8, 9, 3))], "images of 2 shapes in one list"),
    ([], "there are none"),
    ([Image.new("RGB", (8, 8))], r"pixels\[0\]: expected an array .* found PIL.Image.Image; critic.score"),
    (Image.new("RGB", (8, 8)), "found PIL.Image.Image; critic.score"),
    ("cat.png", "found builtins.str; critic.score"),
    (None, "found builtins.NoneType"),
])  # fmt: skip
def test_every_way_refuses_the_same_pixels(critic, pixels, message):
    tokens = critic.tokens("a cat")
    ways = [
        lambda x: critic.scores(x, tokens),
        lambda x: critic.heatmaps(x, tokens),
        lambda x: critic.reward()(x, tokens),
        energy.score(critic, "a cat"),
        energy.heatmap(critic, "a cat"),
        energy.function(lambda x: x.mean((1, 2, 3))).parts,
    ]
    for way in ways:
        with pytest.raises((ImageError, ArgumentTypeError), match=message):
            way(pixels)


def test_every_way_takes_the_same_pixels(critic):
    array = smooth(32, 32)
    tokens, floats = critic.tokens("a cat"), array.astype(np.float32) / 255
    expected = critic.scores(floats, tokens)
    for pixels in (array, jnp.asarray(array), floats.astype(np.float64), jnp.asarray(floats), [floats], (array,),
                   floats.astype(">f4")):  # fmt: skip
        scores = critic.scores(pixels, tokens)
        np.testing.assert_allclose(scores.reshape(4), expected, atol=1e-5)
        np.testing.assert_allclose(energy.score(critic, "a cat")(pixels).reshape(()), 1 - expected[3], atol=1e-5)
    np.testing.assert_allclose(critic.scores(floats * 1.3 - 0.15, tokens).shape, (4,))  # a step of an optimizer
