"""Which way up a picture is stored: EXIF tag 0x0112, or XMP's ``tiff:Orientation`` where there is no such tag.

Read here and not by Pillow, because Pillow reports damaged EXIF by `warnings.warn`, whose filters belong to the whole
process and must not be changed beside threads.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF types BYTE, SHORT, LONG
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_RAW_PROFILE = "Raw profile type exif"  # text chunk in which ImageMagick writes EXIF to PNG
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(exif: bytes | None, xmp: bytes | str | None) -> int:
    """The orientation of a picture by its metadata.

    Args:
      exif: a TIFF structure, with or without ``Exif\\0\\0`` before it; damaged EXIF counts as none.
      xmp: an XMP packet.

    Returns:
      1 (upright) to 8, as in EXIF 2.3.
    """
    value = _from_exif(exif or b"")
    if value is None:
        packet = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp or b""
        match = _XMP.search(packet)
        value = int(match[1]) if match else 1
    return value if 1 <= value <= 8 else 1


def of_loaded(image: Image.Image) -> int:
    """The orientation of a Pillow image whose pixels have been loaded: PNG has metadata behind them, and Pillow turns
    TIFF upright while it loads."""
    exif = image.info.get("exif")
    if exif is None and _RAW_PROFILE in image.info:
        exif = _from_hex(str(image.info[_RAW_PROFILE]))
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    return orientation(exif, xmp if isinstance(xmp, (bytes, str)) else None)


def upright(image: Image.Image, value: int) -> Image.Image:
    """Turns an image whose stored pixels have the orientation `value`."""
    transpose = _UPRIGHT.get(value)
    return image if transpose is None else image.transpose(transpose)


def _from_exif(exif: bytes) -> int | None:
    """The value of the tag; None where EXIF lacks it or is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _TAG:
                return struct.unpack_from(order + _FORMATS[kind], tiff, entry + 8)[0] if values else None
    except (struct.error, KeyError):
        return None
    return None


def _from_hex(text: str) -> bytes | None:
    """The bytes of a raw profile: its name, its length, then hexadecimal digits in lines."""
    try:
        return bytes.fromhex("".join(text.strip().split("\n")[2:]))
    except ValueError:
        return None
