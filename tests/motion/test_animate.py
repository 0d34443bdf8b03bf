"""`rahf animate` and the function behind it: files of each kind, odd photographs, and what is refused."""

import dataclasses
import json
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data_pipelines.video import volume as volume_lib
from data_pipelines.video.volume import SpectralVolume
from rahf.cli import main as cli
from rahf.core.errors import ArgumentError, DatasetError, ImageError
from rahf.motion import animate, critique, loops, render, video_file
from rahf.motion.animate import AnimateOptions
from rahf.motion.critique import Report
from rahf.saliency import loading as saliency_loading


def swaying(drift=0.0):
    """A volume of 12 frames at 12 per second on a grid of 4 x 5: a swing along x, and perhaps a drift."""
    time = np.arange(12)[:, None, None, None] / 12
    texture = np.zeros((12, 4, 5, 2), np.float32)
    texture[..., :1] = 0.6 * np.sin(2 * np.pi * time) + drift * time
    return volume_lib.of_texture(texture, 6, 12.0)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((25, 20), Image.Resampling.BICUBIC).save(path)
    return path


class Look(NamedTuple):
    density: np.ndarray


def brightness(images):
    """A saliency model: people look at what is bright."""
    bright = [image.astype(np.float32).sum(-1) for image in images]
    return [Look(one / one.sum()) for one in bright]


def frames_of(path):
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
        return np.stack(frames)


@pytest.fixture(scope="module")
def loop(photo, tiny_run, tmp_path_factory):
    """A loop of a motion that drifts away, as WebP, with its preview and a report."""
    folder = tmp_path_factory.mktemp("loop")
    options, report = AnimateOptions(seconds=1.3, fps=12.0, loop=True), Report(folder / "r.png", tiny_run, "a red cat")
    report = dataclasses.replace(report, saliency=brightness)
    made = animate.animate_photo(
        photo, swaying(1.0), folder / "a.webp", options, preview=folder / "p.png", report=report
    )
    return made, folder


def test_a_loop_has_no_seam(loop):
    made, folder = loop
    assert (made.frames, made.seconds, made.size) == (12, 1.0, (25, 20))
    assert made.notes == ("a loop takes whole periods of 1 s: 1 s",)
    frames = frames_of(folder / "a.webp")
    steps = np.abs(np.diff(frames, axis=0, append=frames[:1])).mean((1, 2, 3))
    assert frames.shape == (12, 20, 25, 3) and steps[-1] <= np.median(steps[:-1])


def test_the_preview_stacks_its_panels(loop):
    with Image.open(loop[1] / "p.png") as image:
        assert image.size == (25, 3 * 20 + 12 + 3 * 4)


def test_a_critic_judges_the_frames(loop, photo, tiny_critic):
    """The report's numbers are those of the critic on the frames."""
    report = json.loads((loop[1] / "r.json").read_text())
    assert report["frames"] == [*range(12)] and report["seconds"][6] == 0.5
    volume = swaying(1.0)
    volume = volume._replace(spectrum=loops.close(volume.spectrum, 12, animate.LOOP_STRENGTH))
    drawing = render.Renderer(np.asarray(Image.open(photo)), volume)
    prediction = tiny_critic([drawing.frame(float(time)) for time in range(12)], "a red cat")
    np.testing.assert_allclose(report["scores"]["overall"], prediction.score("overall"), atol=1e-4)
    means = prediction.heatmap("implausibility").mean((1, 2))
    np.testing.assert_allclose(report["heatmap_means"]["implausibility"], means, atol=1e-4)
    densities = [one.density for one in brightness([drawing.frame(float(time)) for time in range(12)])]
    change = [np.abs(density - densities[0]).sum() / 2 for density in densities]
    np.testing.assert_allclose(report["saliency"]["change"], change, atol=1e-5)
    assert change[0] == 0 < min(change[1:])
    with Image.open(loop[1] / "r.png") as image:
        assert image.size == (640, 3 * 220 + 2 * 20)


def test_attention_by_hand():
    """Of four pixels one moves; half of the density, then all of it, lies there."""
    moving = np.array([[True, False], [False, False]])
    lines = critique.attention([np.array([[0.5, 0.5], [0, 0]]), np.array([[2.0, 0], [0, 0]])], moving)
    assert {name: line.tolist() for name, line in lines.items()} == {
        "on motion": [0.5, 1.0],
        "moving area": [0.25, 0.25],
        "change": [0.0, 0.5],
    }


def test_a_report_without_a_critic(photo, tmp_path, capsys, monkeypatch):
    """The command takes the shipped saliency model, and asks for a prompt before it takes a critic."""
    loaded = []
    monkeypatch.setattr(saliency_loading, "load", lambda name: loaded.append(name) or brightness)
    volume_lib.save(tmp_path / "v.npz", swaying())
    arguments = ["animate", str(photo), "--spectrum", str(tmp_path / "v.npz"), "--seconds", "0.1", "--fps", "12"]
    arguments += ["--out", str(tmp_path / "a.webp")]
    assert cli.main([*arguments, "--report", str(tmp_path / "r.png")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert "scores" not in report and report["frames"] == [0] and 0 < report["saliency"]["on motion"][0] <= 1
    assert loaded == ["saliency-lite"]
    capsys.readouterr()
    for options, message in (
        (["--prompt", "a cat"], "--prompt belongs to --report FILE.png"),
        (["--report", str(tmp_path / "s.jpg")], "s.jpg: the report is a picture"),
        (["--report", str(tmp_path / "s.png"), "--critic", "lite"], "describe the photograph"),
        (["--report", str(tmp_path / "s.png"), "--saliency", "none"], "nobody looks at the frames"),
    ):
        assert cli.main([*arguments[:-1], str(tmp_path / "b.webp"), *options]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.webp").exists()


def test_gif_keeps_the_time(photo, tmp_path):
    """30 frames/s are no whole hundredths of a second: they take turns."""
    animate.animate_photo(photo, swaying(), tmp_path / "a.gif", AnimateOptions(seconds=0.4, fps=30.0))
    with Image.open(tmp_path / "a.gif") as image:
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
        assert sum(durations) == 400 and {30, 40} <= set(durations) and image.info["loop"] == 0


def test_mp4_of_a_picture_with_odd_sides(photo, tmp_path):
    av = pytest.importorskip("av", reason="needs PyAV: pip install rahf[motion]")
    counted = []
    animate.animate_photo(
        photo, swaying(), tmp_path / "a.mp4", AnimateOptions(0.25, 12.0), progress=lambda *done: counted.append(done)
    )
    assert counted == [(1, 3), (2, 3), (3, 3)]
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (26, 20, 12)
        assert len([*container.decode(stream)]) == 3


def test_alpha_and_rotation(tmp_path):
    """Transparent pixels are white; a photograph on its side stands upright."""
    clear = np.zeros((20, 25, 4), np.uint8)
    clear[:, 12:, 3] = 255
    Image.fromarray(clear, "RGBA").save(tmp_path / "alpha.png")
    animate.animate_photo(tmp_path / "alpha.png", swaying(), tmp_path / "a.webp", AnimateOptions(0.1, 12.0))
    assert frames_of(tmp_path / "a.webp")[0, :, :4].min() > 240
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 25), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=exif)
    made = animate.animate_photo(tmp_path / "turned.jpg", swaying(), tmp_path / "b.webp", AnimateOptions(0.1, 12.0))
    assert made.size == (25, 20) and made.notes == ()


def test_the_command(photo, tmp_path, capsys):
    volume_lib.save(tmp_path / "v.npz", swaying())
    mask = np.zeros((10, 10), np.uint8)
    mask[5:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["animate", str(photo), "--spectrum", str(tmp_path / "v.npz"), "--seconds", "0.5", "--fps", "12"]
    arguments += ["--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path / "a.webp"), "--max-side", "25"]
    arguments += ["--save-spectrum", str(tmp_path / "w.safetensors")]
    assert cli.main(arguments) == 0
    assert "a.webp: 6 frames of 25 x 20, 0.5 s" in capsys.readouterr().out
    frames = frames_of(tmp_path / "a.webp")
    moved = np.abs(np.diff(frames, axis=0)).mean((0, 2, 3))
    assert moved[14:].mean() > 5 * moved[:6].mean()
    np.testing.assert_array_equal(volume_lib.load(tmp_path / "w.safetensors").spectrum, swaying().spectrum)
    assert cli.main([*arguments[:4], "--seconds", "0", "--out", str(tmp_path / "b.webp")]) == 1
    assert "seconds: expected a number above 0, found 0" in capsys.readouterr().err
    assert not (tmp_path / "b.webp").exists()


def test_another_shape_is_said_and_a_long_side_reduced(photo, tmp_path):
    """Nothing is rendered: the page of the photograph alone."""
    Image.new("RGB", (60, 200)).save(tmp_path / "tall.png")
    made = animate.animate_photo(
        tmp_path / "tall.png", swaying(), None, AnimateOptions(max_side=50), page=tmp_path / "p.html"
    )
    assert (made.size, made.frames) == ((15, 50), 0)
    assert made.notes == ("the motion's grid of 5 x 4 is stretched to 15 x 50 pixels",)


def test_what_is_refused(photo, tmp_path, monkeypatch):
    tiny, black = tmp_path / "tiny.png", tmp_path / "black.png"
    Image.new("RGB", (30, 5)).save(tiny)
    Image.new("L", (30, 5)).save(black)
    out = tmp_path / "out.webp"
    for call, kind, message in (
        (dict(), ArgumentError, "nothing to write"),
        (
            dict(page=tmp_path / "p.html", preview=tmp_path / "p.png"),
            ArgumentError,
            "--preview and --report belong to --out",
        ),
        (dict(out=tmp_path / "a.avi"), ArgumentError, "ends in .mp4, .gif, .webp"),
        (dict(out=out, photo=tmp_path / "none.jpg"), ImageError, "No such file"),
        (dict(out=out, photo=tiny), ImageError, "30 x 5 pixels; expected 8 or more"),
        (dict(out=out, mask=black), ImageError, "nothing would move"),
        (dict(out=out, options=AnimateOptions(max_side=3)), ArgumentError, "--max-side 3"),
        (dict(out=out, options=AnimateOptions(magnify=-1.0)), ArgumentError, "magnify"),
        (dict(out=out, options=AnimateOptions(fps=60.0)), ArgumentError, "50 frames/s at most, found 60"),
    ):
        with pytest.raises(kind, match=message):
            animate.animate_photo(call.pop("photo", photo), swaying(), **call)
    monkeypatch.setattr(video_file, "MAX_HELD", 1000)
    with pytest.raises(ArgumentError, match="150 frames of 25 x 20 .* write .mp4, or give --max-side"):
        animate.animate_photo(photo, swaying(), out)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.png", "black.png"}


def test_volumes_of_files_and_datasets(tmp_path, tiny_data):
    volume_lib.save(tmp_path / "v.npz", swaying())
    assert isinstance(animate.load_volume(tmp_path / "v.npz"), SpectralVolume)
    with pytest.raises(DatasetError, match="--clip test:0 is of a dataset"):
        animate.load_volume(tmp_path / "v.npz", "test:0")
    with pytest.raises(DatasetError, match="no description of motion data"):
        animate.load_volume(tiny_data)
