"""Video files → frames at a constant rate, small and of one size, a few at a time."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_pipelines.prepare.counts import Refused
from data_pipelines.video import libraries
from rahf.core import files
from rahf.core.errors import DatasetError

#: Ends of the names of files that a folder is searched for.
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ogv")
_MAX_PIXELS = 64_000_000
#: Seconds by which the times of frames may be off: many containers round them to thousandths.
_ROUNDING = 0.002
_SAME_RATE = 0.01  # relative difference of rates up to which every frame is taken as it is: 29.97 is 30


def video_files(paths: list[str | os.PathLike]) -> list[pathlib.Path]:
    """The videos that are named, and those below folders that are named, in a fixed order.

    Raises:
      DatasetError: a path that is not there, a folder without videos, or two videos of one name in one folder.
    """
    listed: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise DatasetError(f"{path}: no video below this folder ({', '.join(SUFFIXES)})")
            listed += inside
        elif path.exists():
            listed.append(path)
        else:
            raise DatasetError(f"{path}: no such file or folder; --videos takes videos and folders of videos")
    return list(dict.fromkeys(listed))


class Frames:
    """The frames of a video at a constant rate. An iterator; opens the file when it is first asked.

    Attributes:
      resampled: whether frames were repeated or left out so far to reach the rate; None before the file is opened.
    """

    def __init__(self, path: pathlib.Path, fps: float, width: int, height: int):
        """Args: the file, frames per second, and the size in pixels; the middle is cropped to that aspect ratio."""
        self.path, self.fps, self.width, self.height = path, fps, width, height
        self.resampled: bool | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames uint8 [h,w,3].

        Raises:
          Refused: no video that can be decoded; also in the middle.
        """
        av = libraries.load("av")
        try:
            with files.open_regular(self.path) as file, av.open(file) as container:
                if not container.streams.video:
                    raise Refused("undecodable", "the file has no video stream")
                yield from self._resample(container, container.streams.video[0])
        except (av.FFmpegError, OSError, ValueError) as error:
            # PyAV names the file by its descriptor, which says nothing.
            detail = getattr(error, "strerror", None) or str(error)
            raise Refused("undecodable", " ".join(detail.split())[:200]) from error

    def _resample(self, container, stream) -> Iterator[np.ndarray]:
        """Frame k is the one that is shown at the time k / fps."""
        rate = float(stream.average_rate or 0)
        constant = stream.average_rate == stream.base_rate or not stream.base_rate
        as_it_is = constant and abs(rate - self.fps) <= _SAME_RATE * self.fps
        self.resampled = False
        emitted, shown, start = 0, None, None
        for frame in container.decode(stream):
            if as_it_is:
                yield self._fit(frame)
                continue
            time = frame.time if frame.time is not None else (emitted if start is None else start) / max(rate, 1.0)
            start, before = time if start is None else start, emitted
            while shown is not None and start + emitted / self.fps < time - _ROUNDING:
                yield shown
                emitted += 1
            self.resampled = self.resampled or (shown is not None and emitted != before + 1)
            shown = self._fit(frame)
        if shown is not None:
            yield shown

    def _fit(self, frame) -> np.ndarray:
        if frame.width * frame.height > _MAX_PIXELS:
            raise Refused("undecodable", f"frames of {frame.width} x {frame.height} pixels are too large")
        image = Image.fromarray(frame.to_ndarray(format="rgb24"))
        scale = min(image.width / self.width, image.height / self.height)
        across, down = (image.width - self.width * scale) / 2, (image.height - self.height * scale) / 2
        box = (across, down, image.width - across, image.height - down)
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.BOX, box=box))


def windows(frames: Iterator[np.ndarray], length: int, stride: int) -> Iterator[tuple[int, np.ndarray]]:
    """Overlapping windows of a video, each with the number of its first frame; holds one window.

    Args:
      frames: of `Frames`.
      length: T.
      stride: frames from one start to the next.
    """
    held: list[np.ndarray] = []
    first = 0
    for frame in frames:
        held.append(frame)
        if len(held) == length:
            yield first, np.stack(held)
            del held[:stride]
            first += stride
