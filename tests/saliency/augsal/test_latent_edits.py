"""Edits of latents, the fitted direction of brightness, masks, and the loop that bounds an edit."""

import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.errors import ArgumentError
from rahf.diffusion.networks import patches
from rahf.saliency.augsal import editor, latent_edits
from tests.helpers import diffusion_maker
from tests.helpers import stable_diffusion_maker as maker

RNG = np.random.default_rng(0)
#: Latents to colours, as a decoder nearly does it, and a little that is not linear.
MATRIX = RNG.normal(size=(4, 3)) * 0.1


def decoded(latents):
    """[B,h,w,4] → [B,2h,2w,3]."""
    linear = np.asarray(latents, np.float64) @ MATRIX
    return np.kron(0.5 + linear + 0.02 * np.tanh(linear), np.ones((1, 2, 2, 1)))


@pytest.fixture(scope="module")
def colors():
    latents = RNG.normal(size=(20, 4, 6, 4))
    return latent_edits.fit_colors(latents, decoded(latents))


def test_brightness_in_patches_of_pixels_is_exact():
    """Half of a picture by 0.25 brighter, alike in all channels; with an autoencoder the published one."""
    gamma = latent_edits.known_gamma(diffusion_maker.OF_PIXELS)
    picture = RNG.uniform(0.2, 0.6, (1, 8, 8, 3)).astype(np.float32)
    mask = np.array([[[1.0, 0.0], [1.0, 0.0]]], np.float32)
    edited = latent_edits.brightness(patches.cells(2 * picture - 1, 4), mask, 0.25, gamma)
    shown = (np.asarray(patches.pixels(edited, 4)) + 1) / 2
    np.testing.assert_allclose(shown[:, :, :4], picture[:, :, :4] + 0.25, atol=1e-6)
    np.testing.assert_allclose(shown[:, :, 4:], picture[:, :, 4:], atol=1e-6)
    assert latent_edits.known_gamma(maker.FLAT) == latent_edits.SD1_GAMMA


def test_the_fit_finds_the_decoder(colors):
    np.testing.assert_allclose(colors.matrix, MATRIX * 1.02, atol=2e-3)
    np.testing.assert_allclose(colors.bias, 0.5, atol=1e-3)
    assert colors.r2 > 0.999
    np.testing.assert_allclose(colors.gamma @ colors.matrix, np.ones(3), atol=1e-9)


def test_brightness_grows_and_colours_stay(colors):
    """alpha · gamma raises the mean grey in equal steps; the mean chroma changes by less than 2%."""
    latents, mask = RNG.normal(size=(1, 4, 6, 4)).astype(np.float32), np.ones((1, 4, 6), np.float32)
    means = []
    for alpha in (-0.1, 0.0, 0.1, 0.2):
        edited = latent_edits.brightness(latents, mask, alpha, colors.gamma)
        means.append(decoded(edited).mean((0, 1, 2)))
    grey = np.mean(means, 1)
    np.testing.assert_allclose(np.diff(grey), 0.1, atol=5e-3)
    chroma = np.array(means) - grey[:, None]
    assert np.abs(chroma - chroma[1]).max() < 0.02 * np.ptp(means[1])


def test_edits_stay_inside_the_mask():
    latents, mask = RNG.normal(size=(2, 4, 6, 4)).astype(np.float32), np.zeros((2, 4, 6), np.float32)
    mask[:, 1:3, 2:4] = 1
    gamma = np.array([1.0, 2.0, 0.0, -1.0])
    for edit in (latent_edits.brightness, latent_edits.contrast):
        np.testing.assert_array_equal(edit(latents, mask, 0.0, gamma), latents)
        edited = np.asarray(edit(latents, mask, np.array([0.1, 0.3]), gamma))
        np.testing.assert_array_equal(edited[mask == 0], latents[mask == 0])
        assert np.abs(edited - latents)[mask == 1].max() > 0.05


def test_contrast_by_hand():
    """Equation 1: about the mean inside the mask. Along gamma alone with one."""
    latents = jnp.asarray([[[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]]])
    mask = jnp.asarray([[[1.0, 1.0, 0.0]]])
    edited = latent_edits.contrast(latents, mask, 0.5)
    np.testing.assert_allclose(edited, [[[[0.5, -0.5], [3.5, 2.5], [9.0, 9.0]]]], atol=1e-6)
    edited = latent_edits.contrast(latents, mask, 0.5, np.array([2.0, 0.0]))
    np.testing.assert_allclose(edited, [[[[0.5, 0.0], [3.5, 2.0], [9.0, 9.0]]]], atol=1e-6)


def test_fits_that_say_nothing_are_refused():
    with pytest.raises(ArgumentError, match="take more pictures"):
        latent_edits.fit_colors(np.zeros((1, 2, 2, 4)), np.zeros((1, 4, 4, 3)))
    with pytest.raises(ArgumentError, match="multiples of 3 and 2"):
        latent_edits.fit_colors(np.zeros((1, 3, 2, 4)), np.zeros((1, 4, 4, 3)))
    with pytest.raises(ArgumentError, match="nothing to fit"):
        latent_edits.fit_colors(RNG.normal(size=(4, 4, 4, 4)), np.zeros((4, 8, 8, 3)))


def test_the_mask_is_where_the_product_is_high():
    """Values up to the mean (0.25) go; at the latents' size, those above a third of the largest stay."""
    product = np.array([[0.0, 0.1], [0.3, 0.6]], np.float32)
    kept, mask = editor.masked(product, (2, 2))
    np.testing.assert_allclose(kept, [[0, 0], [0.5, 1]])
    np.testing.assert_array_equal(mask, [[0, 0], [1, 1]])
    with pytest.raises(ArgumentError, match="choose no part of the picture"):
        editor.masked(np.ones((2, 2)), (4, 4))


@pytest.mark.parametrize(
    "slope, rounds, kept",
    [
        (1.0, 1, 0.5),  # at once: 0.5 is below two standard deviations of 0.3
        (2.0, 6, 0.5 * 0.9**5),  # 1.0, 0.9, 0.81, 0.729, 0.656, 0.59
        (1e9, 7, 0.0),  # never: it ends, and nothing is changed
        (np.nan, 7, 0.0),
    ],
)
def test_the_loop_of_two_standard_deviations_ends(slope, rounds, kept):
    std, unchanged = np.array([0.3, 1.0]), ("before", np.array([0.2, 0.0]))
    tried = []

    def edit(strength):
        tried.append(strength)
        return f"edited {strength:.3f}", unchanged[1] + np.array([slope * strength, 0.0])

    picture, values, strength, count = editor.bounded(edit, unchanged, std, 0.5, 0.9, 7)
    assert (count, len(tried)) == (rounds, rounds) and strength == pytest.approx(kept)
    assert picture == (f"edited {kept:.3f}" if kept else "before")
    assert (np.abs(values - unchanged[1]) <= 2 * std).all()
