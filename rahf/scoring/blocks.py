"""Blocks: the units that are scored, written, retried and skipped.

A block describes where its records are, in plain values that any machine can read; `rahf.scoring.records` reads them.
`rahf.scoring.plan` cuts inputs into blocks.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz")
#: Largest encoded picture in bytes.
MAX_IMAGE = 100_000_000
#: Longest line of a JSONL file, and longest text file of a prompt, in bytes.
MAX_TEXT = 1_000_000


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of the input.

    Attributes:
      number: position among all blocks; part of the name of its output.
      kind: "jsonl", "folder", "parquet" or "tar".
      source: absolute path or URL of the file or folder.
      start: jsonl: byte at which the block begins; parquet: the row group; else 0.
      first: number of the first record in the source: lines count from 1, all else from 0.
      count: number of lines, files or rows; None: not known before reading (tar).
      names: folder: paths of the pictures, relative to it.
      refused: folder: further files, relative to it, each with the reason why it is not scored.
      error: why the block cannot be read; "" otherwise.
    """

    number: int
    kind: str
    source: str
    start: int = 0
    first: int = 0
    count: int | None = None
    names: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    error: str = ""

    def to_json(self) -> str:
        """The block as text."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Block:
        """The block that `to_json` wrote."""
        fields = json.loads(text)
        refused = tuple((name, reason) for name, reason in fields["refused"])
        return Block(**fields | {"names": tuple(fields["names"]), "refused": refused})


def lines(file: BinaryIO, number: int = 1, offset: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """Reads the lines of a file from its present position.

    A line longer than `MAX_TEXT` is read in pieces, so that no file can fill the memory.

    Yields:
      Number and offset of a line, and its content; None instead of the content of a line longer than `MAX_TEXT`.
    """
    while line := file.readline(MAX_TEXT + 1):
        length, complete = len(line), len(line) <= MAX_TEXT
        piece = line
        while not piece.endswith(b"\n") and (piece := file.readline(MAX_TEXT)):
            length, complete = length + len(piece), False
        yield number, offset, line if complete else None
        number, offset = number + 1, offset + length


def prompt_file(picture: str) -> str:
    """Name of the text file that holds the prompt of a picture in a folder."""
    return posixpath.splitext(picture)[0] + ".txt"


def one_line(error: Any) -> str:
    """The message of another library's error as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
