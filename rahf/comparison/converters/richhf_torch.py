"""Outputs of the public PyTorch port of RichHF (github.com/youweiliang/RichHF, ``inference.py --infer``).

It writes ``test_outputs.json``: a list of objects with the prompt (``caption``), the decoded target sequence
(``pred_text``; a misaligned word ends in ``_0``) and ``pred_score_<name>`` of the four scores, in order of its test
split; and ``test_imgs/000.jpg``, …: two rows of three squares each, upper row as labelled, lower row as predicted:
picture, implausibility, misalignment. So maps have the loss of JPEG (quality 75), and pictures have no names: the
examples are found by their prompts, which must occur once in a split.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import numpy as np

from rahf import images
from rahf.comparison.converters.writing import Converted, Item, attempt, write
from rahf.comparison.predictions import Unusable
from rahf.core import json_text
from rahf.core.batch import SCORES
from rahf.core.errors import DataError
from rahf.core.files import read_regular
from rahf.images.decode import read_file
from rahf.text.words import align_labels, parse_target, split_words

_ENDING = "_outputs.json"


def convert(source: str | os.PathLike, out: str | os.PathLike) -> Converted:
    """Converts the outputs of one run.

    Args:
      source: its folder with one ``*_outputs.json``, or that file; the pictures lie beside it in ``*_imgs``.
      out: folder to create.

    Raises:
      DataError: another layout, or nothing in it that can be used.
      ArgumentError: `out` has something in it.
    """
    file = _file(pathlib.Path(source))
    try:
        tree = json_text.parse(read_regular(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected a list of objects") from error
    if not isinstance(tree, list):
        raise DataError(f"{file}: expected a list of objects, found {type(tree).__name__}")
    # Runs with --best name the file after the folder of pictures, too.
    pictures = file.with_name(file.name.removesuffix(_ENDING) + "_imgs")
    return write(out, attempt(functools.partial(_item, entry, pictures) for entry in tree), "RichHF (PyTorch)")


def _file(source: pathlib.Path) -> pathlib.Path:
    if not source.is_dir():
        return source
    files = sorted(source.glob(f"*{_ENDING}"))
    if len(files) != 1:
        listed = ", ".join(one.name for one in files) or "none"
        raise DataError(f"{source}: expected one *{_ENDING}, found {listed}; give the file")
    return files[0]


def _item(entry: Any, pictures: pathlib.Path) -> Item:
    prompt = entry.get("caption") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise Unusable("malformed", f"expected an object with 'caption', found {str(entry)[:80]!r}")
    line: dict[str, Any] = {"prompt": prompt}
    scores = {name: json_text.finite(entry.get(f"pred_score_{name}")) for name in SCORES}
    # Its last layer is a sigmoid in half precision at most: nothing lies outside of [0,1] but by rounding.
    line["scores"] = {name: min(max(value, 0.0), 1.0) for name, value in scores.items() if value is not None}
    if isinstance(entry.get("pred_text"), str):
        line["word_labels"] = align_labels(split_words(prompt), parse_target(entry["pred_text"]))
    number = entry.get("idx")
    if type(number) is not int or not 0 <= number < 1 << 40:
        raise Unusable("malformed", f"idx is {number!r:.40}, expected a whole number")
    file = pictures / f"{number:03d}.jpg"
    return Item(line, _maps(file) if file.exists() else (None, None))


def _maps(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        pixels = images.load_rgb(read_file(file), what=str(file))
    except images.ImageError as error:
        raise Unusable("bad map", str(error)) from error
    height, width = pixels.shape[:2]
    if height % 2 or width % 3 or height // 2 != width // 3:
        raise Unusable("bad map", f"{file}: {width} x {height} pixels, expected two rows of three squares")
    side = height // 2
    lower = pixels[side:].mean(-1) / 255  # grey, stored as colours
    return tuple(lower[:, start : start + side].astype(np.float32) for start in (side, 2 * side))
