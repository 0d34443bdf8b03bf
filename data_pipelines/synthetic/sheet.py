"""A contact sheet: scenes with prompt, faults and both heatmaps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.prepare.consolidate import consolidate
from data_pipelines.synthetic.scene import Scene
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.images.overlay import overlay
from rahf.text.words import pieces

_TILE = 132  # side of one picture on the sheet, in pixels
_GAP, _TEXT = 6, 74
_BACK, _INK, _WRONG, _DIM = (252, 252, 250), (34, 34, 40), (200, 30, 30), (110, 110, 118)


def contact_sheet(scenes: Sequence[Scene], columns: int = 4) -> Image.Image:
    """Draws scenes in rows: the picture, the picture under its implausibility and its misalignment map.

    Below them it writes the prompt with untrue words in red, the planted faults, and the four scores.

    Args:
      scenes: at least one.
      columns: scenes per row.

    Raises:
      ArgumentError: no scene.
    """
    if not scenes:
        raise ArgumentError("no scenes: a contact sheet needs at least one")
    width, height = 3 * _TILE + 3 * _GAP, _TILE + _TEXT + 2 * _GAP
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * height + _GAP), _BACK)
    for number, one in enumerate(scenes):
        _draw_scene(sheet, one, _GAP + number % columns * (width + _GAP), _GAP + number // columns * height)
    return sheet


def _draw_scene(sheet: Image.Image, one: Scene, left: int, top: int) -> None:
    side = one.image.shape[0]
    labels = consolidate(one.annotations, side, side, one.words)
    pale = (90 + 0.6 * one.image.mean(axis=-1, keepdims=True)).astype(np.uint8)  # all colour is the heatmap's
    pale = pale.repeat(3, axis=-1)
    maps = (overlay(pale, labels.heatmaps[..., kind], name) for kind, name in enumerate(HEATMAPS))
    pictures = (one.image, *maps)
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (left + number * (_TILE + _GAP), top))
    pencil = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(12), ImageFont.load_default(10)
    y = top + _TILE + 4
    y = _draw_words(pencil, one, left, y, 3 * _TILE, font)
    faults = ", ".join(one.faults) or "no fault"
    for line in textwrap.wrap(faults, 70)[:1]:
        pencil.text((left, y + 2), line, _DIM, small)
    scores = "   ".join(f"{name} {value:.2f}" for name, value in zip(SCORES, labels.scores))
    pencil.text((left, y + 16), scores, _DIM, small)


def _draw_words(pencil, one: Scene, left: int, y: int, width: int, font) -> int:
    """Writes the prompt, untrue words in red; returns where the next line starts."""
    x = left

    def write(text: str, colour: tuple[int, int, int]) -> None:
        nonlocal x, y
        if x + pencil.textlength(text.rstrip(), font) > left + width:
            x, y, text = left, y + 15, text.lstrip()
        pencil.text((x, y), text, colour, font)
        x += pencil.textlength(text, font)

    for piece in pieces(one.prompt, one.words):
        write(piece.text, _INK if piece.word is None or one.word_labels[piece.word] else _WRONG)
    return y + 17
