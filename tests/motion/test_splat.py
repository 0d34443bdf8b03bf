"""Forward warping: shifts, collisions, holes and gradients with values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from rahf.motion import spectrum as spectrum_lib
from rahf.motion import splat


def picture(height=5, width=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((1, height, width, 3)), jnp.float32)


def uniform(x, y, height=5, width=6):
    return jnp.broadcast_to(jnp.array([x, y], jnp.float32), (1, height, width, 2))


SOFTMAX = jax.jit(splat.softmax_splat)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, -1), (-3, 2)])
def test_a_constant_whole_displacement_is_a_shift(x, y):
    before = np.asarray(picture())
    result = SOFTMAX(before, uniform(x, y), jnp.zeros((1, 5, 6)))
    after, covered = np.zeros_like(before), np.zeros((1, 5, 6))
    for row in range(5):
        for column in range(6):
            if 0 <= row + y < 5 and 0 <= column + x < 6:
                after[0, row + y, column + x] = before[0, row, column]
                covered[0, row + y, column + x] = 1
    np.testing.assert_allclose(result.values, after, atol=1e-6)
    np.testing.assert_allclose(result.coverage, covered, atol=1e-6)


def test_half_a_pixel_averages_neighbours():
    before = np.asarray(picture())
    result = SOFTMAX(before, uniform(0.5, 0), jnp.zeros((1, 5, 6)))
    np.testing.assert_allclose(result.values[:, :, 1:], (before[:, :, 1:] + before[:, :, :-1]) / 2, atol=1e-6)


def collision():
    """Pixels 0 and 2 of a row both arrive at 1; 1 leaves the picture."""
    values = jnp.array([[[[1.0], [5.0], [3.0]]]])
    return values, jnp.array([[[[1.0, 0], [0, 9.0], [-1.0, 0]]]])


def test_equal_importance_gives_the_mean():
    values, flow = collision()
    result = jax.jit(splat.average_splat)(values, flow)
    assert result.values[0, 0, :, 0].tolist() == [0, 2, 0]
    assert result.coverage[0, 0].tolist() == [0, 2, 0]


@pytest.mark.parametrize(("importance", "expected"), [((30.0, 0, 0), 1), ((0, 0, 30.0), 3), ((900.0, 0, 0), 1)])
def test_the_important_pixel_is_in_front(importance, expected):
    values, flow = collision()
    result = SOFTMAX(values, flow, jnp.array([[importance]]))
    np.testing.assert_allclose(result.values[0, 0, 1, 0], expected, rtol=1e-6)


def test_unimportant_pixels_are_no_holes():
    """Beside one of importance 900 in the same picture: exp(-900) is 0 in float32."""
    importance = jnp.zeros((1, 5, 6)).at[0, 0, 0].set(900.0)
    result = SOFTMAX(picture(), uniform(0, 0), importance)
    np.testing.assert_allclose(result.values, picture(), rtol=1e-5)


def test_weights_are_softmax():
    """Importances 0 and 1: shares 1 / (1 + e) and e / (1 + e)."""
    values, flow = collision()
    result = SOFTMAX(values, flow, jnp.array([[[0.0, 0.0, 1.0]]]))
    np.testing.assert_allclose(result.values[0, 0, 1, 0], (1 + 3 * np.e) / (1 + np.e), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, -1e30])
def test_a_displacement_to_nowhere_drops_its_pixel_only(bad):
    flow = uniform(0, 0).at[0, 2, 3, 0].set(bad)
    result = SOFTMAX(picture(), flow, jnp.zeros((1, 5, 6)))
    assert result.coverage[0, 2, 3] == 0 and np.isfinite(result.values).all()
    assert result.coverage.sum() == 29


def test_gradients_are_those_of_differences():
    """Of values, displacement and importance, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        values, flow = rng.random((1, 3, 4, 2)), rng.uniform(-1.4, 1.4, (1, 3, 4, 2)) + 0.013
        importance, weights = rng.random((1, 3, 4)), rng.random((1, 3, 4, 2))

        def scalar(values, flow, importance):
            total = splat._scatter(
                jnp.concatenate([values * jnp.exp(importance)[..., None], jnp.exp(importance)[..., None]], -1), flow
            )
            return (total[..., :2] / (total[..., 2:] + 0.1) * weights).sum()

        test_util.check_grads(jax.jit(scalar), (values, flow, importance), order=1, modes=["rev"], rtol=1e-5)


def test_the_public_function_has_finite_gradients_with_holes():
    total = lambda f, w: (splat.softmax_splat(picture(), f, w).values ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total, (0, 1)))
    for part in gradient(uniform(2.3, 0.2), jnp.ones((1, 5, 6))):
        assert np.isfinite(part).all() and np.abs(part).max() < 1e3
    moved = gradient(uniform(0.3, 0.2), jnp.ones((1, 5, 6)))[0]
    assert np.abs(moved).max() > 0


def test_backward_warp_is_the_inverse_of_a_shift():
    before = np.asarray(picture())
    after = np.asarray(jax.jit(splat.backward_warp)(before, uniform(-2, 1)))
    np.testing.assert_allclose(after[0, :4, 2:], before[0, 1:, :4], atol=1e-6)
    np.testing.assert_allclose(after[0, 4, 2:], before[0, 4, :4], atol=1e-6)  # the border is repeated


def test_mean_motion_of_a_volume_is_that_of_its_texture():
    rng = np.random.default_rng(5)
    texture = jnp.asarray(rng.normal(size=(20, 3, 4, 2)), jnp.float32)
    volume = spectrum_lib.to_spectrum(texture, 6)
    reference = np.linalg.norm(spectrum_lib.to_texture(volume, 20), axis=-1).mean(0)
    np.testing.assert_allclose(splat.mean_motion(spectrum_lib.to_texture(volume, 20)), reference, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda v: splat.mean_motion_of(v, 20))(volume), reference, rtol=1e-4)
