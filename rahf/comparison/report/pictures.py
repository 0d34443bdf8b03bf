"""Folders of pictures with prompts, as examples without labels: a source of records like a split of a dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.store.records import Record
from rahf import images
from rahf.core import names
from rahf.core.batch import SCORES
from rahf.core.errors import DataError
from rahf.scoring import files
from rahf.scoring.blocks import MAX_IMAGE
from rahf.scoring.fields import ReadOptions
from rahf.scoring.plan import plan
from rahf.scoring.records import records
from rahf.text.words import same_prompt, split_words


class PictureRecord(NamedTuple):
    """One picture that can be shown and scored."""

    key: str  # its name
    prompt: str
    group: str  # what pairs it with pictures of other folders: its prompt, or its own group
    image: bytes | str  # encoded, or its path or URL


class Pictures(NamedTuple):
    """The pictures of one folder, and how many cannot be used."""

    place: str
    records: list[PictureRecord]
    refused: list[str]  # each with its reason


def read_pictures(place: str, images_from: Sequence[str] = ()) -> Pictures:
    """Lists the pictures of a folder with a text file beside each, or of a JSONL file with `image` and `prompt`.

    Every picture is decoded once, so that a damaged one is known before any work.

    Args:
      place: anything that `rahf score` takes as input.
      images_from: further folders in which the pictures of a JSONL file may lie.

    Raises:
      ScoreError: no such place. DataError: no picture that can be used.
    """
    usable: list[PictureRecord] = []
    refused: list[str] = []
    options = ReadOptions(images_from=tuple(images_from))
    for block in plan([place], 1024, options).blocks:
        for record in records(block, options):
            error = record.error
            if error is None:
                try:
                    images.load_rgb(_encoded(record.image), what=record.key)
                except (ValueError, OSError) as problem:  # ImageError is a ValueError
                    error = str(problem)
            if error is None:
                usable.append(
                    PictureRecord(record.key, record.prompt, same_prompt(record.group or record.prompt), record.image)
                )
            else:
                reason = error if error.startswith(f"{record.key}: ") else f"{record.key}: {error}"
                refused.append(names.one_line(reason, 300))
    if not usable:
        why = f"; the first of {len(refused)} refused: {refused[0]}" if refused else ""
        raise DataError(f"{place}: no picture that can be used{why}")
    return Pictures(place, usable, refused)


def _encoded(image: bytes | str | None) -> bytes:
    return image if isinstance(image, bytes) else files.read(image, MAX_IMAGE)


class PictureSource:
    """Pictures as records without labels, read when they are asked for. Goes into `Labels` as a split does."""

    def __init__(self, pictures: Sequence[PictureRecord]):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Record:
        one = self.pictures[index]
        nothing = np.full(len(SCORES), math.nan, np.float32)
        words = tuple(split_words(one.prompt))
        return Record(one.key, one.prompt, words, None, _encoded(one.image), None, None, nothing)
