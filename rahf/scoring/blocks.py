"""Inputs of any kind → blocks: the units that are scored, written, retried and skipped.

A block describes where its records are, in plain values that any machine can read; `rahf.scoring.records` reads them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from rahf.core.errors import ScoreError
from rahf.scoring import files

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz")
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
      error: why the block cannot be read; "" otherwise.
    """

    number: int
    kind: str
    source: str
    start: int = 0
    first: int = 0
    count: int | None = None
    names: tuple[str, ...] = ()
    error: str = ""

    def to_json(self) -> str:
        """The block as text."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Block:
        """The block that `to_json` wrote."""
        fields = json.loads(text)
        return Block(**fields | {"names": tuple(fields["names"])})


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """All blocks of some inputs, and a hash that changes when the inputs do."""

    blocks: list[Block]
    digest: str


def plan(inputs: Sequence[str], size: int) -> BlockPlan:
    """Cuts inputs into blocks, in their order; decodes no picture.

    Args:
      inputs: JSONL files, parquet files, webdataset shards (.tar, .tar.gz, .tgz), folders of such shards, folders of
        pictures, or patterns of these; local paths or URLs.
      size: most records of a block of lines or of pictures. In parquet a row group is a block, in tar a shard.

    Raises:
      ScoreError: an input that does not exist, is of another kind, or holds nothing.
    """
    if size < 1:
        raise ScoreError(f"block size: expected at least 1, found {size}")
    digest = hashlib.sha256(str(size).encode())
    blocks: list[Block] = []
    for pattern in inputs:
        paths = files.expand(pattern)
        if not paths:
            raise ScoreError(f"{pattern}: nothing fits this pattern")
        for path in paths:
            for block in _blocks(files.absolute(path), size, digest):
                blocks.append(dataclasses.replace(block, number=len(blocks)))
    if not blocks:
        raise ScoreError(f"no records in {', '.join(inputs) or 'no inputs'}")
    # job.json stores the hash instead of a long plan. The hash leaves out the folder of the input, which may be moved.
    for block in blocks:
        digest.update(repr((block.kind, block.start, block.first, block.count, block.names)).encode())
    return BlockPlan(blocks, digest.hexdigest())


def _blocks(path: str, size: int, digest) -> Iterator[Block]:
    lower = path.lower()
    if files.is_folder(path):
        yield from _folder(path, size, digest)
    elif lower.endswith(".jsonl"):
        yield from _jsonl(path, size, digest)
    elif lower.endswith(".parquet"):
        yield from _parquet(path, digest)
    elif lower.endswith(TARS):
        digest.update(f"{files.size(path)}".encode())
        yield Block(0, "tar", path)
    else:
        files.size(path)  # raises if the file is missing, which says more than a message about its name
        raise ScoreError(f"{path}: expected .jsonl, .parquet, {', '.join(TARS)} or a folder")


def _folder(path: str, size: int, digest) -> Iterator[Block]:
    names = files.walk(path)
    shards = [name for name in names if name.lower().endswith((".parquet", *TARS))]
    pictures = tuple(name for name in names if name.lower().endswith(IMAGES))
    if shards and pictures:
        raise ScoreError(f"{path}: holds shards and pictures; give the shards by name, or a folder of pictures only")
    for shard in shards:
        yield from _blocks(files.join(path, shard), size, digest)
    for start in range(0, len(pictures), size):
        part = pictures[start : start + size]
        yield Block(0, "folder", path, first=start, count=len(part), names=part)
    if not shards and not pictures:
        raise ScoreError(f"{path}: a folder without pictures ({', '.join(IMAGES)}) and without shards")


def _jsonl(path: str, size: int, digest) -> Iterator[Block]:
    start, first, count = 0, 1, 0
    with files.open_binary(path) as file:
        for number, offset, line in lines(file):
            digest.update(b"" if line is None else line)
            if count == 0:
                start, first = offset, number
            count += 1
            if count == size:
                yield Block(0, "jsonl", path, start, first, count)
                count = 0
    if count:
        yield Block(0, "jsonl", path, start, first, count)


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


def _parquet(path: str, digest) -> Iterator[Block]:
    import pyarrow  # heavy, and only parquet needs it

    digest.update(f"{files.size(path)}".encode())
    try:
        with files.parquet_file(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # missing, no permission, no network
            raise
        yield Block(0, "parquet", path, error=f"not a readable parquet file ({one_line(error)})")
        return
    first = 0
    for group, count in enumerate(rows):
        yield Block(0, "parquet", path, start=group, first=first, count=count)
        first += count


def one_line(error: Any) -> str:
    """The message of another library's error as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
