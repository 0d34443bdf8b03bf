"""Pictures, the files they are stored in, and what is expected of files that cannot be read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rahf import images


def encode(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, format, **options)
    return buffer.getvalue()


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges and gradients, but no pixel noise (which JPEG would not keep)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = np.stack([127 + 90 * np.sin(a * x + b * y + c) for a, b, c in rng.uniform(2, 9, (3, 3))], -1)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (240, 30, 60)
    return picture.round().astype(np.uint8)


def slow(data: bytes, size: int, box=images.FULL) -> np.ndarray:
    """The exact way: everything decoded in full, then one antialiased resize."""
    image = Image.fromarray(images.load_rgb(data))
    w, h = image.size
    edges = (box[0] * w, box[1] * h, box[2] * w, box[3] * h)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=edges)).astype(int)


def png16(values: np.ndarray) -> bytes:
    """A 16 bit RGB or RGBA PNG, written by hand because Pillow cannot."""
    height, width, channels = values.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


RGB = smooth(40, 60)


def expect_error(data: bytes, words: str):
    for call in (images.load_rgb, lambda d, what: images.decode_resized(d, 16, what=what)):
        with pytest.raises(images.ImageError) as caught:
            call(data, what="holiday.img")
        message = str(caught.value)
        assert message.startswith("holiday.img: ") and "\n" not in message and words in message
