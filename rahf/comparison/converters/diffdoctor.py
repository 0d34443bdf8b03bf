"""Outputs of DiffDoctor's artifact detector (github.com/ali-vilab/DiffDoctor, ``ad_inference.py``).

For ``NAME.png`` or ``NAME.jpg`` it writes ``result_NAME.png``: 512 x 512 pixels, 0.6 times the map in OpenCV's colours
"jet" plus 0.4 times the picture, its red and blue exchanged, which OpenCV has resized bilinearly without antialiasing.
With the pictures at hand the map is recovered to within about one step of 255. Its one map is that of artifacts:
implausibility. Where a name has several dots, the program keeps only what stands before the first.
"""

from __future__ import annotations

import functools
import os
import pathlib

import numpy as np

from rahf import images
from rahf.comparison.converters.writing import Converted, Item, attempt, write
from rahf.comparison.predictions import Unusable
from rahf.core.errors import ArgumentError, DataError
from rahf.images.decode import read_file

_SIDE, _ALPHA = 512, 0.6
_PREFIX = "result_"
_FARTHEST = 12.0  # of 255: a colour that is farther from all of the scale comes from another picture


def convert(source: str | os.PathLike, out: str | os.PathLike, pictures: str | os.PathLike | None) -> Converted:
    """Converts a folder of overlays.

    Args:
      source: folder of ``result_*.png``.
      out: folder to create.
      pictures: folder of the pictures that the program was given.

    Raises:
      DataError: no such files, or none that can be used.
      ArgumentError: no folder of pictures; or `out` has something in it.
    """
    if pictures is None or not pathlib.Path(pictures).is_dir():
        raise ArgumentError("DiffDoctor writes overlays: give the folder of its input pictures with --images DIR")
    source = pathlib.Path(source)
    overlays = sorted(source.glob(f"{_PREFIX}*.png")) if source.is_dir() else []
    if not overlays:
        raise DataError(f"{source}: no {_PREFIX}*.png; expected the output folder of ad_inference.py")
    by_name: dict[str, list[pathlib.Path]] = {}
    for file in sorted(pathlib.Path(pictures).iterdir()):
        if file.suffix in (".jpg", ".png"):
            by_name.setdefault(file.name.split(".")[0], []).append(file)
    return write(out, attempt(functools.partial(_item, one, by_name) for one in overlays), "DiffDoctor")


def _item(overlay: pathlib.Path, by_name: dict[str, list[pathlib.Path]]) -> Item:
    candidates = by_name.get(overlay.stem.removeprefix(_PREFIX), [])
    if len(candidates) != 1:
        listed = ", ".join(one.name for one in candidates) or "none"
        raise Unusable("no such example", f"{overlay.name}: expected one picture of that name, found {listed}")
    try:
        mixed, picture = (images.load_rgb(read_file(one), what=str(one)) for one in (overlay, candidates[0]))
    except images.ImageError as error:
        raise Unusable("bad map", str(error)) from error
    if mixed.shape[:2] != (_SIDE, _SIDE):
        raise Unusable("bad map", f"{overlay.name}: {mixed.shape[1]} x {mixed.shape[0]}, expected {_SIDE} x {_SIDE}")
    level, distance = _levels((mixed - (1 - _ALPHA) * _resized(picture)[:, :, ::-1]) / _ALPHA)
    if np.median(distance) > _FARTHEST:
        raise Unusable("bad map", f"{overlay.name} is no overlay of {candidates[0].name}, or one of other colours")
    return Item({"image": candidates[0].name}, (level.astype(np.float32) / 255, None))


def _levels(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of 256 levels of the colour scale, int [h,w], and how far it is (largest channel)."""
    # Row by row: the distances of all pixels to all levels would take half a gigabyte.
    scale = jet()
    levels, distances = np.empty(colours.shape[:2], np.int64), np.empty(colours.shape[:2])
    for row, line in enumerate(colours):
        squares = (line**2).sum(-1)[:, None] - 2 * line @ scale.T + (scale**2).sum(-1)
        levels[row] = squares.argmin(1)
        distances[row] = np.abs(line - scale[levels[row]]).max(-1)
    return levels, distances


def jet() -> np.ndarray:
    """The colour scale "jet" of 256 levels: float64 [256,3], red, green, blue in 0..255; three trapezes."""
    x = 4 * np.arange(256) / 255
    channels = (np.minimum(x - 1.5, 4.5 - x), np.minimum(x - 0.5, 3.5 - x), np.minimum(x + 0.5, 2.5 - x))
    return np.clip(np.stack(channels, -1), 0, 1) * 255


def _resized(picture: np.ndarray) -> np.ndarray:
    """Bilinear between pixel centres, without antialiasing, rounded: float64 [512,512,3]."""
    values = picture.astype(np.float64)
    for axis in (0, 1):
        side = values.shape[axis]
        place = np.clip((np.arange(_SIDE) + 0.5) * side / _SIDE - 0.5, 0, side - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, side - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return np.round(values)
