"""Writes synthetic scenes as a prepared dataset: the work behind `rahf prepare synthetic`."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import tempfile
from typing import BinaryIO, Callable, Iterator, Mapping

from data_pipelines import store
from data_pipelines.store.records import Record
from data_pipelines.synthetic.language import SPLITS
from data_pipelines.synthetic.scene import SIDE, prompt, record, scene
from rahf.core.errors import ArgumentError
from rahf.text import train_tokenizer

#: Goes up when the same arguments give other scenes than before.
VERSION = 1
ARGUMENTS_FILE = "prepare.json"
_CHUNK = 32  # scenes that a worker makes at a time
_TOKENIZER_PROMPTS = 4000  # the vocabulary is closed: more prompts teach nothing
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
) -> dict[str, int]:
    """Makes a dataset of synthetic scenes, with its vocabulary and the truth behind every label.

    Beside the dataset lie ``truth-<split>.jsonl`` (what was planted and what each annotator said, one line
    per record; for analysis) and ``prepare.json`` (the arguments). If `out` already holds what these
    arguments give, nothing is done. The bytes written do not depend on `workers`.

    Args:
      out: directory to make; an older synthetic dataset in its place is replaced.
      train, dev, test: number of scenes; a split of none is left out.
      seed: not negative.
      size: side of pictures and maps in pixels.
      workers: processes that draw; 0 draws in this one.
      progress: show a bar on the terminal.

    Returns:
      Number of records per split.

    Raises:
      ValueError: a number is out of range, or no scene is wanted.
      data_pipelines.store.DatasetError: `out` holds something else.
    """
    counts = {name: count for name, count in zip(SPLITS, (train, dev, test)) if count}
    if not counts or min(counts.values()) < 0 or workers < 0:
        raise ArgumentError(
            f"train={train}, dev={dev}, test={test}, workers={workers}: expected no negative number "
            "and at least one scene"
        )
    target = pathlib.Path(out)
    arguments = {"generator": "synthetic", "version": VERSION, **counts, "seed": seed, "size": size}
    if _is_prepared(target, arguments):
        return counts
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(_bar(sum(counts.values()), progress))
        truths = {name: stack.enter_context(tempfile.TemporaryFile()) for name in counts}
        make = stack.enter_context(_maker(workers))
        jobs = {name: _jobs(seed, name, count, size) for name, count in counts.items()}
        return store.write_dataset(
            out,
            {name: _records(make(jobs[name]), truths[name], advance) for name in counts},
            description=_DESCRIPTION,
            tokenizer=_tokenizer(seed, train),
            extra={
                ARGUMENTS_FILE: json.dumps(arguments, indent=2) + "\n",
                **{f"truth-{name}.jsonl": _reader(file) for name, file in truths.items()},
            },
        )


def _tokenizer(seed: int, train: int) -> bytes:
    """A vocabulary learnt from training prompts only."""
    count = min(_TOKENIZER_PROMPTS, max(train, 1))
    return train_tokenizer([prompt(seed, "train", index) for index in range(count)])


def _is_prepared(target: pathlib.Path, arguments: Mapping[str, object]) -> bool:
    """Whether `target` holds this very dataset, whole; an error if it holds what is not ours to replace."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / ARGUMENTS_FILE).read_text())
        ours = found["generator"] == arguments["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise store.DatasetError(
            f"{target} exists and was not made by `rahf prepare synthetic`; it is left alone: "
            "name another directory, or remove it first"
        )
    if found != arguments:
        return False
    names = [name for name in SPLITS if name in arguments]
    try:
        return all(len(store.open_split(target, name)) == arguments[name] for name in names)
    except store.DatasetError:
        return False  # damaged: make it again


def _jobs(seed: int, split: str, count: int, size: int) -> Iterator[tuple[int, str, int, int, int]]:
    for start in range(0, count, _CHUNK):
        yield seed, split, start, min(start + _CHUNK, count), size


def _make_chunk(job: tuple[int, str, int, int, int]) -> list[tuple[Record, bytes]]:
    """Records of one run of indices, each with its line of truth."""
    seed, split, start, stop, size = job
    made = []
    for index in range(start, stop):
        one = scene(seed, split, index, size)
        line = json.dumps(one.truth(), separators=(",", ":")) + "\n"
        made.append((record(one), line.encode()))
    return made


_Make = Callable[[Iterator[tuple[int, str, int, int, int]]], Iterator[list[tuple[Record, bytes]]]]


@contextlib.contextmanager
def _maker(workers: int) -> Iterator[_Make]:
    """Yields a function that does jobs in order, in this process or in `workers` others."""
    if not workers:
        yield lambda jobs: map(_make_chunk, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:

        def make(jobs):
            waiting = collections.deque()  # bounded: a slow disk must not fill the memory
            for job in jobs:
                waiting.append(pool.submit(_make_chunk, job))
                if len(waiting) > 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield make
        finally:
            pool.shutdown(cancel_futures=True)


def _records(
    chunks: Iterator[list[tuple[Record, bytes]]], truth: BinaryIO, advance: Callable[[int], None]
) -> Iterator[Record]:
    for chunk in chunks:
        for made, line in chunk:
            truth.write(line)
            yield made
        advance(len(chunk))


def _reader(file: BinaryIO) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(0)
        return file.read()

    return read


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that moves it on."""
    if not shown:
        yield lambda count: None
        return
    from rich import progress

    store.load_writer()
    columns = (
        progress.TextColumn("drawing scenes"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as bar:
        task = bar.add_task("drawing scenes", total=total)
        yield lambda count: bar.advance(task, count)
