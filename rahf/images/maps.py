"""Heatmaps in image files → grey values, 255 = marked by everybody.

`load_map` reads what people and other programs give and refuses what cannot mean that; `load_grey` reads what a dataset
has stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rahf.core.errors import ImageError
from rahf.images.decode import MAX_PIXELS, Box, checked_box, eight_bit, open_encoded, readable, resize_box

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import UInt8

# Channels of a grey map that was stored in colour differ by rounding and by JPEG's loss.
_MOST_COLOUR = 16


def load_map(
    data: bytes, max_pixels: int = MAX_PIXELS, what: str = "map", faint: bool = False
) -> UInt8[np.ndarray, "h w"]:
    """A map that a person or another program made → grey values 0..255 in its own size. Read-only.

    Taken are 1 bit (255 where set), 8 bit and 16 bit grey (scaled by 1/257), and the same stored in colour or with a
    palette or an opaque alpha channel.

    Args:
      data: the encoded map.
      max_pixels: of a larger map nothing is decoded.
      what: names the map in errors.
      faint: also take values that mark next to nothing. A person's map of that kind has the wrong scale; a network
        may predict it.

    Raises:
      ImageError: as `load_rgb`; or the map has colours, transparent pixels, more than 16 bits, or values that would
        mark next to nothing: at most 255 of 65535, or at most 1 of 255.
    """
    image = open_encoded(data, max_pixels, what)
    with readable(image, what):
        image.load()
        grey = _grey(image, what, faint)
    if grey.max() == 1 and not faint:
        raise ImageError(f"{what}: its highest value is 1, and 255 means marked; multiply a mask of 0 and 1 by 255")
    return grey


def load_grey(data: bytes, max_pixels: int = MAX_PIXELS, what: str = "map") -> UInt8[np.ndarray, "h w"]:
    """Stored heatmap → grey values in its own size. Read-only.

    Raises:
      ImageError: as `load_rgb`.
    """
    image = open_encoded(data, max_pixels, what)
    with readable(image, what):
        image.load()
        return np.asarray(image if image.mode == "L" else eight_bit(image, what).convert("L"))


def resize_grey(values: UInt8[np.ndarray, "h w"], size: int, box: Box | None = None) -> UInt8[np.ndarray, "size size"]:
    """Heatmap, or only the part `box` of it → square of side `size`; bilinear, antialiased where it shrinks."""
    if values.max() == 0:  # half of all maps are empty
        return np.zeros((size, size), np.uint8)
    return np.asarray(resize_box(Image.fromarray(values), size, checked_box(box)))


def decode_map(
    data: bytes, size: int, box: Box | None = None, max_pixels: int = MAX_PIXELS, what: str = "map"
) -> UInt8[np.ndarray, "size size"]:
    """Stored heatmap → grey square of side `size`, values 0..255 as stored, the same `box` as its image.

    Raises:
      ImageError: as `load_rgb`.
    """
    return resize_grey(load_grey(data, max_pixels, what), size, box)


def _grey(image: Image.Image, what: str, faint: bool) -> np.ndarray:
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(image)
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise ImageError(
            f"{what}: a map with transparent pixels, whose values are unclear; expected grey, 255 = marked. Lay it "
            "over black and save it without alpha channel"
        )
    if image.mode.startswith("I"):
        highest = np.asarray(image).max()
        if 0 < highest <= 255 and not faint:
            raise ImageError(
                f"{what}: 16 or 32 bits per pixel, but no value above {highest}, and 65535 means marked; save it with "
                "8 bits, 255 = marked"
            )
        return np.asarray(eight_bit(image, what))
    if image.mode == "F":
        return np.asarray(eight_bit(image, what))  # refuses it in words
    channels = np.asarray(image.convert("RGB")).astype(np.int16)
    if np.ptp(channels, axis=-1).max() > _MOST_COLOUR:
        raise ImageError(
            f"{what}: a map with colours ({image.mode}), whose values are unclear; expected grey, 255 = marked"
        )
    return np.asarray(image.convert("L"))
