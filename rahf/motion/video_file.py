"""Frames → MP4 by PyAV, or GIF and WebP by Pillow. The file takes its name when it is complete."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import numpy as np
from PIL import Image

from data_pipelines.video import libraries
from rahf.core import files
from rahf.core.errors import ArgumentError

#: Ends of names that are written.
SUFFIXES = (".mp4", ".gif", ".webp")
#: Pillow holds all frames of a GIF or WebP.
MAX_HELD = 1_000_000_000


class FrameWriter(Protocol):
    """Takes frames in order."""

    def add(self, pixels: np.ndarray) -> None:
        """Adds a frame, uint8 [h,w,3]."""


def check(path: str | os.PathLike, width: int, height: int, frames: int, fps: float) -> None:
    """Checks that a video can be written, before anything is rendered.

    Raises:
      ArgumentError: another kind of file, or a GIF or WebP that would not fit into memory.
      DatasetError: PyAV is not installed.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ArgumentError(f"{os.fspath(path)}: expected a name that ends in {', '.join(SUFFIXES)}")
    if suffix == ".mp4":
        libraries.load("av")
    elif width * height * 3 * frames > MAX_HELD:
        raise ArgumentError(
            f"{os.fspath(path)}: {frames} frames of {width} x {height} pixels take more than {MAX_HELD // 10**9} GB, "
            f"and a {suffix[1:].upper()} is written from memory; write .mp4, or give --max-side or fewer --seconds"
        )
    elif fps > 50:
        raise ArgumentError(
            f"{os.fspath(path)}: viewers of {suffix[1:].upper()} show 50 frames/s at most, found {fps:g}"
        )


@contextlib.contextmanager
def writer(path: str | os.PathLike, fps: float) -> Iterator[FrameWriter]:
    """A writer of frames; see `check`. After an error nothing is left.

    MP4 is H.264 in 4:2:0: a side of an odd number of pixels is lengthened by repeating its last row or column.
    """
    suffix = pathlib.Path(path).suffix.lower()
    with files.replacing(path) as unfinished:
        if suffix == ".mp4":
            with _Mp4(unfinished, fps) as mp4:
                yield mp4
        else:
            still = _Animated(fps)
            yield still
            still.save(unfinished, suffix)


class _Mp4:
    def __init__(self, path: pathlib.Path, fps: float):
        self._av = libraries.load("av")
        self._container = self._av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._rate, self._stream = Fraction(fps).limit_denominator(1001), None

    def __enter__(self) -> _Mp4:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()

    def add(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            codec, options = ("libx264", {"crf": "18"}) if "libx264" in self._av.codecs_available else ("mpeg4", {})
            self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            if codec == "mpeg4":
                self._stream.bit_rate = 8_000_000
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._container.mux(self._stream.encode(frame))


class _Animated:
    def __init__(self, fps: float):
        self._fps, self._frames = fps, []

    def add(self, pixels: np.ndarray) -> None:
        self._frames.append(Image.fromarray(pixels))

    def save(self, path: pathlib.Path, suffix: str) -> None:
        if suffix == ".gif":
            # GIF counts hundredths of a second: the rounding of one frame goes to the next, so that the sum is right.
            ends = np.round(np.arange(len(self._frames) + 1) * 100 / self._fps).astype(int)
            durations, options, form = (10 * np.diff(ends)).tolist(), {"optimize": False}, "GIF"
            palette = self._frames[len(self._frames) // 2].quantize(255, dither=Image.Dither.NONE)
            frames = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in self._frames]
        else:
            ends = np.round(np.arange(len(self._frames) + 1) * 1000 / self._fps).astype(int)
            durations, options, form, frames = (
                np.diff(ends).tolist(),
                {"quality": 80, "method": 3},
                "WEBP",
                self._frames,
            )
        frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
