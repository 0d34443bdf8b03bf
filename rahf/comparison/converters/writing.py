"""Writes a predictions file and its maps into a folder of their own, whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rahf.comparison.predictions import RefusedLine, Unusable
from rahf.core import names
from rahf.core.batch import HEATMAPS
from rahf.core.errors import ArgumentError, DataError
from rahf.core.files import replacing_folder
from rahf.critic.feedback import png

FILE = "predictions.jsonl"


class Item(NamedTuple):
    """What one picture's output says: a line without maps, and the maps."""

    line: Mapping[str, Any]
    maps: tuple[np.ndarray | None, ...] = (None,) * len(HEATMAPS)  # float [h,w] in [0,1]


class Converted(NamedTuple):
    """What was written."""

    file: pathlib.Path
    count: int
    refused: list[RefusedLine]  # `line` is the number of the output, from 1


def write(out: str | os.PathLike, outputs: Iterable[Item | Unusable], model: str) -> Converted:
    """Writes ``predictions.jsonl`` and ``maps/`` into a new folder.

    Args:
      out: the folder; it must not exist, or be empty.
      outputs: one per picture; `Unusable` for one that says nothing that can be used.
      model: name of the model for the field `model`.

    Raises:
      ArgumentError: the folder has something in it.
      DataError: nothing can be used.
    """
    out = pathlib.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"{out} exists; give another folder with --out DIR")
    refused: list[RefusedLine] = []
    lines: list[str] = []
    with replacing_folder(out) as folder:
        (folder / "maps").mkdir()
        for number, item in enumerate(outputs, 1):
            if isinstance(item, Unusable):
                refused.append(RefusedLine(number, item.kind, names.one_line(item, 300)))
                continue
            line = {"model": model, **item.line}
            for name, values in zip(HEATMAPS, item.maps):
                if values is not None:
                    line[name] = f"maps/{number:06d}_{name}.png"
                    grey = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
                    (folder / line[name]).write_bytes(png(grey))
            lines.append(json.dumps(line, allow_nan=False) + "\n")
        if not lines:
            first = f"; the first: {refused[0].reason}" if refused else ""
            raise DataError(f"nothing that can be used in {len(refused)} outputs{first}")
        (folder / FILE).write_text("".join(lines))
    return Converted(out / FILE, len(lines), refused)


def attempt(make: Iterable[Any]) -> Iterator[Item | Unusable]:
    """Calls functions without arguments; an `Unusable` that one raises is given in its place."""
    for one in make:
        try:
            yield one()
        except Unusable as error:
            yield error
