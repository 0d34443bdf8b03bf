"""Reads a feedback file line by line: uid, picture and prompt of a line, and its other fields as parsed JSON."""

from __future__ import annotations

import json
import pathlib
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.splits import SPLITS
from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import check_not_lfs_pointer

#: Fields of a line. Others are counted as unknown. The last four are notes of `rahf annotate`, which are not read.
FIELDS = (
    "uid", "image", "prompt", "split", "width", "height", "annotators",
    "scores", "word_labels", "implausibility", "misalignment", "raters", "adjudicated", "explanation",
    "premarks",
)  # fmt: skip
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class FeedbackLine(NamedTuple):
    """One line that names a picture and a prompt."""

    uid: str  # the field, or the path of the picture
    image: str | None  # relative path; None: the file is named after the uid
    prompt: str
    split: str | None  # the field
    tree: Mapping[str, Any]  # all fields


def open_file(path: pathlib.Path) -> BinaryIO:
    """Opens a feedback file.

    Raises:
      DatasetError: no such file, an empty one, or a Git-LFS pointer.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DatasetError(f"--annotations {path} {state}; expected a JSONL file, a line per picture")
    if not path.stat().st_size:
        raise DatasetError(f"--annotations {path} is empty; expected a line per picture")
    check_not_lfs_pointer(path)
    return open(path, "rb")


def read(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), byte offset and bytes of every line that is not blank."""
    offset = 0
    for number, raw in enumerate(file, 1):
        if raw.removeprefix(_BYTE_ORDER_MARK).strip():
            yield number, offset, raw
        offset += len(raw)


def parse(raw: bytes) -> FeedbackLine:
    """Parses a line, and checks the fields that identify it.

    Raises:
      Refused: not a JSON object, no prompt, no picture, or an unknown split.
    """
    tree = _object(raw)
    uid, image, prompt, split = tree.get("uid"), tree.get("image"), tree.get("prompt"), tree.get("split")
    if isinstance(uid, int) and not isinstance(uid, bool):
        uid = str(uid)
    for name, value in (("uid", uid), ("image", image), ("prompt", prompt)):
        if value is not None:
            check_text(name, value)
    if not prompt:
        raise Refused("missing prompt", "no field 'prompt', or an empty one")
    if not uid and not image:
        raise Refused("missing field", f"neither 'image' nor 'uid', so no picture can be found; it has {_names(tree)}")
    if split is not None and split not in SPLITS:
        raise Refused("malformed", f"split {split!r:.80}, expected {', '.join(SPLITS)}, or no such field")
    image = posixpath.normpath(image) if image else None  # "./a.png" and "a.png" are one picture
    # A file that was copied from macOS has its name in another Unicode form than most texts.
    return FeedbackLine(unicodedata.normalize("NFC", uid or image), image, prompt, split, tree)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        tree = json_text.parse(raw.removeprefix(_BYTE_ORDER_MARK).decode().rstrip())
    except json.JSONDecodeError as error:
        raise Refused("malformed", f"not JSON: {error.msg} at character {error.pos + 1}: {error.doc!r:.60}") from error
    except ValueError as error:  # not UTF-8, a number of thousands of digits, deeply nested
        raise Refused("malformed", f"not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Refused("malformed", f"expected an object in braces, found a {type(tree).__name__}")
    return tree


def check_text(name: str, value: Any) -> None:
    """Raises Refused unless a field is text that can be stored and can be part of a path."""
    if not isinstance(value, str):
        raise Refused("malformed", f"{name} is {value!r:.80}, expected text")
    if name == "prompt" and not value.strip():
        raise Refused("missing prompt", "no field 'prompt', or an empty one")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused("malformed", f"{name} holds half of a character ({error.reason})") from error
    if "\0" in value:
        raise Refused("malformed", f"{name} holds a zero byte")


def _names(tree: Mapping[str, Any]) -> str:
    return ", ".join(sorted(tree))[:200] or "no field at all"
