"""Drawn scenes and videos → clips; what is dropped is counted."""

import numpy as np
import pytest

from data_pipelines.prepare.counts import Refused
from data_pipelines.video import decode, flow, prepare, read, scenes
from rahf import images
from rahf.core.errors import DatasetError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "drawn"
    prepare.prepare_scenes(folder, 5, dev=0.2, test=0.2, size=(32, 24), progress=False)
    return folder


def test_clips_come_back(drawn):
    source = read.open_clips(drawn, "train")
    assert len(source) == 3
    clip, scene = read.clip(drawn, "train:1"), scenes.scene(0, "train", 1, 32, 24)
    assert clip.uid == "leaves-train-1"
    np.testing.assert_array_equal(images.load_rgb(clip.image), scene.frame(0))
    np.testing.assert_allclose(clip.volume.spectrum, scene.volume().spectrum, rtol=1e-3, atol=1e-3)
    assert clip.times[-1] == 149 and len(clip.targets) == 8
    np.testing.assert_array_equal(images.load_rgb(clip.targets[2]), scene.frame(clip.times[2]))


def test_scales_are_percentiles_of_the_training_split(drawn):
    described = read.description(drawn)
    assert (described.frames, described.fps, described.width, described.height) == (150, 30.0, 32, 24)
    channels = np.stack([clip.volume.channels for clip in read.open_clips(drawn, "train")])
    for scale, values in zip(described.scales, np.abs(np.moveaxis(channels, 1, 0)).reshape(16, -1)):
        if values.any():
            np.testing.assert_allclose(scale, np.percentile(values[values > 0], 95), rtol=2e-3)
        else:
            assert scale == described.scales.max()  # a frequency in which nothing moves


def test_another_number_of_terms(tmp_path):
    """A drawn scene has none above the 16th; with fewer the first ones are left."""
    prepare.prepare_scenes(tmp_path / "out", 1, dev=0, test=0, size=(16, 16), terms=24, progress=False)
    clip, whole = read.clip(tmp_path / "out", "train:0"), scenes.scene(0, "train", 0, 16, 16).volume()
    assert read.description(tmp_path / "out").terms == len(clip.volume.spectrum) == 24
    np.testing.assert_allclose(clip.volume.spectrum[:16], whole.spectrum, rtol=1e-3, atol=1e-3)
    assert not clip.volume.spectrum[16:].any()
    np.testing.assert_array_equal(scenes.scene(0, "train", 0, 16, 16).volume(4).spectrum, whole.spectrum[:4])


def test_wrong_places(drawn, tiny_data):
    for place, message in (("test", "SPLIT:NUMBER"), ("test:1", "clips 0 to 0, found 1"), ("best:0", "no split")):
        with pytest.raises(DatasetError, match=message):
            read.clip(drawn, place)
    with pytest.raises(DatasetError, match="no description of motion data.*rahf prepare motion"):
        read.open_clips(tiny_data, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(count=0), "at least one scene"),
        (dict(count=3, size=(30, 24)), "multiples of 8"),
        (dict(count=3, terms=77), "--terms 77: 150 frames have 1 to 76 frequencies"),
        (dict(count=3, dev=0.6, test=0.5), "nothing to train on"),
    ],
)
def test_bad_numbers(tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        prepare.prepare_scenes(tmp_path / "out", **options, progress=False)
    assert not (tmp_path / "out").exists()


def test_windows_start_every_stride():
    frames = iter(np.arange(27)[:, None, None, None])
    cut = [(first, window.ravel().tolist()) for first, window in decode.windows(frames, 10, 4)]
    assert [first for first, _ in cut] == [0, 4, 8, 12, 16]
    assert all(window == list(range(first, first + 10)) for first, window in cut)


def test_what_makes_a_window_useless():
    rng = np.random.default_rng(0)
    still = rng.integers(100, 140, (1, 24, 32, 3), dtype=np.uint8).repeat(20, 0)
    flow.check_pictures(still, flow.Filters())
    cut = still.copy()
    cut[11:] += 90
    with pytest.raises(Refused, match="frames 10 and 11 differ by 90"):
        flow.check_pictures(cut, flow.Filters())
    swaying = np.zeros((21, 24, 32, 2), np.float32)
    with pytest.raises(Refused, match="0.0% of the pixels move"):
        flow.check_motion(swaying, flow.Filters())
    with pytest.raises(Refused, match="median displacement is 9.0 pixels"):
        flow.check_motion(swaying + [9.0, 0], flow.Filters())
