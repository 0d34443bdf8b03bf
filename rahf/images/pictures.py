"""One image of any kind → the square that the network sees, and a copy for display.

Sources are paths, encoded bytes, Pillow images, and NumPy or JAX arrays (or anything that NumPy can read). Each is
resized as the data loader resizes, so that a prediction equals an evaluation. No JAX here: threads run this.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from rahf.core import pixel_range
from rahf.core.errors import ImageError
from rahf.images import decode
from rahf.images.resize import resize

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float, UInt8

#: Largest file that is read; 64 megapixels of 16 bit RGB are 384 MB.
MAX_BYTES = 512_000_000
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_SHOWN = 1024  # longest side of the copy for display, in pixels


class Picture(NamedTuple):
    """One image, ready for the network and for people."""

    name: str  # path, or "image 3"
    square: UInt8[np.ndarray, "s s 3"] | Float[np.ndarray, "s s 3"]  # uint8, or float32 in [0,1]
    shown: UInt8[np.ndarray, "h w 3"] | None  # upright RGB, longest side at most 1024; None: not kept
    size: tuple[int, int] | None  # height and width of the upright original; None: not kept


def is_floating(image: Any) -> bool:
    """Whether an image holds floating point pixels (and a batch with it must)."""
    dtype = getattr(image, "dtype", None)
    return dtype is not None and "float" in str(dtype)


def looks_like_image(value: Any) -> bool:
    """Whether a value is an image, or text that ends like the name of an image file."""
    if isinstance(value, str):
        return os.path.splitext(value)[1].lower() in _SUFFIXES
    return isinstance(value, (os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(value, "__array__")


def picture(source: Any, side: int, number: int, floating: bool = False, keep: bool = False) -> Picture:
    """Decodes and checks one image and resizes it (antialiased bilinear, aspect ratio not kept).

    Args:
      source: path, encoded bytes, Pillow image, or array [h,w,3] or [h,w]: uint8, or float in [0,1].
      side: of the network's square, in pixels.
      number: position in the list, which names an image without a path in error messages.
      floating: convert `square` to float32 in [0,1] even if the source is uint8.
      keep: also keep a copy for display and the original's size; a JPEG is then decoded a second time.

    Raises:
      ImageError: missing, damaged, not an image, too large; or an array of another shape, dtype or range.
    """
    name = f"image {number}"
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        source = _read(source, name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        square, full = _from_bytes(bytes(source), side, name, keep)
    elif isinstance(source, Image.Image):
        full = decode.load_rgb(source, what=getattr(source, "filename", "") or name)
        square = _resize(full, side)
    else:
        full = _array(source, name)
        square = _resize(full, side)
    if floating and square.dtype == np.uint8:
        square = square.astype(np.float32) * np.float32(1 / 255)  # as the network does with uint8
    if not keep:
        return Picture(name, square, None, None)
    return Picture(name, square, _shown(full), full.shape[:2])


def _read(path: str | os.PathLike, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        prompt = " " in name and not looks_like_image(name)
        hint = "; this looks like a prompt where an image belongs" if prompt else ""
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}{hint}") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES // 10**6} MB, too large for an image")
    return data


def _from_bytes(data: bytes, side: int, name: str, keep: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The network's square, and the image in its own size if `keep`."""
    if not keep:
        return decode.decode_resized(data, side, what=name), None
    full = decode.load_rgb(data, what=name)
    if data[:2] == b"\xff\xd8":  # JPEG: the loader may decode it at reduced scale
        return decode.decode_resized(data, side, what=name), full
    return _resize(full, side), full


def _array(source: Any, name: str) -> np.ndarray:
    """An array as uint8 [h,w,3] or float32 [h,w,3] in [0,1]."""
    if not hasattr(source, "__array__"):
        raise ImageError(f"{name}: expected a path, bytes, a Pillow image or an array, found {type(source).__name__}")
    array = np.asarray(source)
    if is_floating(array):
        array = np.asarray(array, np.float32)
    array = check_channels(array, name)
    if array.dtype == np.uint8:
        return array
    if array.dtype != np.float32:
        raise ImageError(f"{name}: pixels of type {array.dtype}; expected uint8 0..255 or floats in [0,1]")
    pixel_range.check(name, float(array.min()), float(array.max()))
    return np.clip(array, 0, 1)


def check_channels(array: np.ndarray, name: str) -> np.ndarray:
    """Returns [h,w,3] unchanged and [h,w] as grey RGB. Raises ImageError with a remedy for other shapes."""
    if array.ndim == 2 and array.size:
        return np.stack([array] * 3, -1)
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[2] == 3 and array.size:
        return array
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        remedy = "this looks like channels first (CHW); use np.moveaxis(image, 0, -1)"
    elif array.ndim == 3 and shape[2] == 4:
        remedy = "for pixels with alpha, give a Pillow image: Image.fromarray(image)"
    elif array.ndim == 3 and shape[2] == 1:
        remedy = "for grey pixels, drop the last axis: image[:, :, 0]"
    else:
        remedy = "give one image as height, width, RGB"
    raise ImageError(f"{name}: array of shape {shape}, expected [h,w,3]; {remedy}")


def _resize(array: np.ndarray, side: int) -> np.ndarray:
    """As `rahf.images.decode_resized`; floats without rounding to 8 bits."""
    if array.shape[:2] == (side, side):
        return array
    resized = resize(array, (side, side))
    return resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1)


def _shown(full: np.ndarray) -> np.ndarray:
    """A reduced copy for display: a long list of large images must fit into memory."""
    if full.dtype != np.uint8:
        full = (full * 255).round().astype(np.uint8)
    if max(full.shape[:2]) <= _SHOWN:
        return full
    image = Image.fromarray(np.ascontiguousarray(full))
    image.thumbnail((_SHOWN, _SHOWN), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)
