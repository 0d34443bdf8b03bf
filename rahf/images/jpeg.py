"""JPEG files: their metadata, and their pixels by libjpeg-turbo, in full size and checked for damage.

Every decoder here is libjpeg-turbo with the accurate DCT, so that a picture has the same pixels on every way.
Decoding at reduced scale would be faster for large pictures, but it moves pixels of the resized picture by up to 30
grey levels where the picture has fine detail.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rahf.core.errors import ImageError
from rahf.images import huffman

try:
    import simplejpeg
except ImportError:  # not installed where only exported models are read; Pillow serves then
    simplejpeg = None

#: First bytes of every JPEG file.
START = b"\xff\xd8"
# How libjpeg's messages about damage begin. It also warns about harmless peculiarities of writers.
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")
_EXIF, _XMP, _PICTURES = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"
_APP1, _APP2, _SOS, _EOI = 0xE1, 0xE2, 0xDA, 0xD9
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))  # TEM, restart markers, start of image


class Metadata(NamedTuple):
    """What stands before the pixels of a JPEG file."""

    exif: bytes | None
    xmp: bytes | None
    pictures: bool  # further pictures follow the first (MPO)
    bare: bytes  # the file without EXIF, XMP and further pictures' directory, which Pillow would read with warnings


def metadata(data: bytes) -> Metadata:
    """Reads the segments before the pixels of a JPEG, wherever they stand. A malformed segment ends the reading."""
    exif, xmp, pictures, kept, start, at = None, None, False, [], 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker in (_SOS, _EOI):
            break
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker in (_APP1, _APP2):
            content = data[at + 4 : end]
            if marker == _APP1 and content.startswith(_EXIF):
                exif = content if exif is None else exif + content[len(_EXIF) :]  # EXIF above 64 kB goes on
            elif marker == _APP1 and content.startswith(_XMP):
                xmp = content[len(_XMP) :] if xmp is None else xmp
            elif content.startswith(_PICTURES):
                pictures = True
            kept.append(data[start:at])
            start = end
        at = end
    return Metadata(exif, xmp, pictures, b"".join([*kept, data[start:]]) if kept else data)


def header(data: bytes) -> tuple[int, int, str] | None:
    """Width and height in pixels, and the colour space; None where libjpeg-turbo does not read the header."""
    if simplejpeg is None:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return width, height, colorspace


def decode(data: bytes, what: str, on_damage: Callable[[ImageError], None] | None) -> np.ndarray | None:
    """The pixels of a JPEG as they are stored, uint8 [h,w,3]; None where Pillow must decode it.

    Args:
      data: the encoded file, whose size has been checked.
      what: name of the image in error messages.
      on_damage: called with the error of damaged pixels, for which the result is None: Pillow takes them as libjpeg
        repairs them, grey or displaced behind the damage. None: the error is raised.

    Raises:
      ImageError: damaged pixels, and no `on_damage`.
    """
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        _report(error, what, on_damage)
        return None  # truncated or unusual, too: Pillow reads more variants and names the fault


def check(data: bytes, what: str, on_damage: Callable[[ImageError], None] | None) -> None:
    """Looks for damage in a JPEG whose pixels Pillow is to decode, because Pillow itself does not. As `decode`."""
    if simplejpeg is None:
        try:
            huffman.check(data)
        except huffman.DamagedScan as error:
            _report(ValueError(f"{_DAMAGE[0]}: {error}"), what, on_damage)
        return
    try:
        simplejpeg.decode_jpeg(data, colorspace="CMYK")
    except ValueError as error:
        _report(error, what, on_damage)


def _report(error: ValueError, what: str, on_damage: Callable[[ImageError], None] | None) -> None:
    if not str(error).startswith(_DAMAGE):
        return
    damage = ImageError(f"{what}: truncated or damaged JPEG ({error})")
    if on_damage is None:
        raise damage from error
    on_damage(damage)
