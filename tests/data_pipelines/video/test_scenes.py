"""Drawn scenes: their flow and spectral volume are those of their pictures."""

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.video import scenes


@pytest.mark.parametrize("index", range(len(scenes.KINDS)), ids=scenes.KINDS)
def test_the_flow_leads_to_the_same_colour(index):
    """``I_t(p + F_t(p)) = I_0(p)`` wherever nothing comes in front: for most pixels of every layer."""
    scene = scenes.scene(0, "train", index, 64, 40)
    assert scene.kind == scenes.KINDS[index]
    first, texture = scene.frame(0).astype(np.float32), scene.texture()
    assert not texture[0].any() and np.abs(texture).max() > 1
    rows, columns = np.indices(first.shape[:2])
    inner = ndimage.binary_erosion(scene.front(), iterations=1)
    for time in (31, 75):
        later = scene.frame(time).astype(np.float32)
        place = [rows + texture[time, ..., 1], columns + texture[time, ..., 0]]
        followed = np.stack([ndimage.map_coordinates(later[..., c], place, order=1) for c in range(3)], -1)
        moving = inner & (np.linalg.norm(texture[time], axis=-1) > 0.7)
        error, still = (np.abs(picture - first).mean(-1)[moving] for picture in (followed, later))
        assert moving.sum() > 30 and np.median(error) < 4 and np.median(error) < 0.5 * np.median(still)


def test_the_closed_form_is_the_transform_of_the_flow():
    scene = scenes.scene(1, "dev", 0, 32, 24)
    transform, volume = np.fft.rfft(scene.texture(), axis=0), scene.volume()
    np.testing.assert_allclose(transform[:16], volume.spectrum, atol=1e-3)
    assert np.abs(transform[16:]).max() < 1e-3  # nothing is cut off
    assert volume.period == 5.0


def test_equal_arguments_give_equal_scenes_and_others_do_not():
    one, again, other = (scenes.scene(0, "train", index, 32, 24) for index in (1, 1, 6))
    assert (one.frame(9) == again.frame(9)).all()
    assert other.kind == one.kind and (one.frame(0) != other.frame(0)).any()
