"""One image of any kind → the square that the network sees, and a copy for display.

Sources are paths, encoded bytes, Pillow images, and arrays of NumPy, JAX or PyTorch (or anything that NumPy can read).
Each becomes 8 bit RGB in its own size and is then resized as the data loader resizes, so that one picture is one square
on every way and a prediction equals an evaluation. No JAX here: threads run this.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from rahf.core import pixel_range
from rahf.core.errors import ImageError
from rahf.images import decode

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import UInt8

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_SHOWN = 1024  # longest side of the copy for display, in pixels


class Picture(NamedTuple):
    """One image, ready for the network and for people."""

    name: str  # path, or "image 3"
    square: UInt8[np.ndarray, "s s 3"]
    shown: UInt8[np.ndarray, "h w 3"] | None  # upright RGB, longest side at most 1024; None: not kept
    size: tuple[int, int] | None  # height and width of the upright original; None: not kept


def looks_like_image(value: Any) -> bool:
    """Whether a value is an image, or text that ends like the name of an image file."""
    if isinstance(value, str):
        return os.path.splitext(value)[1].lower() in _SUFFIXES
    return isinstance(value, (os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(value, "__array__")


def picture(source: Any, side: int, number: int, keep: bool = False) -> Picture:
    """Decodes and checks one image and resizes it (antialiased bilinear, aspect ratio not kept).

    Args:
      source: path, encoded bytes, Pillow image, or array [h,w,3] or [h,w]: uint8, or float in [0,1], which is rounded
        to 8 bits before it is resized.
      side: of the network's square, in pixels.
      number: position in the list, which names an image without a path in error messages.
      keep: also keep a copy for display and the original's size.

    Raises:
      ImageError: missing, damaged, not an image, too large; or an array of another shape, dtype or range.
    """
    full, name = rgb(source, f"image {number}")
    square = decode.resize_square(full, side)
    if not keep:
        return Picture(name, square, None, None)
    return Picture(name, square, _shown(full), full.shape[:2])


def rgb(source: Any, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """Any image as upright uint8 [h,w,3] in its own size, and its name: its path, or `name`.

    Raises:
      ImageError: as `picture`.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return decode.load_rgb(_read(source, name), what=name), name
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode.load_rgb(source, what=name), name
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or name
        return decode.load_rgb(source, what=name), name
    return _array(source, name), name


def _read(path: str | os.PathLike, name: str) -> bytes:
    try:
        return decode.read_file(path, name)
    except ImageError as error:
        if " " not in name or looks_like_image(name) or "No such file" not in str(error):
            raise
        raise ImageError(f"{error}; this looks like a prompt where an image belongs") from error


def as_array(source: Any, name: str) -> np.ndarray:
    """An array of NumPy, JAX or PyTorch as NumPy's, on whatever device it is and whether it has gradients or not.

    Raises:
      ImageError: something else, or the placeholder of an array inside of `jax.jit` or `jax.grad`.
    """
    if not hasattr(source, "__array__"):
        hint = "; give its path, or its bytes: file.read()" if hasattr(source, "read") else ""
        kind = type(source).__name__
        raise ImageError(f"{name}: expected a path, bytes, a Pillow image or an array, found {kind}{hint}")
    if hasattr(source, "detach") and hasattr(source, "cpu"):  # PyTorch
        source = source.detach().cpu()
        if "bfloat16" in str(source.dtype):  # NumPy has no such type
            source = source.float()
    if isinstance(source, np.ma.MaskedArray):
        raise ImageError(f"{name}: {pixel_range.MASKED}")
    try:
        return np.asarray(source)
    except Exception as error:  # JAX's own class for tracers; JAX is not imported here
        raise ImageError(
            f"{name}: {type(source).__name__} cannot be read as an array here; inside of jax.jit, jax.grad or jax.vmap "
            "use critic.scores, critic.heatmaps or critic.reward"
        ) from error


def eight_bit(array: np.ndarray, name: str) -> UInt8[np.ndarray, "*s"]:
    """Pixels of any shape as uint8; floats in [0,1] are rounded.

    Raises:
      ImageError: another dtype, or values that cannot be pixels in [0,1].
    """
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8, copy=False)
    # bfloat16 is no np.floating; floats in another byte order are, and NumPy calls them ">f4".
    if "float" not in str(array.dtype) and array.dtype.kind != "f":
        raise ImageError(f"{name}: pixels of type {array.dtype}; {pixel_range.EXPECTED_TYPES}")
    values = np.asarray(array, np.float32)
    pixel_range.check(name, float(values.min()), float(values.max()))
    return np.floor(np.clip(values, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _array(source: Any, name: str) -> np.ndarray:
    return eight_bit(check_channels(as_array(source, name), name), name)


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


def _shown(full: np.ndarray) -> np.ndarray:
    """A reduced copy for display: a long list of large images must fit into memory."""
    if max(full.shape[:2]) <= _SHOWN:
        return full
    image = Image.fromarray(np.ascontiguousarray(full))
    image.thumbnail((_SHOWN, _SHOWN), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)
