"""A block → its records: picture and prompt, or why there is none. Nothing is decoded or unpacked here.

Archives are read as streams; no member is ever written to disk, so that its name cannot lead anywhere.
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

#: Largest encoded picture.
MAX_IMAGE = 100_000_000
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "path", "image_path", "file_name")
_PROMPT_COLUMNS = ("prompt", "caption", "text")
_EXTENSIONS = tuple(ending[1:] for ending in IMAGES)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a block does not say itself.

    Attributes:
      prompt: of every picture; None: each has its own.
      image_column, prompt_column, group_column: of parquet and JSONL; None: the first of the usual names.
    """

    prompt: str | None = None
    image_column: str | None = None
    prompt_column: str | None = None
    group_column: str | None = None


class Record(NamedTuple):
    """One picture to score."""

    row: int  # its number in the source: lines count from 1, all else from 0
    key: str  # path, name in the archive, or "row 17"
    image: bytes | str | None  # encoded, or where it is
    prompt: str | None
    group: str | None
    error: str | None  # why it cannot be scored


def records(block: Block, reading: Reading = Reading()) -> Iterator[Record]:
    """The records of a block, in order. A bad one has an error; the others go on.

    Raises:
      OSError: the source cannot be reached, which may be different at the next try.
      ScoreError: a column that does not exist.
    """
    if block.error:
        yield _bad(block.first, block.source, block.error)
        return
    read = {"jsonl": _jsonl, "folder": _folder, "parquet": _parquet, "tar": _tar}[block.kind]
    yield from read(block, reading)


def _bad(row: int, key: str, error: str) -> Record:
    return Record(row, key, None, None, None, error)


def _made(row: int, key: str, image: Any, prompt: Any, group: Any, missing: str = "prompt") -> Record:
    """A record of checked fields."""
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
    return Record(row, key, image, prompt, prompt if group is None else str(group), None)


def _jsonl(block: Block, reading: Reading) -> Iterator[Record]:
    folder = files.parent(block.source)
    with files.open_binary(block.source) as file:
        file.seek(block.start)
        for number, _, line in lines(file, block.first):
            if number >= block.first + block.count:
                return
            if line is None or line.strip():
                yield _from_line(number, line, folder, reading)


def _from_line(number: int, line: bytes | None, folder: str, reading: Reading) -> Record:
    key = f"line {number}"
    try:
        fields = parse(line)
    except ValueError as error:
        return _bad(number, key, str(error))
    image = _first(fields, reading.image_column, ("image",))
    if not isinstance(image, str) or not image:
        return _bad(number, key, "image: expected a path" + ("" if image is None else f", found {image!r:.60}"))
    if any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in image):
        return _bad(number, key, f"image: not a path: {image!r:.60}")
    prompt = reading.prompt or _first(fields, reading.prompt_column, ("prompt",))
    group = _first(fields, reading.group_column, ("group",))
    return _made(number, image, files.join(folder, image), prompt, group)


def parse(line: bytes | None) -> dict[str, Any]:
    """A line of JSONL. Raises ValueError saying what is wrong with it."""
    if line is None:
        raise ValueError(f"the line is longer than {MAX_TEXT // 1000} kB")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected an object with image and prompt, found {type(found).__name__}")
    return found


def _first(fields: dict[str, Any], asked: str | None, usual: tuple[str, ...]) -> Any:
    return next((fields[name] for name in ([asked] if asked else usual) if fields.get(name) is not None), None)


def _folder(block: Block, reading: Reading) -> Iterator[Record]:
    for row, name in enumerate(block.names, block.first):
        path = files.join(block.source, name)
        prompt, missing = reading.prompt, "prompt"
        if prompt is None:
            beside = posixpath.splitext(name)[0] + ".txt"
            missing = f"prompt: give one for all, or write it to {beside}"
            try:
                prompt = _text(files.read(files.join(block.source, beside), MAX_TEXT))
            except FileNotFoundError:
                pass
            except ValueError as error:
                missing = f"prompt: {beside}: {error}"
        yield _made(row, name, path, prompt, None, missing)


def _text(data: bytes) -> str:
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error


def _parquet(block: Block, reading: Reading) -> Iterator[Record]:
    import pyarrow

    folder, row = files.parent(block.source), block.first
    try:
        with files.parquet_file(block.source) as file:
            image, prompt, group = _columns(file.schema_arrow.names, block.source, reading)
            columns = [name for name in (image, prompt, group) if name]
            for batch in file.iter_batches(16, row_groups=[block.start], columns=columns):
                for fields in batch.to_pylist():
                    text = reading.prompt or fields.get(prompt)
                    yield _from_row(row, fields[image], text, fields.get(group), folder)
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        yield _bad(row, f"row {row}", f"the file is damaged from here on ({one_line(error)})")


def _columns(names: list[str], source: str, reading: Reading) -> tuple[str, str | None, str | None]:
    def find(asked: str | None, usual: tuple[str, ...], option: str, needed: bool) -> str | None:
        for name in [asked] if asked else usual:
            if name in names:
                return name
        if needed or asked:
            expected = asked or " or ".join(usual)
            raise ScoreError(f"{source}: no column {expected}; it has {', '.join(names)}. Give {option}")
        return None

    return (
        find(reading.image_column, _IMAGE_COLUMNS, "--image-column", True),
        find(reading.prompt_column, _PROMPT_COLUMNS, "--prompt-column or --prompt", reading.prompt is None),
        find(reading.group_column, ("group",), "--group-column", False),
    )


def _from_row(row: int, image: Any, prompt: Any, group: Any, folder: str) -> Record:
    key = f"row {row}"
    if isinstance(image, dict):  # as the `datasets` library stores images
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image:
        key, image = image, files.join(folder, image)
    elif not isinstance(image, bytes):
        return _bad(row, key, f"image: expected bytes or a path, found {type(image).__name__}")
    return _made(row, key, image, prompt, group)


def _tar(block: Block, reading: Reading) -> Iterator[Record]:
    """Webdataset: members that follow each other and share their name up to its first dot are one sample."""
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
                    if made := sample.record(row, reading):
                        yield made
                        row += 1
                    sample = _Sample(key)
                sample.add(ending.lower(), tar, member)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        # The sample at which it breaks off may lack a part: it is not scored.
        yield _bad(row, sample.key or block.source, f"the shard is damaged from here on ({one_line(error)})")
        return
    if made := sample.record(row, reading):
        yield made


class _Sample:
    """What of one sample has been read."""

    def __init__(self, key: str):
        self.key, self.image, self.error = key, None, None
        self.texts: dict[str, bytes] = {}

    def add(self, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Reads a member that is a picture or says something; others are skipped."""
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

    def record(self, row: int, reading: Reading) -> Record | None:
        """The sample as a record; None: there was nothing."""
        if self.error:
            return _bad(row, self.key, self.error)
        if self.image is None:
            return _bad(row, self.key, f"no picture ({', '.join(_EXTENSIONS)})") if self.texts else None
        try:
            fields = parse(self.texts["json"]) if "json" in self.texts else {}
            text = _text(self.texts["txt"]) if "txt" in self.texts else None
        except ValueError as error:
            return _bad(row, self.key, str(error))
        asked = _first(fields, reading.prompt_column, _PROMPT_COLUMNS)
        prompt = reading.prompt or (asked if reading.prompt_column else text or asked)
        group = _first(fields, reading.group_column, ("group",))
        return _made(row, self.key, self.image, prompt, group, "prompt: no .txt, and no prompt in .json")
