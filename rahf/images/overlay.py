"""Heatmaps as colours over a picture, and pictures side by side with titles.

Only NumPy and Pillow. Heatmaps are warm (implausibility), cool (misalignment) or green (saliency); all grow
more opaque with the value, so that the picture stays visible where nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rahf.images.resize import resize

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float, Real, UInt8


#: Colours (red, green, blue) at equal steps from 0 to 1. They darken steadily, so that the order also shows in grey
#: print and to colour-blind people.
PALETTES = {
    "implausibility": ((255, 240, 150), (255, 200, 60), (250, 130, 30), (225, 50, 35), (140, 0, 50)),
    "saliency": ((225, 245, 225), (150, 220, 150), (50, 170, 110), (10, 110, 100), (10, 50, 80)),
    "misalignment": ((175, 245, 250), (80, 205, 245), (50, 130, 245), (105, 55, 230), (130, 0, 150)),
}

_FULL = 0.6  # from this value on the opacity is highest; two of three annotators give 0.67
_WIDEST = 3  # width : height of a picture in a panel; a wider one would need gigabytes at the same height
_NOTHING = 0.02  # values up to it are invisible: an untrained network predicts about as much


def colours(heatmap: Real[np.ndarray, "h w"], palette: str) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of a heatmap, without any transparency.

    Args:
      heatmap: uint8 0..255 or float in [0,1]; values outside are clipped, NaN counts as 0.
      palette: a name in `PALETTES`.
    """
    table = np.asarray(PALETTES[palette], np.float64)
    value = as_unit(heatmap)
    steps = np.linspace(0, 1, len(table))
    channels = [np.interp(value, steps, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heatmap_rgba(heatmap: Real[np.ndarray, "h w"], palette: str, strength: float = 0.85) -> UInt8[np.ndarray, "h w 4"]:
    """A heatmap as a transparent layer over its picture: colour and opacity depend on the value.

    Args:
      heatmap: uint8 0..255 or float in [0,1].
      palette: a name in `PALETTES`.
      strength: opacity of the highest values, in [0,1].
    """
    value = as_unit(heatmap)
    alpha = np.clip((value - _NOTHING) / (_FULL - _NOTHING), 0, 1) ** 0.8 * strength
    return np.dstack([colours(value, palette), (alpha * 255).round().astype(np.uint8)])


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    heatmap: Real[np.ndarray, "h w"],
    palette: str = "implausibility",
    strength: float = 0.85,
    contour: float | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture with a heatmap laid over it.

    Args:
      image: uint8 RGB.
      heatmap: uint8 0..255 or float in [0,1], any size; resized bilinearly to the picture.
      palette: a name in `PALETTES`.
      strength: opacity of the highest values, in [0,1]; 0 leaves the picture unchanged.
      contour: also draw a line around the pixels with at least this value, in (0,1]; None: no line.

    Returns:
      uint8 [H,W,3].
    """
    value = as_unit(heatmap)
    if value.shape != image.shape[:2]:
        value = np.clip(resize(value, image.shape[:2]), 0, 1)
    layer = heatmap_rgba(value, palette, strength).astype(np.float32)
    alpha = layer[:, :, 3:] / 255
    mixed = image * (1 - alpha) + layer[:, :, :3] * alpha
    if contour is not None:
        mixed[_outline(value >= contour)] = PALETTES[palette][-1]
    return mixed.round().astype(np.uint8)


def as_unit(heatmap: Real[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """uint8 0..255 or float → float32 in [0,1], NaN as 0."""
    heatmap = np.asarray(heatmap)
    if heatmap.dtype == np.uint8:
        return heatmap.astype(np.float32) / 255
    return np.clip(np.nan_to_num(heatmap.astype(np.float32)), 0, 1)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Pixels of a region along its border, in a line thick enough to be visible at the picture's size."""
    thickness = max(1, round(max(inside.shape) / 256))
    core = inside
    for _ in range(thickness):
        padded = np.pad(core, 1, constant_values=True)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def panel(pictures: Sequence[tuple[str, np.ndarray]], height: int = 384, columns: int | None = None) -> Image.Image:
    """Pictures side by side on white, a caption over each.

    Args:
      pictures: (caption, uint8 RGB [H,W,3] of any size); scaled to the same height, or, if wider than 3 : 1, to three
        times that width.
      height: of every picture, in pixels.
      columns: pictures per row; None: all in one row.
    """
    columns = columns or max(len(pictures), 1)
    gap, size = max(6, height // 32), max(11, height // 20)
    typeface, line = font(size), int(size * 1.7)
    scaled = []
    for _, picture in pictures:
        scale = min(height / picture.shape[0], _WIDEST * height / picture.shape[1])
        size_in_panel = tuple(max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
        scaled.append(Image.fromarray(picture).resize(size_in_panel, Image.Resampling.LANCZOS))
    rows = [range(start, min(start + columns, len(scaled))) for start in range(0, len(scaled), columns)]
    total = max((sum(scaled[i].width + gap for i in row) for row in rows), default=0) + gap
    canvas = Image.new("RGB", (total, len(rows) * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        x, y = gap, gap + number * (height + line + gap)
        for i in row:
            draw.text((x, y), pictures[i][0], fill=(40, 40, 48), font=typeface)
            canvas.paste(scaled[i], (x, y + line + (height - scaled[i].height) // 2))
            x += scaled[i].width + gap
    return canvas


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font in a size of pixels."""
    return ImageFont.load_default(size)
