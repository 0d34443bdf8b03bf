"""Encoded images → arrays: any image file → upright 8 bit RGB, and a faster function for the data loader.

Both functions give the same pixels. `load_rgb` reads any file and keeps its size. `decode_resized` decodes bytes
to the square that a network sees: JPEG by TurboJPEG, at reduced scale where the square is much smaller than the
picture. Sizes are read from the header and checked before the pixels are decoded.

Importable without JAX: data workers decode. Pillow's global settings stay unchanged.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
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

try:
    import simplejpeg
except ImportError:  # not installed where only exported models are read; Pillow serves then
    simplejpeg = None

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import UInt8

#: Largest number of pixels that is decoded unless the caller says otherwise (64 megapixels).
MAX_PIXELS = 64_000_000
#: A crop: left, top, right, bottom as shares of width and height, 0 <= left < right <= 1.
Box = tuple[float, float, float, float]
FULL: Box = (0.0, 0.0, 1.0, 1.0)

# An explicit list, because Pillow starts external programs for some other formats (EPS, WMF).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_THREAD_SAFE_AND_SILENT = ("JPEG", "PNG", "WEBP", "MPO")  # decoders that never warn
_ORIENTATION = 0x0112  # EXIF tag; its value says how to turn the stored pixels upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """The header of an image: Pillow's name of the format, and the size as stored, before any EXIF rotation, in
    pixels."""

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
    image = _open(io.BytesIO(data), max_pixels, what)
    return Header(image.format or "", *image.size)


def load_rgb(
    source: str | os.PathLike | bytes | bytearray | memoryview | io.BufferedIOBase | Image.Image,
    max_pixels: int = MAX_PIXELS,
    what: str | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Any image as upright 8 bit RGB in its own size.

    Grey and palette images become RGB. Transparent pixels are composited over white. CMYK is converted without
    colour profile; Adobe's inverted CMYK is recognised by its marker. 16 bit values are scaled, not clipped. EXIF
    rotation is applied. Of several frames the first is read.

    Args:
      source: path, encoded bytes, binary file, or Pillow image (which is not changed).
      max_pixels: largest allowed width x height, checked before decoding.
      what: name of the image in error messages; by default its path.

    Returns:
      uint8 [h,w,3], 0..255, writable.

    Raises:
      ImageError: missing, empty, truncated, not an image, without pixels, or larger than `max_pixels`.
    """
    what = what or _name(source)
    if isinstance(source, Image.Image):
        _check_size(source.size, max_pixels, what)
        return np.array(_upright_rgb(source, what))
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return np.array(_upright_rgb(_open(io.BytesIO(source), max_pixels, what), what))
    try:
        with open(source, "rb") as file:
            return np.array(_upright_rgb(_open(file, max_pixels, what), what))
    except OSError as error:
        raise ImageError(f"{what}: {error.strerror or error}") from error


def decode_resized(
    data: bytes,
    size: int,
    box: Box | None = None,
    max_pixels: int = MAX_PIXELS,
    what: str = "image",
) -> UInt8[np.ndarray, "size size 3"]:
    """Encoded image, or only the part `box` of it → square of side `size`. The aspect ratio is not kept, as in the
    RAHF paper.

    The same pixels as resizing `load_rgb` (antialiased bilinear), up to small differences where a JPEG is
    decoded at reduced scale. Read-only.

    Args:
      data: the encoded file, JPEG fastest.
      size: side of the result in pixels.
      box: part of the upright image to keep; None keeps all.
      max_pixels, what: as in `load_rgb`.

    Raises:
      ImageError: as `load_rgb`.
    """
    box = _checked(box)
    # Smallest sides at which the box still has `size` pixels, so that a reduced image is not enlarged again.
    least = (math.ceil(size / (box[2] - box[0])), math.ceil(size / (box[3] - box[1])))
    pixels = _turbo(data, least, max_pixels, what)
    if pixels is None:
        image = _upright_rgb(_open(io.BytesIO(data), max_pixels, what), what, least)
    else:
        image = Image.fromarray(pixels)
    return np.asarray(_resize(image, size, box))


def load_grey(data: bytes, max_pixels: int = MAX_PIXELS, what: str = "map") -> UInt8[np.ndarray, "h w"]:
    """Encoded heatmap → grey values in its own size. Read-only.

    Raises:
      ImageError: as `load_rgb`.
    """
    image = _open(io.BytesIO(data), max_pixels, what)
    with _readable(image, what):
        image.load()
        return np.asarray(image if image.mode == "L" else _eight_bit(image, what).convert("L"))


def resize_grey(values: UInt8[np.ndarray, "h w"], size: int, box: Box | None = None) -> UInt8[np.ndarray, "size size"]:
    """Heatmap, or only the part `box` of it → square of side `size`; bilinear, antialiased where it shrinks."""
    if values.max() == 0:  # half of all maps are empty
        return np.zeros((size, size), np.uint8)
    return np.asarray(_resize(Image.fromarray(values), size, _checked(box)))


def decode_map(
    data: bytes, size: int, box: Box | None = None, max_pixels: int = MAX_PIXELS, what: str = "map"
) -> UInt8[np.ndarray, "size size"]:
    """Encoded heatmap → grey square of side `size`, values 0..255 as stored, the same `box` as its image.

    Raises:
      ImageError: as `load_rgb`.
    """
    return resize_grey(load_grey(data, max_pixels, what), size, box)


def _turbo(data: bytes, least: tuple[int, int], max_pixels: int, what: str) -> np.ndarray | None:
    """RGB pixels of a plain JPEG, reduced to no less than `least` (width, height); None if Pillow must decode it."""
    if data[:2] != b"\xff\xd8" or simplejpeg is None:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if "K" in colorspace or b"Exif\0\0" in data[:65536]:
            return None  # CMYK or YCCK, or possibly rotated
        _check_size((width, height), max_pixels, what)
        return simplejpeg.decode_jpeg(data, min_width=least[0], min_height=least[1])
    except ImageError:
        raise
    except ValueError:
        return None  # damaged or unusual; Pillow reads more variants and names the damage


def _open(file: io.BufferedIOBase, max_pixels: int, what: str) -> Image.Image:
    """Reads the header and checks the size. Pixels are decoded later."""
    with _readable(None, what), _no_warnings():
        try:
            image = Image.open(file, formats=_FORMATS)
        except Image.UnidentifiedImageError:
            image = None
        except Image.DecompressionBombError as error:
            raise ImageError(f"{what}: too large ({error})") from error
    if image is None:
        with _readable(None, what):
            file.seek(0)
            empty = not file.read(1)
        if empty:
            raise ImageError(f"{what}: the file is empty")
        raise ImageError(
            f"{what}: not an image that can be read (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM), "
            "or its first bytes are damaged"
        )
    _check_size(image.size, max_pixels, what)
    return image


def _check_size(size: tuple[int, int], max_pixels: int, what: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{what}: has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{what}: {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"more than the limit of {max_pixels / 1e6:.1f}; make it smaller"
        )


def _upright_rgb(image: Image.Image, what: str, least: tuple[int, int] | None = None) -> Image.Image:
    """Decodes, converts and turns upright. `least`: sides that suffice if Pillow can decode at reduced scale (JPEG)."""
    with _readable(image, what):
        if least is not None:
            image.draft(image.mode, (max(least), max(least)))  # EXIF may swap the sides later
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _rgb(image, what)
        return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    # After load(): Pillow turns TIFF upright while it loads and then drops the tag.
    with _no_warnings():
        try:
            return image.getexif().get(_ORIENTATION, 1)
        except Exception:  # Pillow raises many classes for damaged EXIF; the pixels are usable without it
            return 1


def _rgb(image: Image.Image, what: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow treats every CMYK JPEG as Adobe's inverted one
    image = _eight_bit(image, what)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _eight_bit(image: Image.Image, what: str) -> Image.Image:
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


def _checked(box: Box | None) -> Box:
    box = box or FULL
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(f"crop {box}: expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    return box


def _resize(image: Image.Image, size: int, box: Box) -> Image.Image:
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


_lock = threading.RLock()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Ignores Pillow's warnings. Python's warning filters are global, so only one thread at a time may change them."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _readable(image: Image.Image | None, what: str) -> Iterator[None]:
    """Converts any error of a decoder into an ImageError of one line that names the image."""
    kind = "image" if image is None or image.format is None else image.format
    silent = image is None or image.format in _THREAD_SAFE_AND_SILENT
    try:
        with contextlib.nullcontext() if silent else _no_warnings():
            yield
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{what}: truncated or damaged {kind} ({reason})") from error
