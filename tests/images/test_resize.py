"""Bilinear resizing against hand-computed values and JAX."""

import numpy as np
import pytest

from rahf.images.resize import resize


def test_resize():
    image = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_allclose(resize(image, (1, 4)), [[0, 0.25, 0.75, 1]], atol=1e-7)
    np.testing.assert_allclose(resize(image, (2, 2)), [[0, 1], [0, 1]])
    ramp = np.arange(8, dtype=np.float32)[None]
    # Halving: a triangle of width 4 around each pair's middle, cut and normalised at the border.
    np.testing.assert_allclose(resize(ramp, (1, 4))[0, 1:3], [2.5, 4.5], rtol=1e-6)
    assert resize(ramp, (1, 4))[0, 0] == pytest.approx((0.75 * 0 + 0.75 * 1 + 0.25 * 2) / 1.75)
    rng = np.random.default_rng(0)
    big = resize(rng.random((5, 7)).astype(np.float32), (31, 40))
    assert big.shape == (31, 40) and big.dtype == np.float32 and 0 <= big.min() and big.max() <= 1


def test_resize_keeps_a_constant_exactly():
    for value in np.random.default_rng(0).random(20).astype(np.float32):
        assert (resize(np.full((24, 7), value, np.float32), (101, 64)) == value).all()


def test_resize_is_that_of_jax():
    jax = pytest.importorskip("jax")
    image = np.random.default_rng(0).random((6, 9)).astype(np.float32)
    for shape in ((24, 36), (13, 5), (3, 3)):
        expected = jax.image.resize(image, shape, "bilinear")
        np.testing.assert_allclose(resize(image, shape), expected, atol=1e-6)


def test_resize_keeps_channels_apart_and_bytes_as_bytes():
    maps = np.random.default_rng(0).random((6, 9, 2)).astype(np.float32)
    both = resize(maps, (4, 12))
    assert both.shape == (4, 12, 2)
    for channel in range(2):
        np.testing.assert_array_equal(both[:, :, channel], resize(maps[:, :, channel], (4, 12)))
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, 2:] = (200, 100, 0)
    halved = resize(pixels, (1, 2))
    # Halving: a triangle over two columns to each side, so 0.25 / 1.75 of the weight lies beyond the middle.
    assert halved.dtype == np.uint8
    np.testing.assert_array_equal(halved[0], [[29, 14, 0], [171, 86, 0]])
