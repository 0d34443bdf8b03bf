"""Depthwise convolutions: the gradients of a training step on a CPU are those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.nn import depthwise as depthwise_lib
from rahf.nn import gradients
from rahf.nn.depthwise import depthwise

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "taps", "stride", "padding"),
    [
        ((2, 6, 5, 3), 3, 1, "same"),
        ((2, 7, 8, 3), 5, 2, "same"),  # odd and even sides: other edges
        ((1, 9, 7, 2), 3, 2, (1, 1)),
        ((2, 11, 6, 2), 3, 3, (0, 2)),  # pixels behind the last step of the kernel
        ((1, 1, 1, 4), 5, 2, "same"),
    ],
)
def test_gradients_of_training(shape, taps, stride, padding, monkeypatch):
    monkeypatch.setattr(depthwise_lib, "_ROWS", 2)  # several blocks of rows for each example
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((taps, taps, shape[-1])), jnp.float32)
    y = depthwise(x, kernel, stride, padding)
    of_y = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    pull = lambda: jax.jit(lambda *a: jax.vjp(lambda *b: depthwise(*b, stride, padding), *a)[1](of_y))  # noqa: E731
    expected = pull()(x, kernel)
    with gradients.of_training():
        found = pull()(x, kernel)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
