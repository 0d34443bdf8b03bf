"""Videos → clips, with PyAV and OpenCV."""

import json

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.prepare.counts import Refused
from data_pipelines.video import decode, flow, prepare, read
from rahf.core.errors import DatasetError
from tests.helpers.video_maker import write_video

pytest.importorskip("av", reason="needs PyAV: pip install rahf[motion]")
pytest.importorskip("cv2", reason="needs OpenCV: pip install rahf[motion]")


def sway(times):
    """Displacement in pixels: two swings in 150 frames."""
    return 3 * np.sin(2 * np.pi * 2 * times / 150)


def exact_term():
    """Of `sway`, by number 2: -i T/2 times the amplitude."""
    return -1j * 75 * 3


def swaying(count):
    """A mottled picture of 64 x 48 whose lower part sways along x."""
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(size=(48, 84)), 1.5)
    texture = 128 + 60 * texture / texture.std()
    columns, frames = np.arange(64) + 10, np.zeros((count, 48, 64))
    for time in range(count):
        for row in range(48):
            frames[time, row] = np.interp(columns - sway(time) * (row >= 20), np.arange(84), texture[row])
    return np.repeat(frames.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video of 160 frames, one that is too short, and a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    frames = swaying(160)
    write_video(folder / "grass.mp4", frames)
    write_video(folder / "short.mp4", frames[:20])
    (folder / "broken.mp4").write_bytes((folder / "short.mp4").read_bytes()[:900])
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_windows_of_videos_become_clips(videos, tmp_path):
    counts = prepare.prepare_videos([videos], tmp_path / "out", dev=0.0, test=0.0, size=(64, 48), progress=False)
    assert (counts.videos, counts.resampled) == (3, 0)
    column = counts.splits["train"]
    assert (column["records"], column["joined"]) == (4, 2)
    assert (column["shorter than a window"], column["undecodable"]) == (1, 1)
    refused = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in refused} == {"shorter than a window", "undecodable"}
    clips = [*read.open_clips(tmp_path / "out", "train")]
    assert [clip.uid for clip in clips] == ["grass-1-0", "grass-1-10"]
    term = clips[0].volume.spectrum[2, :, 8:-8, 0]  # flow from pictures alone follows the exact one
    assert np.abs(term[26:-4] - exact_term()).mean() < 0.15 * abs(exact_term())
    assert np.abs(term[:14]).mean() < 0.1 * abs(exact_term())


def test_nothing_usable_says_why_and_leaves_nothing(videos, tmp_path):
    with pytest.raises(DatasetError, match=r"no window can be used \(shorter than a window 1\); .*150 frames"):
        prepare.prepare_videos([videos / "short.mp4"], tmp_path / "out", size=(64, 48), progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="no such file or folder"):
        prepare.prepare_videos([videos / "other.mp4"], tmp_path / "out", progress=False)
    with pytest.raises(DatasetError, match="no video below this folder"):
        prepare.prepare_videos([tmp_path], tmp_path / "out", progress=False)


def test_flow_of_another_program(videos, tmp_path):
    texture = np.zeros((150, 48, 64, 2), np.float32)
    texture[:, 20:, :, 0] = sway(np.arange(150))[:, None, None]
    (tmp_path / "grass").mkdir()
    np.save(tmp_path / "grass/0.npy", texture)
    np.save(tmp_path / "grass/10.npy", texture[:100])
    counts = prepare.prepare_videos(
        [videos / "grass.mp4"], tmp_path / "out", flows=tmp_path, dev=0, test=0, size=(64, 48), progress=False
    )
    assert (counts.total("joined"), counts.total("bad flow file")) == (1, 1)
    clip = read.clip(tmp_path / "out", "train:0")
    np.testing.assert_allclose(clip.volume.spectrum[2, 20:, :, 0], exact_term(), rtol=1e-3)


def test_a_varying_rate_is_resampled_and_said(tmp_path):
    """Frames at 0, 1, 3, 6, 7 thirtieths: each is shown until the next."""
    pictures = np.zeros((5, 16, 16, 3), np.uint8)
    pictures += (np.arange(5, dtype=np.uint8) * 50)[:, None, None, None]
    frames = decode.Frames(write_video(tmp_path / "v.mp4", pictures, times=[0, 1, 3, 6, 7]), 30.0, 16, 16)
    shades = [int(np.median(frame)) for frame in frames]
    assert np.abs(np.array(shades) - [0, 50, 50, 100, 100, 100, 150, 200]).max() < 6
    assert frames.resampled is True


@pytest.mark.parametrize("rounding", (np.floor, np.ceil, np.rint))
def test_times_rounded_to_thousandths_repeat_no_frame(tmp_path, rounding):
    """Steady frames whose times are off by less than 1 ms, which makes the rate look as if it varied."""
    pictures = np.zeros((12, 16, 16, 3), np.uint8)
    pictures += (np.arange(12, dtype=np.uint8) * 20)[:, None, None, None]
    times = rounding(np.arange(12) * 1000 / 30).astype(int)
    frames = decode.Frames(write_video(tmp_path / "v.mp4", pictures, times=times, ticks=1000), 30.0, 16, 16)
    shades = np.array([np.median(frame) for frame in frames])
    assert np.abs(shades - np.arange(12) * 20).max() < 6
    assert frames.resampled is False


def test_a_file_that_is_no_video_is_refused_with_words(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video " * 100)
    with pytest.raises(Refused, match="^Invalid data found when processing input$"):
        next(iter(decode.Frames(tmp_path / "v.mp4", 30.0, 16, 16)))


def test_a_moving_camera_is_dropped():
    flows = np.zeros((21, 24, 32, 2), np.float32)
    flows[..., 0] = np.linspace(0, 3, 21)[:, None, None]
    with pytest.raises(Refused, match="100% of the picture moves by .* pixels together"):
        flow.check_motion(flows, flow.Filters())
    flows[:, 8:] = 0  # a third of the picture: something in it, not the camera
    flow.check_motion(flows, flow.Filters())
