"""The square that version 0 decoded for training, for streams that version 0 began: a resumed run ends as it began."""

from __future__ import annotations

import io
import math

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.store.records import Record
from rahf import images
from rahf.images.decode import resize_box
from rahf.images.orientation import of_loaded, upright


def square(
    record: Record, size: int, box: images.Box = images.FULL, on_damage: images.OnDamage | None = None
) -> np.ndarray:
    """As `rahf.images.decode_resized` of the image, but a JPEG is decoded at the smallest scale at which the box still
    has `size` pixels, which moves pixels of the square by some grey levels. A stored square is not used.

    Raises:
      ImageError: as `rahf.images.load_rgb`.
    """
    data = record.image
    if data[:2] != b"\xff\xd8":
        return images.decode_resized(data, size, box, on_damage=on_damage)
    images.check_header(data)
    least = (math.ceil(size / (box[2] - box[0])), math.ceil(size / (box[3] - box[1])))
    try:
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if "K" not in colorspace and b"Exif\0\0" not in data[:65536]:
            pixels = simplejpeg.decode_jpeg(data, min_width=least[0], min_height=least[1])
            return np.asarray(resize_box(Image.fromarray(pixels), size, box))
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "RGB":
                image.draft("RGB", (max(least), max(least)))
                image.load()
                return np.asarray(resize_box(upright(image, of_loaded(image)), size, box))
    except (ValueError, OSError):
        pass  # damaged or unusual: in full size, as Pillow reads it
    return images.decode_resized(data, size, box, on_damage=on_damage)
