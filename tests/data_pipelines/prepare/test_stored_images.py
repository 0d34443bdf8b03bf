"""What is stored of maps: PNG of 8 bit grey that every reader decodes to the same numbers."""

import numpy as np
import pytest

from data_pipelines.prepare.stored_images import encode_map, encode_smooth_map, is_grey_png
from rahf import images


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (33, 20), (64, 300)])
def test_smooth_maps_are_stored_without_loss_whatever_is_in_them(shape):
    for grey in (np.zeros(shape, np.uint8), np.random.default_rng(0).integers(0, 256, shape, np.uint8)):
        encoded = encode_smooth_map(grey)
        assert is_grey_png(encoded)
        np.testing.assert_array_equal(images.load_grey(encoded), grey)


def test_a_smooth_map_takes_few_bytes_in_any_direction():
    down, across = np.mgrid[:256, :256] / 256
    grey = (255 * np.exp(-((down - 0.4) ** 2 + (across - 0.7) ** 2) / 0.02)).astype(np.uint8)
    for view in (grey, grey[::-1, ::-1], grey.T):
        np.testing.assert_array_equal(images.load_grey(encode_smooth_map(view)), view)
        assert len(encode_smooth_map(view)) < 1.5 * len(encode_map(grey)) < grey.size / 5
