"""Properties and losses of Augsal against slow references, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.nn.boxes import regions
from rahf.saliency.augsal import losses
from rahf.saliency.augsal.properties import GREY, PROPERTIES, properties

RNG = np.random.default_rng(0)
PICTURES = RNG.random((2, 6, 8, 3), np.float32)


def slow(picture, inside, kind):
    """Pixel by pixel, a region of 0 and 1."""
    grey = np.array([[sum(g * c for g, c in zip(GREY, pixel)) for pixel in row] for row in picture.astype(np.float64)])
    chosen = [(y, x) for y in range(inside.shape[0]) for x in range(inside.shape[1]) if inside[y, x]]
    values = np.array([grey[place] for place in chosen])
    channels = [np.mean([picture[place][c] for place in chosen]) for c in range(3)]
    local = np.std(values)
    if kind == "rms":
        contrast = np.sqrt(np.mean((values - grey.mean()) ** 2))
    else:
        contrast = abs(np.std(values) / values.mean() - grey.std() / grey.mean())
    return [*channels, values.mean(), local, contrast]


@pytest.mark.parametrize("kind", ["rms", "difference"])
def test_properties_against_a_slow_reference(kind):
    inside = np.zeros((2, 6, 8), np.float32)
    inside[0, 1:4, 2:7], inside[1, :, 5:] = 1, 1
    expected = [slow(*one, kind) for one in zip(PICTURES, inside)]
    np.testing.assert_allclose(properties(PICTURES, inside, kind), expected, atol=1e-5)
    assert len(PROPERTIES) == 6
    # On a canvas with an edge that is no picture.
    canvas = np.pad(PICTURES, ((0, 0), (2, 0), (0, 1), (0, 0)), constant_values=0.5)
    around = lambda x: np.pad(x, ((0, 0), (2, 0), (0, 1)))
    framed = properties(canvas, around(inside), kind, around(np.ones_like(inside)))
    np.testing.assert_allclose(framed, expected, atol=1e-5)


def test_a_flat_region_has_a_finite_gradient():
    flat = jnp.full((1, 4, 4, 3), 0.5)
    gradient = jax.grad(lambda x: properties(x, jnp.ones((1, 4, 4)))[:, 4:].sum())(flat)
    np.testing.assert_array_equal(gradient, 0)


def test_regions_cover_cells_by_their_share():
    """A box over the right half, from a quarter of the height down: the second of two rows is whole, the first half."""
    (region,) = regions(np.array([[0.5, 0.25, 1.0, 1.0]]), (2, 4))
    np.testing.assert_allclose(region, [[0, 0, 0.5, 0.5], [0, 0, 1, 1]], atol=1e-6)


def test_kld_and_cc_by_hand():
    """Equations 5 and 6, over the cells that count."""
    g, p = np.array([[[3.0, 1.0, 9.0]]]), np.array([[[1.0, 1.0, 5.0]]])
    inside = np.array([[[1.0, 1.0, 0.0]]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(losses.kld(p, g, inside=inside), [expected], atol=1e-5)
    a, b = RNG.random((2, 1, 5, 4))
    np.testing.assert_allclose(losses.cc(a, b), [np.corrcoef(a.ravel(), b.ravel())[0, 1]], atol=1e-5)
    np.testing.assert_allclose(losses.cc(p, g, inside=inside), [0.0], atol=1e-6)  # constant where it counts
    np.testing.assert_allclose(losses.cc(p, np.array([[[3.0, 1.0, 2.0]]])), [0.0], atol=1e-6)


def test_cross_entropy_leaves_unknown_classes_out():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]))
    np.testing.assert_allclose(losses.cross_entropy(logits, np.array([1, -1])), [-np.log(0.2), 0], atol=1e-6)


def test_edit_losses_by_hand():
    original, edited = np.array([[[0.2, 0.6]]]), np.array([[[0.4, 0.9]]])
    mask = np.array([[[1.0, 0.0]]])
    bce = lambda p, y: -(y * np.log(p) + (1 - y) * np.log(1 - p))
    np.testing.assert_allclose(losses.edit(original, edited, mask, "bce"), [bce(0.4, 0.2) / 2], atol=1e-4)
    changed = 1 / (1 + np.exp(-0.2)) - 0.5
    np.testing.assert_allclose(losses.edit(original, edited, mask, "mask"), [bce(changed, 1) / 2], atol=1e-4)
    # It rose by 0.2 inside: 0.3 is not reached, 0.1 is.
    np.testing.assert_allclose(losses.edit(original, edited, mask, "hinge", 0.3), [0.1], atol=1e-6)
    np.testing.assert_allclose(losses.edit(original, edited, mask, "hinge", 0.1), [0.0], atol=1e-6)
    # The original's map is a constant, and the hinge pushes the edited one up where it was edited.
    total = lambda a, b: losses.edit(a, b, mask, "hinge", 0.3).sum()
    of_original, of_edited = jax.grad(total, (0, 1))(jnp.asarray(original), jnp.asarray(edited))
    np.testing.assert_allclose(of_original, 0)
    np.testing.assert_allclose(of_edited, [[[-1.0, 0.0]]], atol=1e-6)


def test_the_map_that_agrees_best_is_chosen():
    """Equation 8, against a loop."""
    maps, saliency = RNG.random((2, 3, 4, 4)), RNG.random((2, 4, 4))
    best, products = losses.chosen_map(maps, saliency)
    for number in range(2):
        sums = [sum((maps[number, k] * saliency[number]).ravel()) for k in range(3)]
        assert best[number] == int(np.argmax(sums))
        np.testing.assert_allclose(products[number], maps[number, best[number]] * saliency[number], rtol=1e-5)
