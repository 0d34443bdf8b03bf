"""Pictures on the fast way, decoded at a reduced scale, equal those on the exact way; heatmaps keep their values."""

import pathlib

import numpy as np
import pytest

from rahf import images
from rahf.images import decode as decode_lib
from tests.helpers.image_maker import RGB, encode, expect_error, slow, smooth


@pytest.mark.parametrize("box", [None, (0.1, 0.05, 0.95, 0.9), (0.503, 0.25, 0.8, 1.0)])
@pytest.mark.parametrize("shape, size", [
    ((336, 336), 384), ((512, 768), 384), ((1600, 1200), 256), ((90, 64), 64),
])  # fmt: skip
def test_fast_equals_exact(shape, size, box):
    picture = smooth(*shape, seed=shape[0])
    for options in ({"quality": 90}, {"quality": 90, "subsampling": 0}, {"quality": 85, "progressive": True}):
        data = encode(picture, "JPEG", **options)
        difference = np.abs(images.decode_resized(data, size, box) - slow(data, size, box or images.FULL))
        assert difference.mean() < 0.6 and np.percentile(difference, 99) <= 6, options
    for format in ("PNG", "WEBP"):
        data = encode(picture, format)
        exact = slow(data, size, box or images.FULL)
        np.testing.assert_array_equal(images.decode_resized(data, size, box), exact)


def test_large_jpeg_is_decoded_at_reduced_scale(monkeypatch):
    asked = []
    decode = decode_lib.simplejpeg.decode_jpeg

    def spy(data, **options):
        pixels = decode(data, **options)
        asked.append(pixels.shape)
        return pixels

    monkeypatch.setattr(decode_lib.simplejpeg, "decode_jpeg", spy)
    data = encode(smooth(1600, 1200), "JPEG")
    images.decode_resized(data, 256)
    assert asked[-1][0] <= 800 and min(asked[-1][:2]) >= 256
    images.decode_resized(data, 256, (0.0, 0.0, 0.25, 0.25))  # a quarter must still fill the square
    assert min(asked[-1][:2]) >= 1024


def test_grey_jpeg_and_damaged_jpeg_on_the_fast_way():
    grey = encode(RGB[..., 1], "JPEG", quality=95)
    assert np.abs(images.decode_resized(grey, 40) - slow(grey, 40)).max() <= 1
    data = encode(smooth(300, 300), "JPEG")
    expect_error(data[: len(data) // 2], "truncated or damaged JPEG")


def test_bad_box():
    for box in [(0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 1.2, 1.0), (0.6, 0.0, 0.5, 1.0)]:
        with pytest.raises(ValueError, match="crop"):
            images.decode_resized(encode(RGB), 8, box)


def test_map_keeps_values_and_place():
    values = np.zeros((512, 512), np.uint8)
    values[100:140, 300:340] = 170
    data = encode(values)
    np.testing.assert_array_equal(images.load_grey(data), values)
    np.testing.assert_array_equal(images.decode_map(data, 512), values)
    half = images.decode_map(data, 256)
    np.testing.assert_array_equal(half[52:68, 152:168], 170)  # inside, away from the soft edge
    assert abs(half.astype(float).mean() - values.mean()) < 0.02 and half.max() == 170
    crop = images.decode_map(data, 64, (0.5, 0.125, 0.75, 0.375))  # pixels 256..384 and 64..192
    rows, columns = np.nonzero(crop > 85)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 37, 22, 41)
    assert not images.decode_map(encode(np.zeros((9, 9), np.uint8)), 32).any()


def test_map_from_colour_and_broken_map():
    coloured = encode(np.full((4, 4, 3), 85, np.uint8))
    np.testing.assert_array_equal(images.load_grey(coloured), np.full((4, 4), 85))
    with pytest.raises(images.ImageError, match="heat: truncated"):
        images.decode_map(encode(smooth(99, 99)[..., 0])[:-200], 8, what="heat")


def test_does_not_import_jax():
    import subprocess
    import sys

    code = "import sys, rahf.images; assert not {'jax', 'torch', 'tensorflow'} & set(sys.modules)"
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
