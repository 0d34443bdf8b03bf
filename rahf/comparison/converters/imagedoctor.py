"""Outputs of ImageDoctor (github.com/EthanG97/ImageDoctor, ``inference.py``, one call per picture).

A call prints the reasoning and, within ``<answer>``, lines such as ``Semantic Alignment score: 0.75``, and writes
``misalignment.npy`` and ``artifact.npy`` (floats in [0,1]) into its ``--output_dir``; a map is missing where the model
gave no place. Here one folder per picture is expected, named as the picture's file without its ending:

    OUTPUTS/17/{artifact.npy,misalignment.npy,output.txt}

where output.txt holds what the call printed: ``python inference.py … --output_dir OUTPUTS/17 > OUTPUTS/17/output.txt``.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re

import numpy as np

from rahf.comparison.converters.writing import Converted, Item, attempt, write
from rahf.comparison.predictions import Unusable
from rahf.core.errors import DataError
from rahf.core.files import open_regular

TEXT = "output.txt"
#: File of a map → which one it is, in order of HEATMAPS.
MAPS = ("artifact.npy", "misalignment.npy")
#: Name of a score in the answer → ours.
SCORES = {
    "plausibility": "plausibility",
    "semantic alignment": "alignment",
    "aesthetic": "aesthetics",
    "overall impression": "overall",
}
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_SCORE = re.compile(rf"({'|'.join(SCORES)})s?\s+score\s*:\s*\**\s*([0-9]*\.?[0-9]+)", re.IGNORECASE)
_MAX_TEXT = 1_000_000  # bytes
_MAX_VALUES = 64_000_000  # of a map


def convert(source: str | os.PathLike, out: str | os.PathLike) -> Converted:
    """Converts the outputs of many calls.

    Args:
      source: folder with one folder per picture.
      out: folder to create.

    Raises:
      DataError: no such folders, or nothing in them that can be used.
      ArgumentError: `out` has something in it.
    """
    source = pathlib.Path(source)
    entries = sorted(source.iterdir()) if source.is_dir() else []
    folders = [one for one in entries if one.is_dir() and not one.is_symlink()]
    if not folders:
        raise DataError(f"{source}: no folders; expected one per picture, with {TEXT} and {' and '.join(MAPS)}")
    return write(out, attempt(functools.partial(_item, folder) for folder in folders), "ImageDoctor")


def _item(folder: pathlib.Path) -> Item:
    maps = tuple(_map(folder / name) for name in MAPS)
    text = folder / TEXT
    scores = _scores(text) if text.exists() else {}
    if not scores and all(one is None for one in maps):
        raise Unusable("malformed", f"{folder.name}: neither {TEXT} with scores nor {' nor '.join(MAPS)}")
    return Item({"image": folder.name, "scores": scores}, maps)


def _scores(file: pathlib.Path) -> dict[str, float]:
    with open_regular(file) as stream:
        text = stream.read(_MAX_TEXT).decode(errors="replace")
    answers = _ANSWER.findall(text)
    scores = {}
    for name, value in _SCORE.findall(answers[-1] if answers else text):
        number = float(value)
        if not 0 <= number <= 1:
            raise Unusable("bad score", f"{file.parent.name}: {name} score {value}, expected a number in [0, 1]")
        scores[SCORES[name.lower()]] = number
    return scores


def _map(file: pathlib.Path) -> np.ndarray | None:
    """An array of NumPy's own file format, without pickle; its header is checked against the file's size."""
    if not file.exists():
        return None
    try:
        with open_regular(file) as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(stream)
            count = int(np.prod(shape, dtype=object)) if shape else 1
            if dtype.kind != "f" or len(shape) != 2 or not 0 < count <= _MAX_VALUES:
                raise ValueError(f"{dtype} of shape {shape}")
            data = stream.read(count * dtype.itemsize)
        values = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C").astype(np.float32)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise Unusable("bad map", f"{file}: {error}; expected floats of two axes as np.save writes them") from error
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1.001):
        raise Unusable("bad map", f"{file}: values outside of [0, 1]")
    return values
