"""Frames from a picture and a spectral volume, against shifts by hand and drawn scenes."""

import jax
import numpy as np
import pytest

from data_pipelines.video import scenes
from data_pipelines.video.volume import SpectralVolume
from rahf.core.errors import ArgumentError
from rahf.motion import render


def picture(height=9, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def constant(x, y, grid=(3, 4), frames=10, fps=10.0):
    """A volume whose displacement is (x, y) at all times, in pixels of its grid."""
    spectrum = np.zeros((2, *grid, 2), np.complex64)
    spectrum[0] = frames * np.array([x, y])
    return SpectralVolume(spectrum, frames, fps)


def test_a_shift_at_the_pictures_own_size():
    """One pixel of a grid of 3 x 4 is three of the picture; what leaves is gone, what is uncovered is filled."""
    before = picture()
    renderer = render.Renderer(before, constant(1, 0))
    np.testing.assert_allclose(renderer.flow(0.0), np.broadcast_to([3.0, 0.0], (9, 12, 2)), atol=1e-5)
    after = renderer.frame(4.2)
    np.testing.assert_array_equal(after[:, 3:], before[:, :-3])
    assert after[:, :3].std() > 0 and (after[:, :3] > 0).any()


def test_magnification_and_mask():
    before = picture()
    half = np.zeros((9, 12), np.float32)
    half[:, 6:] = 1
    renderer = render.Renderer(before, constant(1, 0), magnify=2 / 3, mask=half)
    flow = np.asarray(renderer.flow(0.0))
    assert not flow[:, :6].any() and np.allclose(flow[:, 6:, 0], 2)
    after = renderer.frame(0.0)
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    np.testing.assert_array_equal(after[:, 8:], before[:, 6:-2])


def test_holes_take_the_colour_of_what_stands_still():
    """A hole between a thing that moves (white) and the background (black)."""
    values = np.zeros((1, 8, 8, 1), np.float32)
    values[:, :, 5:] = 1
    coverage, preference = np.ones((1, 8, 8), np.float32), np.ones((1, 8, 8), np.float32)
    coverage[:, :, 3:5], preference[:, :, 5:] = 0, 0.0001
    filled = np.asarray(jax.jit(render.fill_holes)(values, coverage, preference))
    assert filled[0, :, 3:5].max() < 0.2
    np.testing.assert_array_equal(filled[0, :, :3], values[0, :, :3])
    np.testing.assert_array_equal(filled[0, :, 5:], values[0, :, 5:])


def test_frames_of_a_drawn_scene():
    """With the exact volume, softmax splatting is nearer to the true frame than the baselines and than no motion."""
    scene = scenes.scene(0, "test", 4, 48, 32)
    first, truth, errors = scene.frame(0), scene.frame(75).astype(float), {}
    for method in ("softmax", "average", "backward"):
        drawn = render.Renderer(first, scene.volume(), method=method).frame(75.0)
        errors[method] = np.square(drawn - truth).mean()
    errors["still"] = np.square(first - truth).mean()
    assert errors["softmax"] < 0.3 * errors["still"]
    assert errors["softmax"] <= errors["average"] and errors["softmax"] < errors["backward"]


def test_times_of_frames():
    volume = constant(0, 0, frames=150, fps=30.0)
    np.testing.assert_allclose(render.frame_times(volume, 0.2, 15.0, False), [0, 2, 4])
    loop = render.frame_times(volume, 10.0, 24.0, True)
    assert len(loop) == 240 and loop[0] == 0 and loop[-1] + loop[1] == pytest.approx(300)
    for seconds, fps, message in (
        (0.0, 30.0, "seconds: expected a number above 0, found 0"),
        (float("nan"), 30.0, "seconds"),
        (5.0, -1.0, "fps: expected a number above 0, found -1"),
        (0.01, 30.0, "less than one frame"),
    ):
        with pytest.raises(ArgumentError, match=message):
            render.frame_times(volume, seconds, fps, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(magnify=0.0), "magnify: expected a factor above 0"),
        (dict(mask=np.ones((3, 4), np.float32)), "12 x 9 pixels, found \\(4, 3\\)"),
        (dict(method="median"), "'median'"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ArgumentError, match=message):
        render.Renderer(picture(), constant(0, 0), **options)
