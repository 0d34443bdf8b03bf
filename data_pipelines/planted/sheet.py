"""A contact sheet of planted damage: picture, damaged picture, exact mask, and what the annotators marked."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.planted.example import Example
from rahf import images
from rahf.core.batch import SCORES

_TILE, _GAP, _TEXT = 176, 6, 34


def contact_sheet(examples: list[Example], columns: int = 2) -> Image.Image:
    """Draws examples in rows of `columns`; kinds of damage, visibility and scores below each."""
    width, height = 4 * (_TILE + _GAP) + _GAP, _TILE + _TEXT + _GAP
    rows = -(-len(examples) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (252, 252, 250))
    pencil, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, one in enumerate(examples):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(one.truth["mask_png"]))))
        marked = images.load_grey(one.record.implausibility, what=one.record.uid)
        tiles = (one.clean, images.load_rgb(one.record.image, what=one.record.uid), mask, marked)
        for place, pixels in enumerate(tiles):
            tile = Image.fromarray(pixels).convert("RGB")
            tile.thumbnail((_TILE, _TILE))
            sheet.paste(tile, (left + place * (_TILE + _GAP), top))
        kinds = ", ".join(f"{d['kind']} {d['visibility']:.3f}" for d in one.truth["damage"]) or "no damage"
        scores = "  ".join(f"{name} {value:.2f}" for name, value in zip(SCORES, one.record.scores))
        pencil.text((left, top + _TILE + 2), f"{kinds}   {scores}", (60, 60, 66), font)
        faults = f" [{', '.join(one.truth['faults'])}]" if one.truth["faults"] else ""
        pencil.text((left, top + _TILE + 15), f"{one.record.prompt:.110}{faults}", (110, 30, 30), font)
    return sheet
