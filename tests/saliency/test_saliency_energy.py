"""Guidance by a saliency model: KL(target || saliency)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.errors import ArgumentError
from rahf.saliency import energy


class Brightness:
    """People look where a picture is bright: log-density is a parameter times grey, normalised."""

    params = {"gain": np.float32(2)}

    def log_density_of(self, params, pixels, bias):
        logs = params["gain"] * pixels.mean(-1)
        return logs - jax.nn.logsumexp(logs, (1, 2), keepdims=True)


MODEL = Brightness()


def test_values_and_gradient():
    """By hand, each picture its own map; 0 for its own density; the gradient raises pixels where the target lies."""
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 6, 3)).astype(np.float32)
    maps = np.random.default_rng(1).uniform(size=(2, 4, 6)).astype(np.float32)
    maps[0, :, :3] = 0
    total = energy.target(MODEL, maps)
    logs = np.asarray(MODEL.log_density_of(MODEL.params, pixels, None))
    wanted = maps / maps.sum((1, 2), keepdims=True)
    by_hand = [sum(t * (np.log(t) - s) for t, s in zip(wanted[n].ravel(), logs[n].ravel()) if t > 0) for n in range(2)]
    np.testing.assert_allclose(total(pixels), by_hand, rtol=1e-5)
    np.testing.assert_allclose(energy.target(MODEL, np.exp(logs[1]))(pixels[1]), 0, atol=1e-6)
    gradient = np.asarray(jax.grad(lambda x: total(x).sum())(jnp.asarray(pixels)))
    assert np.isfinite(gradient).all() and (gradient[0, :, :3] > 0).all() and gradient[0, :, 3:].mean() < 0
    # A map of half the size asks for the same, coarsely; the model's parameters are an argument.
    coarse = energy.target(MODEL, np.ones((2, 3)), {"gain": np.float32(0)})
    np.testing.assert_allclose(coarse(pixels), 0, atol=1e-6)
    assert total.terms[0].function == energy.target(MODEL, maps[::-1]).terms[0].function


@pytest.mark.parametrize(
    "maps, message",
    [
        (np.zeros((2, 4, 6)), "map 0 is 0 everywhere"),
        (np.full((4, 6), -1.0), "at least 0"),
        (np.full((4, 6), np.nan), "NaN"),
        (np.ones(6), "found shape"),
    ],
)
def test_maps_that_ask_for_nothing(maps, message):
    with pytest.raises(ArgumentError, match=message):
        energy.target(MODEL, maps)


def test_a_map_of_another_aspect():
    with pytest.raises(ArgumentError, match="another aspect: 4 x 4, the pictures are 6 x 4"):
        energy.target(MODEL, np.ones((4, 4)))(np.zeros((1, 4, 6, 3), np.float32))
