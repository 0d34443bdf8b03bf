"""A block → its records: encoded picture and prompt, or the reason why a record has none. Decodes no picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rahf.core.errors import ScoreError
from rahf.scoring import files
from rahf.scoring.blocks import MAX_TEXT, Block, lines, one_line, prompt_file
from rahf.scoring.fields import PROMPT_COLUMNS, ReadOptions, ScoringRecord, checked, first, parse, prompt_text, refused
from rahf.scoring.webdataset import records_of_shard

_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "path", "image_path", "file_name")


def records(block: Block, options: ReadOptions = ReadOptions()) -> Iterator[ScoringRecord]:
    """The records of a block, in order. A record that cannot be read has an error; the others follow all the same.

    Raises:
      OSError: the source cannot be reached; the next attempt may succeed.
    """
    if block.error:
        yield refused(block.first, block.source, block.error)
        return
    reader = {"jsonl": _jsonl, "folder": _folder, "parquet": _parquet, "tar": records_of_shard}[block.kind]
    yield from reader(block, options)


def _jsonl(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    folder = files.parent(block.source)
    with files.open_binary(block.source) as file:
        file.seek(block.start)
        for number, _, line in lines(file, block.first):
            if number >= block.first + block.count:
                return
            if line is None or line.strip():
                yield record_of_line(number, line, folder, options)


def record_of_line(number: int, line: bytes | None, folder: str, options: ReadOptions) -> ScoringRecord:
    """The record of a line of JSONL.

    Args:
      number: of the line.
      line: its bytes; None: it is too long.
      folder: of the file.
      options: names of fields, and where pictures may lie.
    """
    key = f"line {number}"
    try:
        fields = parse(line)
    except ValueError as error:
        return refused(number, key, str(error))
    image = first(fields, options.image_column, ("image",))
    if not isinstance(image, str) or not image:
        return refused(number, key, "image: expected a path" + ("" if image is None else f", found {image!r:.60}"))
    if any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in image):
        return refused(number, key, f"image: not a path: {image!r:.60}")
    try:
        path = files.reachable(folder, image, options.images_from)
    except (ValueError, OSError) as error:
        return refused(number, image, f"image: {error}")
    prompt = options.prompt or first(fields, options.prompt_column, ("prompt",))
    group = first(fields, options.group_column, ("group",))
    return checked(number, image, path, prompt, group)


def _folder(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    for row, name in enumerate(block.names, block.first):
        path = files.join(block.source, name)
        prompt, missing = options.prompt, "prompt"
        if prompt is None:
            prompt, missing = _prompt_beside(block.source, prompt_file(name))
        yield checked(row, name, path, prompt, None, missing)
    for row, (name, reason) in enumerate(block.refused, block.first):
        yield refused(row, name, reason)


def _prompt_beside(folder: str, name: str) -> tuple[str | None, str]:
    """The prompt in a text file; or None, and what is missing.

    Raises:
      OSError: the file lies behind a URL and cannot be fetched now.
    """
    try:
        return prompt_text(files.read(files.join(folder, name), MAX_TEXT)), ""
    except FileNotFoundError:
        return None, f"prompt: give one for all, or write it to {name}"
    except ValueError as error:
        return None, f"prompt: {name}: {error}"
    except OSError as error:
        if files.is_url(folder):
            raise
        return None, f"prompt: {name}: {error.strerror or error}"


def _parquet(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    import pyarrow  # heavy, and only parquet needs it

    row = block.first
    try:
        with files.parquet_file(block.source) as file:
            image, prompt, group = columns_of(file.schema_arrow.names, block.source, options)
            columns = [name for name in (image, prompt, group) if name]
            for batch in file.iter_batches(16, row_groups=[block.start], columns=columns):
                for number in range(batch.num_rows):
                    yield _record_of_row(row, {name: batch.column(name)[number] for name in columns}, block, options)
                    row += 1
    except ScoreError as error:  # another shard has the columns: this one does not end the job
        for number in range(block.first, block.first + (block.count or 1)):
            yield refused(number, f"row {number}", str(error))
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        yield refused(row, f"row {row}", f"the file is damaged from here on ({one_line(error)})")


def columns_of(names: list[str], source: str, options: ReadOptions) -> tuple[str, str | None, str | None]:
    """Names of the columns of pictures, prompts and groups of a parquet file. Raises ScoreError: one is missing."""

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
        find(options.prompt_column, PROMPT_COLUMNS, "--prompt-column or --prompt", options.prompt is None),
        find(options.group_column, ("group",), "--group-column", False),
    )


def _record_of_row(row: int, scalars: dict[str, Any], block: Block, options: ReadOptions) -> ScoringRecord:
    """The record of a row of parquet, from the cells of its columns."""
    key = f"row {row}"
    try:
        values = {name: scalar.as_py() for name, scalar in scalars.items()}
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a time that Python does not know
        return refused(row, key, f"{', '.join(scalars)}: {one_line(error)}")
    image, prompt, group = columns_of(list(scalars), block.source, options)
    content = values[image]
    if isinstance(content, dict):  # the `datasets` library stores images so
        content = content.get("bytes") or content.get("path")
    if isinstance(content, str) and content:
        try:
            key, content = content, files.reachable(files.parent(block.source), content, options.images_from)
        except (ValueError, OSError) as error:
            return refused(row, key, f"column {image}: {error}")
    elif not isinstance(content, bytes):
        return refused(row, key, f"column {image}: expected bytes or a path, found {type(content).__name__}")
    return checked(row, key, content, options.prompt or values.get(prompt), values.get(group))
