"""The fields of one record, checked: what every kind of input has in common."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from rahf.core import json_text
from rahf.scoring.blocks import MAX_TEXT, one_line

PROMPT_COLUMNS = ("prompt", "caption", "text")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How the records of all blocks are read.

    Attributes:
      prompt: of every picture; None: each picture has its own.
      image_column, prompt_column, group_column: names of columns of parquet and of fields of JSONL; None: the first
        of the usual names.
      images_from: folders and URLs below which the pictures may lie that lines and rows name, beside the input's own
        folder, or its own protocol and host.
    """

    prompt: str | None = None
    image_column: str | None = None
    prompt_column: str | None = None
    group_column: str | None = None
    images_from: tuple[str, ...] = ()


class ScoringRecord(NamedTuple):
    """One picture to score."""

    row: int  # its number in the source: lines count from 1, all else from 0
    key: str  # path, name in the archive, or "row 17"
    image: bytes | str | None  # encoded, or its path or URL
    prompt: str | None
    group: str | None  # its own, or the prompt
    error: str | None  # why it cannot be scored
    own_group: bool = False  # whether the group is its own


def refused(row: int, key: str, error: str) -> ScoringRecord:
    """A record that cannot be scored, and why."""
    return ScoringRecord(row, key, None, None, None, error)


def checked(row: int, key: str, image: Any, prompt: Any, group: Any, missing: str = "prompt") -> ScoringRecord:
    """A record of fields that are checked; `missing` says what is wrong if there is no prompt."""
    error = None
    if prompt is None:
        error = f"no {missing}"
    elif not isinstance(prompt, str):
        error = f"prompt: expected text, found {type(prompt).__name__}"
    elif not prompt.strip():
        error = "the prompt is empty"
    elif not _is_unicode(prompt):
        error = "the prompt is not valid Unicode"
    elif group is not None and (isinstance(group, bool) or not isinstance(group, (str, int))):
        error = f"group: expected text or a whole number, found {type(group).__name__}"
    if error:
        return refused(row, key, error)
    try:
        own = None if group is None else str(group)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return refused(row, key, "group: a number of too many digits")
    return ScoringRecord(row, key, image, prompt, prompt if own is None else own, None, own is not None)


def _is_unicode(text: str) -> bool:
    return text.isprintable() or not any(0xD800 <= ord(c) <= 0xDFFF for c in text)


def parse(line: bytes | None) -> dict[str, Any]:
    """A line of JSONL. Raises ValueError saying what is wrong with it."""
    if line is None:
        raise ValueError(f"the line is longer than {MAX_TEXT // 1000} kB")
    try:
        fields = json_text.parse(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({one_line(error)})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with image and prompt, found {type(fields).__name__}")
    return fields


def first(fields: dict[str, Any], column: str | None, usual: tuple[str, ...]) -> Any:
    """The value of `column`, or of the first of the usual names that has one; None: there is no value."""
    return next((fields[name] for name in ([column] if column else usual) if fields.get(name) is not None), None)


def prompt_text(data: bytes) -> str:
    """The prompt in a text file, on one line. Raises ValueError if it is not UTF-8."""
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
