"""The bytes that a dataset stores: of a picture its file if every reader can decode it, else a JPEG; of a map a PNG."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from rahf import images

#: Suffixes of picture files, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_PNG, _GREY_8 = b"\x89PNG\r\n\x1a\n", b"\x08\x00"  # signature; bit depth and colour type
_SIGNATURES = (b"\xff\xd8", _PNG, b"RIFF")  # JPEG, PNG, WebP
_MOST_JPEG = 65_500  # pixels of a side, in libjpeg


def storable(data: bytes, what: str = "image") -> bytes:
    """Checks that a picture decodes, and returns the bytes to store.

    Args:
      data: the encoded file.
      what: name of the picture in error messages.

    Returns:
      `data` itself if it is an upright 8 bit RGB JPEG, PNG or WebP of one frame; otherwise the same picture
      as JPEG of quality 95 without chroma subsampling, or as PNG if it is too long for a JPEG.

    Raises:
      rahf.images.ImageError: empty, truncated, not an image, or too large.
    """
    rgb = images.load_rgb(data, what=what)
    if _is_plain(data, what):
        return data
    if max(rgb.shape[:2]) > _MOST_JPEG:
        return _png(rgb)
    return simplejpeg.encode_jpeg(rgb, quality=95, colorspace="RGB", colorsubsampling="444")


def is_grey_png(encoded: bytes) -> bool:
    """Whether an encoded map can be stored as it is: a PNG of 8 bit grey."""
    return encoded.startswith(_PNG) and encoded[24:26] == _GREY_8


def encode_map(grey: np.ndarray, level: int = 6) -> bytes:
    """uint8 [h,w] → PNG of 8 bit grey.

    Args:
      grey: the map.
      level: of compression. 1 takes half the time of 6 and gives larger files.
    """
    return _png(grey, level)


def _png(pixels: np.ndarray, level: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def _is_plain(data: bytes, what: str) -> bool:
    return images.is_upright_rgb(data, what) and data.startswith(_SIGNATURES)
