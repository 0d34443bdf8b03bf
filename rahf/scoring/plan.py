"""Inputs of any kind → blocks, and a digest that changes when the inputs do. Decodes no picture."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence

from rahf.core.errors import ScoreError
from rahf.scoring import files, records
from rahf.scoring.blocks import IMAGES, TARS, Block, lines, one_line, prompt_file
from rahf.scoring.fields import ReadOptions

_SHARDS = (".parquet", *TARS)
_SAMPLE = 1 << 16  # bytes at both ends of a shard that go into the digest


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """All blocks of some inputs, and a hash that changes when the inputs do."""

    blocks: list[Block]
    digest: str


def plan(inputs: Sequence[str], size: int, options: ReadOptions = ReadOptions()) -> BlockPlan:
    """Cuts inputs into blocks, in their order.

    The digest covers the lines of JSONL files, and name, size and time of change of every other file: shards, pictures,
    prompts, and the local pictures that lines name; of shards also their first and last 64 kB. What a URL in a line
    leads to is not looked at.

    Args:
      inputs: JSONL files, parquet files, webdataset shards (.tar, .tar.gz, .tgz), folders of such shards, folders of
        pictures, or patterns of these; local paths or URLs.
      size: most records of a block of lines or of pictures. In parquet a row group is a block, in tar a shard.
      options: how the records will be read.

    Raises:
      ScoreError: an input does not exist, is of another kind, or holds nothing; or no parquet file has the columns.
    """
    if size < 1:
        raise ScoreError(f"block size: expected at least 1, found {size}")
    planner = _Planner(size, options)
    blocks: list[Block] = []
    for pattern in inputs:
        paths = files.expand(files.local_path(pattern))
        if not paths:
            raise ScoreError(f"{pattern}: nothing fits this pattern")
        for path in paths:
            for block in planner.blocks(files.absolute(path)):
                blocks.append(dataclasses.replace(block, number=len(blocks)))
    if not blocks:
        raise ScoreError(f"no records in {', '.join(inputs) or 'no inputs'}")
    planner.check_columns()
    # job.json stores the hash instead of a long plan. The hash leaves out the folder of the input, which may be moved.
    for block in blocks:
        planner.note((block.kind, block.start, block.first, block.count, block.names, block.refused))
    return BlockPlan(blocks, planner.digest.hexdigest())


def check_out(inputs: Sequence[str], out: str) -> None:
    """Refuses a folder of scores that is, or that lies in, an input: the next call would read them as pictures.

    Raises:
      ScoreError: names both.
    """
    written = [files.join(place, name) for place in _spellings(out) for name in ("part-00000.parquet", "refused.jsonl")]
    for pattern in inputs:
        spellings = _spellings(files.absolute(pattern))
        if any(_covers(one, path) for one in spellings for path in written):
            raise ScoreError(
                f"--out {out} lies in the input {pattern}: the next call would take the scores for input; give a "
                "folder outside of it"
            )


def _spellings(path: str) -> set[str]:
    """A path as it is, and with its links followed."""
    return {path} if files.is_url(path) else {os.path.abspath(path), os.path.realpath(path)}


def _covers(pattern: str, path: str) -> bool:
    """Whether a path, or a folder that it is in, fits a pattern."""
    expected, found = pattern.rstrip("/").split("/"), path.rstrip("/").split("/")
    return len(expected) <= len(found) and all(one == two or files.fits(two, one) for one, two in zip(expected, found))


class _Planner:
    """The digest so far, and what is wrong with the columns of parquet files."""

    def __init__(self, size: int, options: ReadOptions):
        self.size, self.options = size, options
        self.digest = hashlib.sha256(str(size).encode())
        self._columns: list[ScoreError | None] = []

    def note(self, *values: object) -> None:
        """Adds values to the digest."""
        self.digest.update(repr(values).encode("utf-8", "backslashreplace"))

    def check_columns(self) -> None:
        """Raises ScoreError if every parquet file lacks a column. Where only some do, their rows are refused."""
        if self._columns and all(self._columns):
            raise self._columns[0]

    def blocks(self, path: str) -> Iterator[Block]:
        """The blocks of one input."""
        lower = path.lower()
        if files.is_folder(path):
            yield from self._folder(path)
        elif lower.endswith(".jsonl"):
            yield from self._jsonl(path)
        elif lower.endswith(".parquet"):
            yield from self._parquet(path)
        elif lower.endswith(TARS):
            self._note_shard(path)
            yield Block(0, "tar", path)
        else:
            files.size(path)  # raises if the file is missing, which says more than a message about its name
            raise ScoreError(f"{path}: expected .jsonl, .parquet, {', '.join(TARS)} or a folder")

    def _folder(self, path: str) -> Iterator[Block]:
        entries = files.walk(path)
        shown = [entry for entry in entries if not _is_hidden(entry.name) and not entry.error]
        shards = [entry.name for entry in shown if entry.name.lower().endswith(_SHARDS)]
        pictures = tuple(entry.name for entry in shown if entry.name.lower().endswith(IMAGES))
        if shards and pictures:
            raise ScoreError(
                f"{path}: holds shards and pictures; give the shards by name, or a folder of pictures only"
            )
        if not shards and not pictures:
            raise ScoreError(f"{path}: a folder without pictures ({', '.join(IMAGES)}) and without shards")
        for shard in shards:
            yield from self.blocks(files.join(path, shard))
        if pictures:
            self.note([(entry.name, entry.stamp) for entry in entries])
        for start in range(0, len(pictures), self.size):
            part = pictures[start : start + self.size]
            yield Block(0, "folder", path, first=start, count=len(part), names=part)
        prompts = {prompt_file(name) for name in pictures}
        kind = "shard" if shards else "picture"
        refused = [(entry.name, reason) for entry in entries if (reason := _why_refused(entry, kind, prompts))]
        for start in range(0, len(refused), self.size):
            part = tuple(refused[start : start + self.size])
            yield Block(0, "folder", path, first=len(pictures) + start, count=len(part), refused=part)

    def _jsonl(self, path: str) -> Iterator[Block]:
        start, first, count = 0, 1, 0
        folder = files.parent(path)
        with files.open_binary(path) as file:
            for number, offset, line in lines(file):
                self.digest.update(b"" if line is None else line)
                if line is not None and line.strip():
                    self._note_picture(records.record_of_line(number, line, folder, self.options).image)
                if count == 0:
                    start, first = offset, number
                count += 1
                if count == self.size:
                    yield Block(0, "jsonl", path, start, first, count)
                    count = 0
        if count:
            yield Block(0, "jsonl", path, start, first, count)

    def _parquet(self, path: str) -> Iterator[Block]:
        import pyarrow  # heavy, and only parquet needs it

        self._note_shard(path)
        try:
            with files.parquet_file(path) as file:
                rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
                self._note_columns(file, path)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # missing, no permission, no network
                raise
            yield Block(0, "parquet", path, error=f"not a readable parquet file ({one_line(error)})")
            return
        first = 0
        for group, count in enumerate(rows):
            yield Block(0, "parquet", path, start=group, first=first, count=count)
            first += count

    def _note_columns(self, file, path: str) -> None:
        """Checks the columns, and notes the pictures of a column of paths."""
        try:
            image, _, _ = records.columns_of(file.schema_arrow.names, path, self.options)
        except ScoreError as error:
            self._columns.append(error)
            return
        self._columns.append(None)
        if str(file.schema_arrow.field(image).type) in ("string", "large_string"):
            for batch in file.iter_batches(4096, columns=[image]):
                for name in batch.column(0).cast("binary"):  # text that is not UTF-8 is refused later
                    name = (name.as_py() or b"").decode("utf-8", "replace")
                    self._note_picture(files.join(files.parent(path), name))

    def _note_picture(self, path: str | bytes | None) -> None:
        if isinstance(path, str) and not files.is_url(path):
            try:
                self.note(files.stamp(path))
            except (OSError, ValueError) as error:
                self.note(type(error).__name__)

    def _note_shard(self, path: str) -> None:
        self.note(files.stamp(path))
        if not files.is_url(path):
            with files.open_binary(path) as file:
                self.digest.update(file.read(_SAMPLE))
                file.seek(max(0, files.size(path) - _SAMPLE))
                self.digest.update(file.read(_SAMPLE))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _why_refused(entry: files.FolderEntry, kind: str, prompts: set[str]) -> str | None:
    """Why a file of a folder is not scored; None for one that is, for a prompt, and for what the system keeps there."""
    name = entry.name
    ending = {"picture": IMAGES, "shard": _SHARDS}[kind]
    fits = name.lower().endswith(ending)
    if _is_hidden(name):
        if not fits:
            return None
        if posixpath.basename(name).startswith("._"):
            return f"not a {kind}: metadata that macOS keeps beside a file"
        return "a hidden file; rename it to score it"
    if name in prompts:
        return None
    if fits or entry.error:
        return entry.error or None
    return (
        f"no picture beside it ({', '.join(IMAGES)})"
        if name.endswith(".txt")
        else f"not a {kind} ({', '.join(ending)})"
    )
