"""Regions of COCO annotations (polygons, run lengths, boxes) → masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.prepare.counts import Refused
from rahf.core.errors import ImageError
from rahf.images import run_lengths
from rahf.images.resize import resize

_FARTHEST = 1e6  # pixels; a coordinate beyond that is an error

Size = tuple[int, int]  # height, width in pixels


def mask_of(annotation: Mapping[str, Any], listed: Size, picture: Size) -> np.ndarray:
    """The pixels of a region: its segmentation, or else its box. What lies outside the picture is cut off.

    Args:
      annotation: COCO: `segmentation` (polygons, or run lengths plain or compressed), `bbox` (left, top, width,
        height).
      listed: size of the picture in the file, to which coordinates refer.
      picture: its size.

    Returns:
      bool [height,width] of `picture`. A pixel belongs to a polygon if its centre does.

    Raises:
      Refused: neither of the two, or one that is malformed.
    """
    segmentation, name = annotation.get("segmentation"), f"annotation {annotation.get('id')}"
    scale = picture[1] / listed[1], picture[0] / listed[0]
    if isinstance(segmentation, Mapping):
        try:
            mask = run_lengths.decode(segmentation, name)
        except ImageError as error:
            raise Refused("bad region", str(error)) from error
        if mask.shape != listed:
            raise Refused("bad region", f"{name} is a mask of {mask.shape[0]} x {mask.shape[1]} pixels, height first, "
                                        f"its picture has {listed[0]} x {listed[1]}")  # fmt: skip
        return mask if listed == picture else resize(mask.astype(np.float32), picture) >= 0.5
    if segmentation:
        if not isinstance(segmentation, list):
            raise Refused(
                "bad region", f"{name}: segmentation is {segmentation!r:.60}, expected polygons or run lengths"
            )
        # Polygons of one annotation are parts of it; some writers leave the outer list out.
        parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        mask = np.zeros(picture, bool)
        for part in parts:
            mask |= polygon(_points(part, name), scale, picture)
        return mask
    return polygon(_corners(annotation.get("bbox"), name), scale, picture)


def polygon(points: np.ndarray, scale: tuple[float, float], size: Size) -> np.ndarray:
    """Pixels whose centres lie inside a polygon, by the even-odd rule.

    Args:
      points: float [n,2], (x, y) in pixels.
      scale: factors on x and y.
      size: of the mask.
    """
    mask = np.zeros(size, bool)
    x, y = points[:, 0] * scale[0], points[:, 1] * scale[1]
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    first, last = max(0, math.floor(y.min())), min(size[0], math.ceil(y.max()))
    for row in range(first, last):
        centre = row + 0.5
        crosses = (y <= centre) != (next_y <= centre)
        if not crosses.any():
            continue
        share = (centre - y[crosses]) / (next_y[crosses] - y[crosses])
        edges = np.sort(x[crosses] + share * (next_x[crosses] - x[crosses]))
        # Pixel c is inside from its centre c + 0.5 on.
        columns = np.clip(np.ceil(edges - 0.5), 0, size[1]).astype(int)
        for left, right in zip(columns[::2], columns[1::2]):
            mask[row, left:right] ^= True
    return mask


def _points(part: Any, name: str) -> np.ndarray:
    flat = part
    if isinstance(part, list) and part and all(isinstance(one, list) and len(one) == 2 for one in part):
        flat = [value for one in part for value in one]
    if not isinstance(flat, list) or len(flat) < 6 or len(flat) % 2 or not all(map(_is_coordinate, flat)):
        raise Refused("bad region", f"{name} has the polygon {part!r:.60}, expected x, y of at least three corners")
    return np.asarray(flat, np.float64).reshape(-1, 2)


def _corners(box: Any, name: str) -> np.ndarray:
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_coordinate, box)) or min(box[2:]) < 0:
        raise Refused(
            "bad region", f"{name} has no segmentation and the box {box!r:.60}, expected left, top, width, height"
        )
    left, top, width, height = box
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], np.float64)


def _is_coordinate(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= _FARTHEST and math.isfinite(value)
