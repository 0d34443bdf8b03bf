"""Square crops along the long side of a picture (spec 8.1: the rules of GazeFusion's data)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from rahf.images.resize import resize

#: Pixels of the published data: side of a crop, from one crop to the next, least rest that gets a crop of its own.
SIDE, STRIDE, LEAST_REST = 512, 256, 128
#: Largest mean grey of a crop that shows nothing, of 255.
BLACK = 1.0


def resized(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """Height and width of a picture whose shorter side becomes `side`; the longer one is rounded."""
    shorter = min(height, width)
    return tuple(side if length == shorter else round(length * side / shorter) for length in (height, width))


def starts(length: int, side: int = SIDE) -> list[int]:
    """Where the crops begin along a side of `length` pixels: every half crop, and a last one at the end if at least a
    quarter of a crop would be left over."""
    stride, least = side * STRIDE // SIDE, side * LEAST_REST // SIDE
    places = [*range(0, length - side + 1, stride)]
    if (length - side) % stride >= least:
        places.append(length - side)
    return places


def crops(picture: UInt8[np.ndarray, "h w 3"], side: int = SIDE) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
    """The crops of a picture, from left to right or from top to bottom."""
    size = resized(*picture.shape[:2], side)
    picture = picture if picture.shape[:2] == size else resize(picture, size)
    for top in starts(size[0], side):
        for left in starts(size[1], side):
            yield picture[top : top + side, left : left + side]


def is_black(crop: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether a crop shows nothing."""
    return float(crop.mean()) <= BLACK
