"""Writes synthetic scenes as a prepared dataset: the work behind `rahf prepare synthetic`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.processes import mapper
from data_pipelines.prepare.progress import progress_bars
from data_pipelines.store.records import Record
from data_pipelines.synthetic import viewers as viewers_lib
from data_pipelines.synthetic.language import SPLITS
from data_pipelines.synthetic.scene import SIDE, prompt, record, scene
from rahf.core import json_text, terminal
from rahf.core.errors import ArgumentError
from rahf.core.files import read_regular
from rahf.text import train_tokenizer

#: Raised with every change that lets the same arguments give other scenes.
VERSION = 1
ARGUMENTS_FILE = "prepare.json"
_CHUNK = 32  # scenes that a worker draws at a time
_TOKENIZER_PROMPTS = 4000  # the vocabulary is closed: more prompts add no words
_DESCRIPTION = (
    "Procedurally drawn scenes with planted faults, labelled by three simulated annotators each; "
    "no person rated anything here."
)


def prepare(
    out: str | os.PathLike,
    train: int = 20_000,
    dev: int = 256,
    test: int = 256,
    seed: int = 0,
    size: int = SIDE,
    workers: int = 0,
    progress: bool = True,
    viewers: int = 0,
) -> dict[str, int]:
    """Makes a dataset of synthetic scenes, with its vocabulary and the truth behind every label.

    Beside the dataset it writes ``truth-<split>.jsonl`` (planted faults and raw annotations, one line per record; for
    analysis) and ``prepare.json`` (the arguments). If `out` already holds the dataset of these arguments, it returns at
    once. The bytes written do not depend on `workers`.

    Args:
      out: directory to make; an older synthetic dataset in its place is replaced.
      train, dev, test: number of scenes; a split with 0 is left out.
      seed: not negative.
      size: side of pictures and maps in pixels.
      workers: processes that draw; 0 draws in this one.
      progress: show a bar on the terminal.
      viewers: people who are simulated to look at each scene (`data_pipelines.synthetic.viewers`); above 0 the dataset
        has fixations and densities.

    Returns:
      Number of records per split.

    Raises:
      ArgumentError: a number is out of range, or all splits have 0 scenes.
      data_pipelines.store.DatasetError: `out` holds something else.
    """
    counts = {name: count for name, count in zip(SPLITS, (train, dev, test)) if count}
    if not counts or min(counts.values()) < 0 or workers < 0 or viewers < 0:
        raise ArgumentError(
            f"train={train}, dev={dev}, test={test}, workers={workers}, viewers={viewers}: expected no negative number "
            "and at least one scene"
        )
    target = pathlib.Path(out)
    arguments = {"generator": "synthetic", "version": VERSION, **counts, "seed": seed, "size": size}
    arguments |= {"viewers": viewers} if viewers else {}
    if _is_prepared(target, arguments):
        return counts
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(progress_bars(terminal.console(quiet=not progress)))
        total, drawn = sum(counts.values()), itertools.count(1)
        advance = lambda: bars("drawing scenes", next(drawn), total)  # noqa: E731
        truths = {name: stack.enter_context(tempfile.TemporaryFile()) for name in counts}
        make = stack.enter_context(mapper(_make_chunk, workers))
        jobs = {name: _jobs(seed, name, count, size, viewers) for name, count in counts.items()}
        sheet = DataSheet(
            "Synthetic scenes",
            source=f"drawn by `rahf prepare synthetic` with seed {seed}, rated by simulated annotators",
            license="none needed: drawn by a program",
        )
        return store.write_dataset(
            out,
            sheet.watch({name: _records(make(jobs[name]), truths[name], advance) for name in counts}),
            description=_DESCRIPTION,
            tokenizer=_tokenizer(seed, train),
            extra={
                **sheet.files(),
                ARGUMENTS_FILE: json.dumps(arguments, indent=2) + "\n",
                **{f"truth-{name}.jsonl": _reader(file) for name, file in truths.items()},
            },
            optional=("fixations", "saliency") if viewers else (),
        )


def _tokenizer(seed: int, train: int) -> bytes:
    """A vocabulary learnt from training prompts only."""
    count = min(_TOKENIZER_PROMPTS, max(train, 1))
    return train_tokenizer([prompt(seed, "train", index) for index in range(count)])


def _is_prepared(target: pathlib.Path, arguments: Mapping[str, object]) -> bool:
    """Whether `target` holds the complete dataset of these arguments.

    Raises:
      DatasetError: it holds something that this command has not written.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        stored = json_text.parse(read_regular(target / ARGUMENTS_FILE))
        ours = stored["generator"] == arguments["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise store.DatasetError(
            f"{target} exists and was not made by `rahf prepare synthetic`; it is left alone: "
            "name another directory, or remove it first"
        )
    if stored != arguments:
        return False
    names = [name for name in SPLITS if name in arguments]
    try:
        return all(len(store.open_split(target, name)) == arguments[name] for name in names)
    except store.DatasetError:
        return False  # damaged: make it again


def _jobs(seed: int, split: str, count: int, size: int, people: int) -> Iterator[tuple[int, str, int, int, int, int]]:
    for start in range(0, count, _CHUNK):
        yield seed, split, start, min(start + _CHUNK, count), size, people


def _make_chunk(job: tuple[int, str, int, int, int, int]) -> list[tuple[Record, bytes]]:
    """The records of consecutive indices, each with its line of truth."""
    seed, split, start, stop, size, people = job
    chunk = []
    for index in range(start, stop):
        one = scene(seed, split, index, size)
        line = json.dumps(one.truth(), separators=(",", ":")) + "\n"
        labelled = record(one)
        if people:
            points = viewers_lib.fixations(one, seed, split, index, people)
            sigma = viewers_lib.SIGMA * size
            grid = density.stored_grid((size, size), sigma)
            encoded = density.encode(density.gaussian(points, (size, size), sigma, grid))
            labelled = labelled._replace(fixations=points, saliency=encoded)
        chunk.append((labelled, line.encode()))
    return chunk


def _records(
    chunks: Iterator[list[tuple[Record, bytes]]], truth: BinaryIO, advance: Callable[[], None]
) -> Iterator[Record]:
    """The records of chunks; writes their lines of truth to a file."""
    for drawn, line in itertools.chain.from_iterable(chunks):
        truth.write(line)
        yield drawn
        advance()


def _reader(file: BinaryIO) -> Callable[[], bytes]:
    """A function that returns all of a file."""

    def read() -> bytes:
        file.seek(0)
        return file.read()

    return read
