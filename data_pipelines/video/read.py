"""Prepared motion data: its description, its clips, and one clip's volume as a file."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

from data_pipelines import store
from data_pipelines.video.prepare import MOTION_FILE
from data_pipelines.video.records import MOTION, MotionRecord
from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular


class Description(NamedTuple):
    """What all clips of a dataset have in common.

    Attributes:
      frames: T. fps: per second. terms: K. width, height: in pixels.
      scales: float32 [K], 95th percentiles of the magnitudes of each frequency over the training split.
    """

    frames: int
    fps: float
    terms: int
    width: int
    height: int
    scales: np.ndarray


def description(path: str | os.PathLike) -> Description:
    """The description of a prepared motion dataset. Raises DatasetError if there is none."""
    file = pathlib.Path(path) / MOTION_FILE
    try:
        values = json_text.parse_object(read_regular(file))
        scales = np.asarray(values["scales"], np.float32)
        numbers = (int(values["frames"]), float(values["fps"]), int(values["terms"]))
        described = Description(*numbers, int(values["width"]), int(values["height"]), scales)
        if scales.shape != (described.terms,) or not (scales > 0).all():
            raise ValueError(f"{described.terms} terms, scales {scales}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file}: no description of motion data ({error}); make it with `rahf prepare motion`"
        ) from error
    return described


def open_clips(path: str | os.PathLike, split: str) -> store.RecordSource:
    """The clips of a split, by position. Raises DatasetError as `store.open_split`."""
    description(path)
    return store.open_split(path, split, MOTION)


def clip_counts(path: str | os.PathLike) -> dict[str, int]:
    """Number of clips of each split. Raises DatasetError if this is no prepared motion data."""
    description(path)
    return store.splits(path)


def clip(path: str | os.PathLike, place: str) -> MotionRecord:
    """One clip, named as "SPLIT:NUMBER", for example "test:0".

    Raises:
      DatasetError: no such clip.
    """
    split, _, number = place.partition(":")
    if not number.isascii() or not number.isdigit():
        raise DatasetError(f"clip {place!r}: expected SPLIT:NUMBER, for example test:0")
    source = open_clips(path, split)
    if int(number) >= len(source):
        raise DatasetError(f"{os.fspath(path)}: split {split!r} has clips 0 to {len(source) - 1}, found {number}")
    return source[int(number)]
