"""`rahf animate`: a photograph and a spectral volume → a video, a preview, a page to touch."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.video import read
from data_pipelines.video import volume as volume_lib
from data_pipelines.video.volume import SpectralVolume
from rahf import images
from rahf.core import files
from rahf.core.errors import ArgumentError, DatasetError, ImageError
from rahf.images.resize import resize
from rahf.motion import loops, render, renderer_task, touch, video_file
from rahf.motion import model as model_lib
from rahf.motion.critique import Critique, Report
from rahf.motion.preview import Preview

#: How strongly the ends of a loop are drawn together (`rahf.motion.loops.close`).
LOOP_STRENGTH = 30.0
_SMALLEST = 8  # side of a photograph in pixels


@dataclasses.dataclass(frozen=True)
class AnimateOptions:
    """How a photograph moves.

    Attributes:
      seconds, fps: of the video. A loop takes the whole number of periods nearest to `seconds`.
      loop: close the motion, so that the video repeats without a seam.
      magnify: factor of all displacements.
      max_side: the photograph is reduced to this longer side; None: its own size.
      damping: of the page: share of critical damping.
    """

    seconds: float = 5.0
    fps: float = 30.0
    loop: bool = False
    magnify: float = 1.0
    max_side: int | None = None
    damping: float = 0.06


class Animated(NamedTuple):
    """What was written.

    Attributes:
      size: width and height in pixels.
      frames: of the video; 0 without one.
      seconds: its length.
      notes: what the user should know.
    """

    size: tuple[int, int]
    frames: int
    seconds: float
    notes: tuple[str, ...]


def load_volume(source: str | os.PathLike, clip: str | None = None) -> SpectralVolume:
    """A spectral volume: a file, or a clip of a dataset of `rahf prepare motion`.

    Args:
      source: .npz or .safetensors file, or the directory of a dataset.
      clip: "SPLIT:NUMBER" of a dataset; None: test:0, else the first of the split that has one.

    Raises:
      DatasetError: neither, or damaged; a clip of a file.
    """
    if not pathlib.Path(source).is_dir():
        if clip is not None:
            raise DatasetError(f"{os.fspath(source)}: a file holds one spectral volume; --clip {clip} is of a dataset")
        return volume_lib.load(source)
    if clip is None:
        counts = read.clip_counts(source)
        clip = next(f"{split}:0" for split in ("test", "dev", "train") if counts.get(split))
    return read.clip(source, clip).volume


def drawn_volume(model: str | os.PathLike, photo: str | os.PathLike, **options: Any) -> SpectralVolume:
    """The motion that a motion model draws for a photograph.

    Args:
      model: run directory or checkpoint of the motion family.
      photo: any picture.
      options: of `rahf.motion.model.MotionGenerator.volume`.

    Raises:
      CheckpointError: no motion model there.
      ImageError, ArgumentError: as there.
    """
    picture = images.load_rgb(photo)
    return model_lib.load(model).volume(picture, **options)


def animate_photo(
    photo: str | os.PathLike,
    volume: SpectralVolume,
    out: str | os.PathLike | None = None,
    options: AnimateOptions = AnimateOptions(),
    *,
    mask: str | os.PathLike | None = None,
    preview: str | os.PathLike | None = None,
    page: str | os.PathLike | None = None,
    renderer: str | os.PathLike | None = None,
    report: Report | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Animated:
    """Animates one photograph. Frames are rendered and written one by one.

    Args:
      photo: any picture; transparent pixels become white, EXIF rotation is applied.
      volume: its motion, on any grid, which is stretched to the photograph.
      out: video to write: .mp4, .gif or .webp.
      options: how it moves.
      mask: a grey picture: white moves, black stands still, grey in between; resized to the photograph.
      preview: PNG to write: slice over x and time, flow colours, mean motion.
      renderer: run of a trained renderer that draws the frames; None: splatting alone.
      report: what a critic and a saliency model say of the frames; None: nothing.
      page: HTML page to write, in which the photograph is dragged.
      progress: called with frames done and their number.

    Raises:
      ArgumentError: nothing to write, or numbers that make no sense.
      ImageError: photograph or mask cannot be read.
      DatasetError: PyAV is missing.
    """
    if out is None and page is None:
        raise ArgumentError("animate: nothing to write; give --out VIDEO or --interactive PAGE.html")
    if (preview is not None or report is not None) and out is None:
        raise ArgumentError("--preview and --report belong to --out: they show the frames of a video")
    if report is not None:
        report.check()
    picture, notes = _photograph(photo, options.max_side), []
    height, width = picture.shape[:2]
    grid = volume.spectrum.shape[1:3]
    if abs(width * grid[0] / (height * grid[1]) - 1) > 0.1:
        notes.append(f"the motion's grid of {grid[1]} x {grid[0]} is stretched to {width} x {height} pixels")
    shares = None if mask is None else _mask(mask, (height, width))
    if options.loop:
        volume = volume._replace(spectrum=loops.close(volume.spectrum, volume.frames, LOOP_STRENGTH))
    if page is not None:
        touch.write_page(page, picture, volume, options.magnify, shares, options.damping, name=pathlib.Path(photo).stem)
    if out is None:
        return Animated((width, height), 0, 0.0, tuple(notes))
    seconds = options.seconds
    if options.loop and np.isfinite(seconds) and seconds > 0:
        seconds = loops.loop_seconds(seconds, volume.period)
        if abs(seconds - options.seconds) > 1e-9:
            notes.append(f"a loop takes whole periods of {volume.period:g} s: {seconds:g} s")
    times = render.frame_times(volume, seconds, options.fps, options.loop)
    video_file.check(out, width, height, len(times), options.fps)
    network = None if renderer is None else renderer_task.load(renderer)
    drawing = render.Renderer(picture, volume, options.magnify, shares, network=network)
    judged = None if report is None else Critique(report, len(times), np.asarray(drawing.importance))
    shown = Preview(np.asarray(drawing.importance))
    with video_file.writer(out, options.fps) as video:
        for number, time in enumerate(times):
            pixels = drawing.frame(float(time))
            video.add(pixels)
            if preview is not None:
                shown.add(pixels)
            if judged is not None:
                judged.add(pixels)
            progress(number + 1, len(times))
    if preview is not None:
        farthest = max(
            times[:: max(1, len(times) // 30)], key=lambda time: float(abs(drawing.flow(float(time))).mean())
        )
        files.write_atomically(preview, shown.png(picture, np.asarray(drawing.flow(float(farthest)))))
    if judged is not None:
        judged.write(options.fps)
    return Animated((width, height), len(times), len(times) / options.fps, tuple(notes))


def _photograph(photo: str | os.PathLike, max_side: int | None) -> np.ndarray:
    if max_side is not None and max_side < _SMALLEST:
        raise ArgumentError(f"--max-side {max_side}: expected {_SMALLEST} pixels or more")
    picture = images.load_rgb(photo)
    height, width = picture.shape[:2]
    if min(height, width) < _SMALLEST:
        raise ImageError(f"{os.fspath(photo)}: {width} x {height} pixels; expected {_SMALLEST} or more on each side")
    if max_side is None or max(height, width) <= max_side:
        return picture
    scale = max_side / max(height, width)
    size = max(_SMALLEST, round(width * scale)), max(_SMALLEST, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _mask(mask: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """float32 [h,w] in [0,1]."""
    name = os.fspath(mask)
    grey = images.load_map(images.decode.read_file(mask), what=name)
    if not grey.any():
        raise ImageError(f"{name}: the mask is black, so nothing would move; paint white what is to move")
    return resize(grey.astype(np.float32) / 255, size)
