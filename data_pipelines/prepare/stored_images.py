"""The bytes that a dataset stores: of a picture its file if every reader can decode it, else a JPEG; of a map a PNG."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from rahf import images

#: Suffixes of picture files, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_PLAIN_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # EXIF tag
_PNG_EXIF = (b"eXIf", b"Raw profile type exif")
_PNG, _GREY_8 = b"\x89PNG\r\n\x1a\n", b"\x08\x00"  # signature; bit depth and colour type


def storable(data: bytes, what: str = "image") -> bytes:
    """Checks that a picture decodes, and returns the bytes to store.

    Args:
      data: the encoded file.
      what: name of the picture in error messages.

    Returns:
      `data` itself if it is an upright 8 bit RGB JPEG, PNG or WebP of one frame; otherwise the same picture
      as JPEG of quality 95 without chroma subsampling.

    Raises:
      rahf.images.ImageError: empty, truncated, not an image, or too large.
    """
    rgb = images.load_rgb(data, what=what)
    if _is_plain(data):
        return data
    return simplejpeg.encode_jpeg(rgb, quality=95, colorspace="RGB", colorsubsampling="444")


def is_grey_png(encoded: bytes) -> bool:
    """Whether an encoded map can be stored as it is: a PNG of 8 bit grey."""
    return encoded.startswith(_PNG) and encoded[24:26] == _GREY_8


def encode_map(grey: np.ndarray) -> bytes:
    """uint8 [h,w] → PNG of 8 bit grey."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def _is_plain(data: bytes) -> bool:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        return (
            image.format in _PLAIN_FORMATS
            and image.mode == "RGB"
            and "transparency" not in image.info
            and getattr(image, "n_frames", 1) == 1
            and _is_upright(image, data)
        )


def _is_upright(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return True  # `getexif` would decode all of the file
    return image.getexif().get(_ORIENTATION, 1) == 1
