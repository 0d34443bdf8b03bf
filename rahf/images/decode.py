"""Encoded images → arrays: any image file → upright 8 bit RGB, in its own size or as the square that a network sees.

There is one square of a picture: its pixels in full size, upright, 8 bit RGB, resized by Pillow (bilinear, antialiased)
and rounded. Every way in gives it: files, bytes, Pillow images, arrays, and the data loader. Sizes are read from the
header and checked before the pixels are decoded.

Importable without JAX: data workers decode. Pillow's global settings and Python's warning filters stay unchanged.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import (  # noqa: F401 - Pillow registers a format when its plugin is imported
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rahf.core.errors import ImageError
from rahf.core.files import open_regular
from rahf.images import jpeg
from rahf.images.orientation import of_loaded, orientation, upright

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import UInt8

#: Largest number of pixels that is decoded unless the caller says otherwise (64 megapixels).
MAX_PIXELS = 64_000_000
#: The definition of the square, for the description of a model's preprocessing.
SQUARE = "8 bit RGB, decoded in full size, upright; bilinear, antialiased, rounded; aspect ratio not kept"
#: A crop: left, top, right, bottom as shares of width and height, 0 <= left < right <= 1.
Box = tuple[float, float, float, float]
FULL: Box = (0.0, 0.0, 1.0, 1.0)
#: Called with the error of a JPEG whose pixels are damaged in the middle and that is taken as libjpeg repairs it.
OnDamage = Callable[[ImageError], None]

_MAX_BYTES = 512_000_000  # 64 megapixels of 16 bit RGB are 384 MB
# An explicit list, because Pillow starts external programs for some other formats (EPS, WMF).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
# A Pillow image of a file must not load its pixels in two threads at once. Few locks serve many images.
_LOADING = tuple(threading.RLock() for _ in range(32))


class Header(NamedTuple):
    """The header of an image: Pillow's name of the format, and the size as stored, before any rotation, in pixels."""

    format: str
    width: int
    height: int


def check_header(data: bytes, max_pixels: int = MAX_PIXELS, what: str = "image") -> Header:
    """Reads format and size of an encoded image without decoding it.

    Args:
      data: the encoded file.
      max_pixels: largest allowed width x height.
      what: name of the image in error messages.

    Raises:
      ImageError: empty, not an image, or larger than `max_pixels`.
    """
    image = open_encoded(data, max_pixels, what)
    return Header(image.format or "", *image.size)


def load_rgb(
    source: str | os.PathLike | bytes | bytearray | memoryview | io.BufferedIOBase | Image.Image,
    max_pixels: int = MAX_PIXELS,
    what: str | None = None,
    on_damage: OnDamage | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Any image as upright 8 bit RGB in its own size.

    Grey and palette images become RGB. Transparent pixels are composited over white. CMYK is converted without
    colour profile; Adobe's inverted CMYK is recognised by its marker. 16 bit values are scaled, not clipped. Rotation
    by EXIF or XMP is applied. Of several frames the first is read.

    Args:
      source: path, encoded bytes, binary file, or Pillow image (which is not changed).
      max_pixels: largest allowed width x height, checked before decoding.
      what: name of the image in error messages; by default its path.
      on_damage: as in `decode_resized`.

    Returns:
      uint8 [h,w,3], 0..255, writable.

    Raises:
      ImageError: missing, empty, truncated, damaged, not an image, without pixels, or larger than `max_pixels`.
    """
    what = what or _name(source)
    if isinstance(source, Image.Image):
        with _LOADING[(id(source) >> 6) % len(_LOADING)]:
            return np.array(_from_pillow(source, max_pixels, what, on_damage))
    if hasattr(source, "read"):
        with readable(None, what):
            source = source.read()
    if not isinstance(source, (bytes, bytearray, memoryview)):
        source = read_file(source, what)
    return np.array(_decoded(bytes(source), max_pixels, what, on_damage))


def is_upright_rgb(data: bytes, what: str = "image") -> bool:
    """Whether an image that `load_rgb` reads is stored upright, as 8 bit RGB without transparency, in one frame."""
    if data[:2] == jpeg.START:
        metadata = jpeg.metadata(data)
        if metadata.pictures or orientation(metadata.exif, metadata.xmp) != 1:
            return False
    image = open_encoded(data, MAX_PIXELS, what)
    with readable(image, what):
        plain = image.mode == "RGB" and "transparency" not in image.info and getattr(image, "n_frames", 1) == 1
        if not plain or image.format == "JPEG":
            return plain
        if image.format == "PNG":  # it may have metadata behind its pixels, which only decoding finds
            if not any(mark in data for mark in _PNG_METADATA):
                return True
            image.load()
        return of_loaded(image) == 1


def read_file(path: str | os.PathLike, what: str | None = None) -> bytes:
    """The bytes of an image file.

    Raises:
      ImageError: missing, unreadable, a folder or another thing that is no regular file, or larger than 512 MB.
    """
    what = what or os.fsdecode(path)
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise ImageError(f"{what}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MAX_BYTES:
        raise ImageError(f"{what}: more than {_MAX_BYTES // 10**6} MB, too large for an image")
    return data


def decode_resized(
    data: bytes,
    size: int,
    box: Box | None = None,
    max_pixels: int = MAX_PIXELS,
    what: str = "image",
    on_damage: OnDamage | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """Encoded image, or only the part `box` of it → square of side `size`. The aspect ratio is not kept, as in the
    RAHF paper.

    The same pixels as resizing `load_rgb` (antialiased bilinear). Read-only.

    Args:
      data: the encoded file, JPEG fastest.
      size: side of the result in pixels.
      box: part of the upright image to keep; None keeps all.
      max_pixels, what: as in `load_rgb`.
      on_damage: called with the error of a JPEG whose pixels are damaged in the middle, which is then taken as libjpeg
        repairs it, grey or displaced behind the damage; None: the error is raised.

    Raises:
      ImageError: as `load_rgb`.
    """
    box = checked_box(box)
    return np.asarray(resize_box(Image.fromarray(_decoded(data, max_pixels, what, on_damage)), size, box))


def resize_square(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Decoded upright pixels → the square of `decode_resized`. Read-only where it is resized."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(resize_box(Image.fromarray(np.ascontiguousarray(pixels)), size, FULL))


def _decoded(data: bytes, max_pixels: int, what: str, on_damage: OnDamage | None) -> np.ndarray:
    """Upright RGB pixels uint8 [h,w,3] of an encoded image."""
    if data[:2] != jpeg.START:
        return np.asarray(_upright_rgb(open_encoded(data, max_pixels, what), what))
    metadata = jpeg.metadata(data)
    pixels, header, damage = None, jpeg.header(data), []
    note = None if on_damage is None else damage.append
    if header is not None:
        _check_size(header[:2], max_pixels, what)
        if "K" not in header[2]:  # CMYK and YCCK become RGB in Pillow
            pixels = jpeg.decode(data, what, note)
        else:
            jpeg.check(data, what, note)
    elif jpeg.simplejpeg is None:
        open_encoded(metadata.bare, max_pixels, what)  # the size is checked before all else
        jpeg.check(data, what, note)
    if pixels is None:
        image = open_encoded(metadata.bare, max_pixels, what)
        with readable(image, what):
            image.load()
            pixels = np.asarray(_rgb(image, what))
    for error in damage:  # only now: of a truncated file Pillow makes nothing
        on_damage(error)
    value = orientation(metadata.exif, metadata.xmp)
    return pixels if value == 1 else np.asarray(upright(Image.fromarray(pixels), value))


def _from_pillow(
    image: Image.Image, max_pixels: int, what: str, on_damage: OnDamage | None
) -> Image.Image | np.ndarray:
    """Upright RGB of a Pillow image; one that is a JPEG file, not yet decoded, as that file."""
    _check_size(image.size, max_pixels, what)
    if type(image) is JpegImagePlugin.JpegImageFile and image.tile and image.fp and not image.decoderconfig:
        with readable(image, what):
            place = image.fp.tell()
            image.fp.seek(0)
            data = image.fp.read()
            image.fp.seek(place)
        return _decoded(data, max_pixels, what, on_damage)
    return _upright_rgb(image, what)


def open_encoded(data: bytes, max_pixels: int, what: str) -> Image.Image:
    """Reads the header and checks the size. Pixels are decoded later; see `load_rgb` for arguments and errors."""
    if not data:
        raise ImageError(f"{what}: the file is empty")
    if data[:2] == jpeg.START:
        data = jpeg.metadata(data).bare
    for name in _FORMATS:
        # Not by `Image.open`: it warns about large images, and Python's warning filters belong to all threads.
        factory, accept = Image.OPEN[name]
        with readable(None, what):
            accepted = accept is None or accept(data[:16])
            if not accepted or isinstance(accepted, str):  # text: why this installation of Pillow cannot read it
                continue
            try:
                image = factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # as `Image.open`: not of this format
                continue
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                raise ImageError(f"{what}: too large ({error})") from error
        _check_size(image.size, max_pixels, what)
        return image
    raise ImageError(
        f"{what}: not an image that can be read (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM), or its first bytes are damaged"
    )


def _check_size(size: tuple[int, int], max_pixels: int, what: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{what}: has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{what}: {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"more than the limit of {max_pixels / 1e6:.1f}; make it smaller"
        )


def _upright_rgb(image: Image.Image, what: str) -> Image.Image:
    """Decodes, converts and turns upright."""
    with readable(image, what):
        image.load()
        return upright(_rgb(image, what), of_loaded(image))


def _rgb(image: Image.Image, what: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow treats every CMYK JPEG as Adobe's inverted one
    image = eight_bit(image, what)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def eight_bit(image: Image.Image, what: str) -> Image.Image:
    """Grey images of more than 8 bits → mode L. (Pillow itself reduces 16 bit colour when it decodes.)"""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 65535:
        raise ImageError(
            f"{what}: pixels of {'floating point' if image.mode == 'F' else '32 bits'} from {low} to {high}; "
            "expected 8 or 16 bits per channel"
        )
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def checked_box(box: Box | None) -> Box:
    """The box, or all of the picture for None. Raises ValueError for one that is not a part of the picture."""
    box = box or FULL
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(f"crop {box}: expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    return box


def resize_box(image: Image.Image, size: int, box: Box) -> Image.Image:
    """Antialiased bilinear; the edges of the crop may lie between two pixels."""
    if box == FULL and image.size == (size, size):
        return image
    width, height = image.size
    edges = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=edges)


def _name(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return str(name) if name else "image"


@contextlib.contextmanager
def readable(image: Image.Image | None, what: str) -> Iterator[None]:
    """Converts any error of a decoder into an ImageError of one line that names the image."""
    kind = "image" if image is None or image.format is None else image.format
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{what}: truncated or damaged {kind} ({reason})") from error
