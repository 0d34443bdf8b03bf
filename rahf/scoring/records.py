"""A block → its records: encoded picture and prompt, or the reason why a record has none. No picture is decoded here.

Archives are read as streams. No member is written to disk, so the name of a member cannot lead out of a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from rahf.core.errors import ScoreError
from rahf.scoring import files
from rahf.scoring.blocks import IMAGES, MAX_TEXT, Block, lines, one_line

#: Largest encoded picture in bytes.
MAX_IMAGE = 100_000_000
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "path", "image_path", "file_name")
_PROMPT_COLUMNS = ("prompt", "caption", "text")
_EXTENSIONS = tuple(ending[1:] for ending in IMAGES)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How the records of all blocks are read.

    Attributes:
      prompt: of every picture; None: each picture has its own.
      image_column, prompt_column, group_column: names of columns of parquet and of fields of JSONL; None: the first
        of the usual names.
    """

    prompt: str | None = None
    image_column: str | None = None
    prompt_column: str | None = None
    group_column: str | None = None


class ScoringRecord(NamedTuple):
    """One picture to score."""

    row: int  # its number in the source: lines count from 1, all else from 0
    key: str  # path, name in the archive, or "row 17"
    image: bytes | str | None  # encoded, or its path or URL
    prompt: str | None
    group: str | None
    error: str | None  # why it cannot be scored


def records(block: Block, options: ReadOptions = ReadOptions()) -> Iterator[ScoringRecord]:
    """The records of a block, in order. A record that cannot be read has an error; the others follow all the same.

    Raises:
      OSError: the source cannot be reached; the next attempt may succeed.
      ScoreError: a column that does not exist.
    """
    if block.error:
        yield _bad(block.first, block.source, block.error)
        return
    reader = {"jsonl": _jsonl, "folder": _folder, "parquet": _parquet, "tar": _tar}[block.kind]
    yield from reader(block, options)


def _bad(row: int, key: str, error: str) -> ScoringRecord:
    return ScoringRecord(row, key, None, None, None, error)


def _checked(row: int, key: str, image: Any, prompt: Any, group: Any, missing: str = "prompt") -> ScoringRecord:
    """A record of fields that are checked; `missing` says what is wrong if there is no prompt."""
    error = None
    if prompt is None:
        error = f"no {missing}"
    elif not isinstance(prompt, str):
        error = f"prompt: expected text, found {type(prompt).__name__}"
    elif not prompt.strip():
        error = "the prompt is empty"
    elif not prompt.isprintable() and any(0xD800 <= ord(c) <= 0xDFFF for c in prompt):
        error = "the prompt is not valid Unicode"
    elif group is not None and (isinstance(group, bool) or not isinstance(group, (str, int))):
        error = f"group: expected text or a whole number, found {type(group).__name__}"
    if error:
        return _bad(row, key, error)
    return ScoringRecord(row, key, image, prompt, prompt if group is None else str(group), None)


def _jsonl(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    folder = files.parent(block.source)
    with files.open_binary(block.source) as file:
        file.seek(block.start)
        for number, _, line in lines(file, block.first):
            if number >= block.first + block.count:
                return
            if line is None or line.strip():
                yield _from_line(number, line, folder, options)


def _from_line(number: int, line: bytes | None, folder: str, options: ReadOptions) -> ScoringRecord:
    key = f"line {number}"
    try:
        fields = parse(line)
    except ValueError as error:
        return _bad(number, key, str(error))
    image = _first(fields, options.image_column, ("image",))
    if not isinstance(image, str) or not image:
        return _bad(number, key, "image: expected a path" + ("" if image is None else f", found {image!r:.60}"))
    if any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in image):
        return _bad(number, key, f"image: not a path: {image!r:.60}")
    prompt = options.prompt or _first(fields, options.prompt_column, ("prompt",))
    group = _first(fields, options.group_column, ("group",))
    return _checked(number, image, files.join(folder, image), prompt, group)


def parse(line: bytes | None) -> dict[str, Any]:
    """A line of JSONL. Raises ValueError saying what is wrong with it."""
    if line is None:
        raise ValueError(f"the line is longer than {MAX_TEXT // 1000} kB")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({one_line(error)})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with image and prompt, found {type(fields).__name__}")
    return fields


def _first(fields: dict[str, Any], column: str | None, usual: tuple[str, ...]) -> Any:
    """The value of `column`, or of the first of the usual names that has one; None: there is no value."""
    return next((fields[name] for name in ([column] if column else usual) if fields.get(name) is not None), None)


def _folder(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    for row, name in enumerate(block.names, block.first):
        path = files.join(block.source, name)
        prompt, missing = options.prompt, "prompt"
        if prompt is None:
            beside = posixpath.splitext(name)[0] + ".txt"
            missing = f"prompt: give one for all, or write it to {beside}"
            try:
                prompt = _text(files.read(files.join(block.source, beside), MAX_TEXT))
            except FileNotFoundError:
                pass
            except ValueError as error:
                missing = f"prompt: {beside}: {error}"
        yield _checked(row, name, path, prompt, None, missing)


def _text(data: bytes) -> str:
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error


def _parquet(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    import pyarrow  # heavy, and only parquet needs it

    folder, row = files.parent(block.source), block.first
    try:
        with files.parquet_file(block.source) as file:
            image, prompt, group = _columns(file.schema_arrow.names, block.source, options)
            columns = [name for name in (image, prompt, group) if name]
            for batch in file.iter_batches(16, row_groups=[block.start], columns=columns):
                for fields in batch.to_pylist():
                    text = options.prompt or fields.get(prompt)
                    yield _from_row(row, fields[image], text, fields.get(group), folder)
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        yield _bad(row, f"row {row}", f"the file is damaged from here on ({one_line(error)})")


def _columns(names: list[str], source: str, options: ReadOptions) -> tuple[str, str | None, str | None]:
    def find(column: str | None, usual: tuple[str, ...], option: str, required: bool) -> str | None:
        for name in [column] if column else usual:
            if name in names:
                return name
        if required or column:
            expected = column or " or ".join(usual)
            raise ScoreError(f"{source}: no column {expected}; it has {', '.join(names)}. Give {option}")
        return None

    return (
        find(options.image_column, _IMAGE_COLUMNS, "--image-column", True),
        find(options.prompt_column, _PROMPT_COLUMNS, "--prompt-column or --prompt", options.prompt is None),
        find(options.group_column, ("group",), "--group-column", False),
    )


def _from_row(row: int, image: Any, prompt: Any, group: Any, folder: str) -> ScoringRecord:
    key = f"row {row}"
    if isinstance(image, dict):  # the `datasets` library stores images so
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image:
        key, image = image, files.join(folder, image)
    elif not isinstance(image, bytes):
        return _bad(row, key, f"image: expected bytes or a path, found {type(image).__name__}")
    return _checked(row, key, image, prompt, group)


def _tar(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    """Webdataset: consecutive members whose names are equal up to the first dot are one sample."""
    row, sample = 0, _Sample("")
    try:
        with files.open_binary(block.source) as file, contextlib.closing(tarfile.open(fileobj=file, mode="r|*")) as tar:
            for member in tar:
                if not member.isreg():
                    continue
                folder, name = posixpath.split(member.name)
                stem, _, ending = name.partition(".")
                key = posixpath.join(folder, stem)
                if key != sample.key:
                    if record := sample.record(row, options):
                        yield record
                        row += 1
                    sample = _Sample(key)
                sample.add(ending.lower(), tar, member)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        # The last sample may lack a part, so it is not scored.
        yield _bad(row, sample.key or block.source, f"the shard is damaged from here on ({one_line(error)})")
        return
    if record := sample.record(row, options):
        yield record


class _Sample:
    """The members of one sample that have been read so far."""

    def __init__(self, key: str):
        self.key, self.image, self.error = key, None, None
        self.texts: dict[str, bytes] = {}

    def add(self, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Reads a member that holds a picture, a prompt or fields; skips any other."""
        picture = ending in _EXTENSIONS
        if not picture and ending not in ("txt", "json"):
            return
        most = MAX_IMAGE if picture else MAX_TEXT
        if member.size > most:
            self.error = f"{ending}: more than {most / 1e6:g} MB"
            return
        data = tar.extractfile(member).read()
        if len(data) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        if picture:
            self.image = data
        else:
            self.texts[ending] = data

    def record(self, row: int, options: ReadOptions) -> ScoringRecord | None:
        """The sample as a record; None: no member was of any use."""
        if self.error:
            return _bad(row, self.key, self.error)
        if self.image is None:
            return _bad(row, self.key, f"no picture ({', '.join(_EXTENSIONS)})") if self.texts else None
        try:
            fields = parse(self.texts["json"]) if "json" in self.texts else {}
            text = _text(self.texts["txt"]) if "txt" in self.texts else None
        except ValueError as error:
            return _bad(row, self.key, str(error))
        from_json = _first(fields, options.prompt_column, _PROMPT_COLUMNS)
        prompt = options.prompt or (from_json if options.prompt_column else text or from_json)
        group = _first(fields, options.group_column, ("group",))
        return _checked(row, self.key, self.image, prompt, group, "prompt: no .txt, and no prompt in .json")
