"""What `rahf predict` and `rahf score` write → a predictions file.

`rahf predict` writes ``predictions.json`` with scores and words, and each heatmap as a grey PNG; the maps are looked
for by their names in the folder of that file. `rahf score` writes ``part-*.parquet`` with keys, prompts and scores.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rahf import images
from rahf.comparison.converters.writing import Converted, Item, attempt, write
from rahf.comparison.predictions import Unusable, load_predicted_map
from rahf.core import json_text
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError, DataError
from rahf.core.files import read_regular

_PART = re.compile(r"part-\d{5,}\.parquet")


def convert_predict(source: str | os.PathLike, out: str | os.PathLike) -> Converted:
    """Converts the JSON of `rahf predict`.

    Args:
      source: the JSON file, or the folder with ``predictions.json``.
      out: folder to create.

    Raises:
      DataError: another file, or nothing in it that can be used.
      ArgumentError: `out` has something in it.
    """
    file = pathlib.Path(source)
    file = file / "predictions.json" if file.is_dir() else file
    try:
        tree = json_text.parse_object(read_regular(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected what rahf predict writes") from error
    entries = tree.get("images")
    if not isinstance(entries, list):
        raise DataError(f"{file}: no list 'images'; expected what rahf predict writes with --json")
    model = tree.get("model") if isinstance(tree.get("model"), str) else "rahf"
    items = attempt(functools.partial(_entry, entry, file.parent) for entry in entries)
    return write(out, items, model)


def _entry(entry: Any, folder: pathlib.Path) -> Item:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise Unusable("malformed", f"expected an object with 'image', found {str(entry)[:80]!r}")
    line = {name: entry[name] for name in ("image", "prompt") if isinstance(entry.get(name), str)}
    if isinstance(entry.get("scores"), dict):
        line["scores"] = {name: json_text.finite(entry["scores"].get(name)) for name in SCORES}
    words = entry.get("words")
    if isinstance(words, list) and words and entry.get("words_decided_by") != "nothing":
        if any(not isinstance(word, dict) or not isinstance(word.get("misaligned"), bool) for word in words):
            raise Unusable("bad words", f"words of {entry['image']!r:.80} lack 'misaligned'")
        line["word_labels"] = [int(not word["misaligned"]) for word in words]
        line["word_probabilities"] = [json_text.finite(word.get("probability")) or 0.0 for word in words]
    return Item(line, tuple(_map(entry.get("files"), name, folder) for name in HEATMAPS))


def _map(listed: Any, name: str, folder: pathlib.Path) -> Any:
    path = listed.get(name) if isinstance(listed, Mapping) else None
    if not isinstance(path, str):
        return None
    # Only the name counts: the paths are those of the machine and folder in which the command ran.
    file = folder / pathlib.PurePath(path.replace("\\", "/")).name
    try:
        return load_predicted_map(str(file))
    except images.ImageError as error:
        raise Unusable("bad map", f"{name}: {error}") from error


def convert_score(source: str | os.PathLike, out: str | os.PathLike) -> Converted:
    """Converts the parquet files of `rahf score`; rows that were refused stay out.

    Args:
      source: the folder of ``part-*.parquet``.
      out: folder to create.

    Raises:
      DataError: no such folder, or nothing in it that can be used.
      ArgumentError: `out` has something in it.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: no folder; expected the --out of rahf score")
    parts = sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))
    if not parts:
        raise DataError(f"{folder}: no part-*.parquet; expected the --out of rahf score")
    return write(out, attempt(functools.partial(_row, row) for row in _rows(parts)), "rahf score")


def _rows(parts: list[pathlib.Path]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet  # heavy, and only parquet needs it

    columns = ["key", "prompt", "error", *SCORES]
    for part in parts:
        try:
            yield from pyarrow.parquet.read_table(part, columns=columns).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{part}: cannot be read ({str(error)[:200]}); expected what rahf score writes") from error


def _row(row: dict[str, Any]) -> Item:
    if row["error"] is not None:
        raise Unusable("malformed", f"{row['key']!r:.80} was refused: {row['error']:.200}")
    return Item({"image": row["key"], "prompt": row["prompt"], "scores": {name: row[name] for name in SCORES}})
