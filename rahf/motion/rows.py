"""Rows of numbers, one for each way to do something, as `rahf evaluate` writes and shows them for motion."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipelines.video import read
from data_pipelines.video.records import MotionRecord
from rahf.core import names
from rahf.core.errors import ArgumentError
from rahf.core.files import write_atomically
from rahf.core.version import __version__


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one way; metrics by name, intervals where there are any."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def one_dataset(data: str | os.PathLike | Sequence[str], what: str) -> str | os.PathLike:
    """The only dataset. Raises ArgumentError: several, or none; `what` is evaluated on it: "a renderer"."""
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    if len(paths) != 1:
        raise ArgumentError(f"--data: {what} is evaluated on one dataset at a time, found {len(paths)}")
    return paths[0]


def clips(path: str | os.PathLike, split: str, limit: int | None) -> list[MotionRecord]:
    """The first `limit` clips of a split; None: all.

    Raises:
      ArgumentError: a limit below 1.
      DatasetError: no such data, or no such split.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"--limit: expected at least one clip, found {limit}")
    source = read.open_clips(path, split)
    return [source[number] for number in range(len(source) if limit is None else min(len(source), limit))]


def write(
    rows: Mapping[str, Row], meta: dict[str, Any], folder: pathlib.Path, json_file: str | None, console: Console
) -> None:
    """Writes `metrics.json` into a folder, and to another place if one is named; says where it is."""
    meta = meta | {"rahf": __version__, "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
    text = json.dumps({"rows": {name: _tree(row) for name, row in rows.items()}, "meta": meta}, indent=2) + "\n"
    for file in (folder / "metrics.json", *([pathlib.Path(json_file)] if json_file else [])):
        write_atomically(file, text)
    console.print(Text(names.one_line(f"metrics: {folder / 'metrics.json'}")), soft_wrap=True)


def table(rows: Mapping[str, Row], title: str, metrics: Sequence[str]) -> Table:
    """A line for each row and a column for each metric that any row has, named by what follows its last slash.

    The 95 % intervals are in the file.
    """
    result = Table(title=Text(title))
    result.add_column("")
    shown = [name for name in metrics if any(name in row.metrics for row in rows.values())]
    for name in shown:
        result.add_column(name.rpartition("/")[2], justify="right")
    for name, row in rows.items():
        values = [row.metrics.get(metric, np.nan) for metric in shown]
        result.add_row(Text(name), *("" if np.isnan(value) else f"{value:.3f}" for value in values))
    return result


def _tree(row: Row) -> dict[str, Any]:
    return {
        "metrics": {name: None if np.isnan(value) else round(value, 6) for name, value in row.metrics.items()},
        "intervals": {
            name: None if np.isnan(ends).any() else [round(end, 6) for end in ends]
            for name, ends in row.intervals.items()
        },
    }
