"""Lists of prompts that generators are compared on: DrawBench, PartiPrompts, CSP, DailyDallE, and plain text.

| list | layout |
|---|---|
| DrawBench (Saharia et al. 2022) | CSV, ``Prompts,Category`` |
| PartiPrompts (Yu et al. 2022) | TSV, ``Prompt``, ``Category``, ``Challenge``, ``Note`` |
| CSP (Leivada et al. 2022), a table in the paper | CSV or TSV, prompts and their grammatical phenomenon |
| DailyDallE: captions without categories | plain text, or one column |

The first line says which layout a file has; no name of a list is needed.
"""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rahf.core import names
from rahf.core.errors import ArgumentError
from rahf.core.files import read_regular_text

#: Names of a column of prompts, in lower case; those after the first two in files called .csv or .tsv only.
PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption")
#: Names of a column of categories, the preferred first.
CATEGORY_COLUMNS = ("category", "categories", "phenomenon", "case", "grammatical case", "process", "type", "class")
_DELIMITERS = {"TSV": "\t", "CSV": ","}


class ListedPrompt(NamedTuple):
    """A prompt of a list.

    Attributes:
      prompt: its text, not empty.
      category: as the list says; "" without one.
      number: position among the prompts of its list, from 0.
    """

    prompt: str
    category: str
    number: int


class PromptList(NamedTuple):
    """What a file holds.

    Attributes:
      name: of the file without ending.
      layout: "CSV", "TSV" or "text".
      prompts: in their order.
      categories: by their first prompt, with their numbers of prompts.
      unread: names of columns that are not read.
      refused: why lines are not read, with their numbers.
    """

    name: str
    layout: str
    prompts: tuple[ListedPrompt, ...]
    categories: dict[str, int]
    unread: tuple[str, ...]
    refused: tuple[str, ...]


def read(path: str | os.PathLike, category_column: str | None = None) -> PromptList:
    """Reads a list of prompts. Blank lines are left out.

    Args:
      path: UTF-8; see the table above.
      category_column: name of the column of categories, such as ``Challenge``; None: one of `CATEGORY_COLUMNS`.

    Raises:
      ArgumentError: the file cannot be read, has no prompts, no column of prompts, or not the named column.
    """
    file = pathlib.Path(path)
    try:
        text = read_regular_text(file, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: cannot be read as text ({error})") from error
    layout = _layout(file, text)
    if layout == "text":
        if category_column is not None:
            raise ArgumentError(f"{path}: plain text, one prompt a line, has no column {category_column!r}")
        # Only a newline ends a prompt: str.splitlines would also cut at U+2028 and other characters inside of one.
        lines = [line.strip() for line in text.split("\n")]
        rows, unread, refused = [(line, "") for line in lines if line], (), ()
    else:
        rows, unread, refused = _table(file, text, layout, category_column)
    if not rows:
        what = f"; refused: {refused[0]}" if refused else ""
        raise ArgumentError(f"{path}: has no prompts; expected one per line{what}")
    prompts = tuple(ListedPrompt(prompt, category, number) for number, (prompt, category) in enumerate(rows))
    categories = dict(Counter(one.category for one in prompts if one.category))
    return PromptList(file.stem, layout, prompts, categories, tuple(unread), tuple(refused))


def _layout(file: pathlib.Path, text: str) -> str:
    """By the ending .csv or .tsv, else by a first line that names a column of prompts and one of categories."""
    ending = file.suffix.lower()
    if ending == ".tsv":
        return "TSV"
    first = text.split("\n", 1)[0]
    for layout, delimiter in _DELIMITERS.items():
        columns = [cell.strip().lower() for cell in first.split(delimiter)]
        if set(columns) & set(PROMPT_COLUMNS[:2]) and set(columns) & set(CATEGORY_COLUMNS):
            return layout
    return "CSV" if ending == ".csv" else "text"


def _table(
    file: pathlib.Path, text: str, layout: str, category_column: str | None
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Prompts with categories, names of columns that are not read, and why rows are refused."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[layout])
    try:
        header = [cell.strip() for cell in next(reader, [])]
        of_prompt, of_category = _columns(file, header, category_column)
        rows, refused = [], []
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if len(cells) > len(header):
                refused.append(
                    f"line {reader.line_num}: {len(cells)} cells, the first line names {len(header)}; put text that "
                    "has the delimiter in it into double quotes"
                )
            elif of_prompt >= len(cells) or not cells[of_prompt]:
                refused.append(f"line {reader.line_num}: its prompt is empty")
            else:
                known = of_category is not None and of_category < len(cells)
                rows.append((cells[of_prompt], cells[of_category] if known else ""))
    except csv.Error as error:
        raise ArgumentError(f"{file}: line {reader.line_num} is no {layout} ({error})") from error
    used = {of_prompt, of_category}
    return rows, [name for number, name in enumerate(header) if name and number not in used], refused


def _columns(file: pathlib.Path, header: Sequence[str], category_column: str | None) -> tuple[int, int | None]:
    lower = [name.lower() for name in header]
    of_prompt = next((lower.index(name) for name in PROMPT_COLUMNS if name in lower), None)
    shown = ", ".join(repr(names.one_line(name, 40)) for name in header if name) or "none"
    if of_prompt is None:
        raise ArgumentError(
            f"{file}: no column of prompts; expected one called {' or '.join(PROMPT_COLUMNS)} in the first line, found "
            f"{shown}. Plain text, one prompt a line, is read from a file with another ending than .csv and .tsv"
        )
    if category_column is None:
        return of_prompt, next((lower.index(name) for name in CATEGORY_COLUMNS if name in lower), None)
    if category_column.strip().lower() not in lower:
        raise ArgumentError(f"{file}: no column {category_column!r}; its columns: {shown}")
    return of_prompt, lower.index(category_column.strip().lower())
