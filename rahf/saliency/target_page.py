"""A page in which the map of where people shall look is drawn: one HTML file that asks for nothing else.

It draws the shapes of `rahf.saliency.targets` and writes the map as PNG, white where people shall look, and the regions
to be avoided as another. Both are what `rahf generate --saliency` and `rahf gazefusion evaluate` read.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import pathlib

import numpy as np
from PIL import Image

from rahf.core import files
from rahf.core.errors import ArgumentError

#: Most pixels: the page draws every shape anew while the mouse moves.
MAX_PIXELS = 2048 * 2048
_QUALITY = 90  # of the photograph
_TEMPLATE = pathlib.Path(__file__).with_name("templates") / "target.html"


def write_page(path: str | os.PathLike, size: tuple[int, int], picture: np.ndarray | None = None) -> int:
    """Writes the page; returns its size in bytes.

    Args:
      path: ends in .html; its stem is the name of the maps.
      size: height and width of the maps in pixels.
      picture: uint8 [H,W,3] of any size, shown below the map; None: black.

    Raises:
      ArgumentError: another name, or a size that makes no sense.
    """
    file = pathlib.Path(path)
    if file.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"{os.fspath(path)}: the page is HTML; name a file that ends in .html")
    if len(size) != 2 or min(size) < 8 or size[0] * size[1] > MAX_PIXELS:
        raise ArgumentError(
            f"size: expected height and width of at least 8 pixels, together at most {MAX_PIXELS}, found {size}"
        )
    photo = None
    if picture is not None:
        buffer = io.BytesIO()
        Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS).save(
            buffer, "JPEG", quality=_QUALITY
        )
        photo = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    data = {"width": size[1], "height": size[0], "name": file.stem, "photo": photo}
    text = _TEMPLATE.read_text(encoding="utf-8")
    title = html.escape(f"Where people shall look: {file.stem}")
    # "<" as an escape: the data cannot end the script element.
    content = text.replace("{{TITLE}}", title).replace("{{DATA}}", json.dumps(data).replace("<", "\\u003c")).encode()
    files.write_atomically(file, content)
    return len(content)
