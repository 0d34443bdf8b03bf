"""The pictures of a folder, their prompts and their splits."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import NamedTuple

from data_pipelines.prepare.stored_images import SUFFIXES
from data_pipelines.richhf18k import captions as captions_lib
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular_text
from rahf.text import split_words

_MOST_BYTES = 1_000_000  # of a prompt


class Picture(NamedTuple):
    """A picture file with its prompt."""

    name: str  # path below the folder, with slashes
    prompt: str | None  # None: nobody said what it shows


class Pictures(NamedTuple):
    """The pictures of a folder, and one line for each prompt that cannot be read: its picture has none then."""

    pictures: list[Picture]
    problems: list[str]


def find(folder: str | os.PathLike, captions: str | os.PathLike | None = None) -> Pictures:
    """All pictures of a folder and of the folders in it, in the order of their names; links out of it are not followed.

    The prompt of ``a.jpg`` is the text of ``a.txt`` beside it, or its line in a file of captions.

    Args:
      folder: where the pictures are.
      captions: file of prompts by name or stem of the picture, see `data_pipelines.richhf18k.captions`; None:
        ``captions.jsonl`` (or .csv, .tsv, .parquet) in the folder, if there is one.

    Raises:
      DatasetError: no such folder, no picture in it, or a file of captions that is none. A bad row of it costs its row.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"--images {folder} {state}; expected a folder of pictures")
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and path.resolve().is_relative_to(root.resolve())
    )
    if not names:
        raise DatasetError(f"--images {folder}: no picture in it; expected {', '.join(SUFFIXES)}")
    if captions is None:
        captions = next((root / name for name in captions_lib.FILE_NAMES if (root / name).is_file()), None)
    by_name, problems = {}, []
    if captions is not None:
        wanted = {form for name in names for form in _forms(name)}
        by_name, problems = captions_lib.load(captions, wanted)
    return Pictures([Picture(name, _prompt(root, name, by_name, problems)) for name in names], problems)


def _forms(name: str) -> tuple[str, ...]:
    """What a file of captions may call a picture: its path, or its name with or without suffix."""
    path = pathlib.PurePosixPath(name)
    return name, path.name, path.stem


def _prompt(root: pathlib.Path, name: str, captions: dict[str, str], problems: list[str]) -> str | None:
    beside, prompt = (root / name).with_suffix(".txt"), None
    try:
        if os.path.lexists(beside):
            if (size := beside.stat().st_size) > _MOST_BYTES:
                raise ValueError(f"{size} bytes, expected at most {_MOST_BYTES}")
            prompt = read_regular_text(beside, "utf-8-sig")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        problems.append(f"{beside}: not a prompt in UTF-8 ({error})")
    if prompt is None:
        prompt = next((captions[form] for form in _forms(name) if form in captions), None)
    prompt = " ".join((prompt or "").split())
    return prompt if split_words(prompt) else None


def split_of(name: str, dev: float, test: float) -> str:
    """The split of a picture, by a hash of its name: all its copies are in one split."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "dev" if place < test + dev else "train"
