"""`rahf prepare richhf18k`: released labels, pictures and captions → a prepared dataset."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from typing import Iterator, Mapping, Sequence

import rich.console
import rich.progress

from data_pipelines import store, store_writer
from data_pipelines.richhf18k import gather, join, tfrecord
from data_pipelines.richhf18k.assemble import REFUSED_FILE, SUMMARY_FILE, VOCABULARY_SIZE, Assembly
from data_pipelines.richhf18k.labels import Refused, uid_of
from data_pipelines.richhf18k.staging import Staging
from data_pipelines.richhf18k.summary import Summary
from data_pipelines.store import DatasetError
from rahf import text

SPLITS = ("train", "dev", "test")
#: A picture labelled in two splits stays in the first of these, so that no test picture is trained on.
_PRECEDENCE = ("test", "dev", "train")
_PLAN_VERSION = 1  # raise it when the same inputs come to give other bytes
_RELEASE = "https://github.com/google-research-datasets/richhf-18k"


def prepare(
    labels: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    captions: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    progress: bool = True,
) -> Summary:
    """Joins labels with pictures and captions, and writes a dataset for `data_pipelines.store.open_split`.

    Records that cannot be used are counted and listed in ``OUT/refused.jsonl``. An interrupted run leaves
    ``OUT.partial`` behind; the next one goes on there and ends with the same bytes as an uninterrupted one. A
    finished run with unchanged inputs returns at once.

    Args:
      labels: directory with ``train.tfrecord``, ``dev.tfrecord``, ``test.tfrecord``, or some of them.
      images: Pick-a-Pic parquet shards, directories of shards, or folders of ``<uid>.jpg|png|webp``.
      out: directory to make; a dataset in its place is replaced.
      captions: captions by uid (JSON lines, CSV, TSV, parquet), for pictures that bring none; default:
        ``captions.*`` in the folders of `images`.
      tokenizer: SentencePiece vocabulary to put beside the data (T5's ``spiece.model``); default: a small one
        is trained on the training prompts.
      progress: print progress and, at the end, the table.

    Returns:
      The counts.

    Raises:
      DatasetError: wrong directories, Git-LFS pointers instead of data, or nothing could be joined.
    """
    target = pathlib.Path(os.path.abspath(out))
    store_writer.check_replaceable(target)
    images = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    console = rich.console.Console(quiet=not progress)
    files = label_files(labels)
    vocabulary = _vocabulary(tokenizer)
    owners = _owners(files)
    units = join.units(images, owners)
    caption_files = gather.caption_files(captions, images)
    plan = _digest(files, units, caption_files, vocabulary)
    working = target.with_name(target.name + ".partial")
    summary = _stored_summary(target, plan)
    if summary is not None:
        console.print(f"{target} is complete and its inputs have not changed")
        if working.exists():  # stopped between finishing and tidying
            Staging(working, plan).remove()
    else:
        staging = Staging(working, plan)
        if staging.continues:
            console.print(f"going on with the interrupted run in {working}")
        with _bars(console) as advance:
            pictures = gather.Pictures(staging, units, owners, caption_files, advance)
            summary = Assembly(files, owners, pictures).write(target, vocabulary, plan, advance)
        staging.remove()
    _report(console, summary, target)
    return summary


def label_files(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """The label files of a directory, by split.

    Raises:
      DatasetError: no such directory, none of the files, or a Git-LFS pointer in the place of one.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise DatasetError(f"--labels {folder} {state}; expected a directory with train|dev|test.tfrecord")
    files = {split: folder / f"{split}.tfrecord" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        raise DatasetError(
            f"--labels {folder} has none of train.tfrecord, dev.tfrecord, test.tfrecord: "
            f"{store.contents(folder)}; expected a clone of {_RELEASE}"
        )
    for file in files.values():
        tfrecord.check_not_lfs_pointer(file)
    return files


def _vocabulary(file: str | os.PathLike | None) -> bytes | None:
    if file is None:
        return None
    if not pathlib.Path(file).is_file():
        raise DatasetError(f"--tokenizer {file}: no such file; expected a SentencePiece model")
    try:
        return text.Tokenizer.load(file).model
    except ValueError as error:
        raise DatasetError(f"--tokenizer {error}") from error


def _owners(files: Mapping[str, pathlib.Path]) -> dict[str, tuple[str, int]]:
    """For every uid the one record (split, number) that may use it."""
    owners: dict[str, tuple[str, int]] = {}
    problems: list[str] = []
    for split in _PRECEDENCE:
        for entry in tfrecord.read_examples(files[split]) if split in files else ():
            try:
                if entry.features is None:
                    problems.append(f"{files[split]}: {entry.problem}")
                else:
                    owners.setdefault(uid_of(entry.features), (split, entry.number))
            except Refused as why:
                problems.append(f"{files[split]}, record {entry.number}: {why}")
    if not owners:
        found = "".join(f"\n  {problem}" for problem in problems[:5]) or " the files are empty"
        raise DatasetError(f"no usable record in {', '.join(map(str, files.values()))}:{found}")
    return owners


def _digest(
    files: Mapping[str, pathlib.Path],
    units: Sequence[join.Unit],
    caption_files: Sequence[pathlib.Path],
    vocabulary: bytes | None,
) -> str:
    """Changes whenever the result could."""
    inputs = [
        _PLAN_VERSION,
        [[split, *join.stamp(file)] for split, file in files.items()],
        [unit.signature() for unit in units],
        [join.stamp(file) for file in caption_files],
        hashlib.sha256(vocabulary).hexdigest() if vocabulary else VOCABULARY_SIZE,
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _stored_summary(target: pathlib.Path, plan: str) -> Summary | None:
    """The summary of a finished run with the same inputs."""
    try:
        stored = json.loads((target / SUMMARY_FILE).read_text())
        return Summary(**stored["summary"]) if stored["plan"] == plan else None
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _bars(console: rich.console.Console) -> Iterator[gather.Advance]:
    """Progress bars, one per kind of work; nothing where the console is quiet."""
    tasks: dict[str, rich.progress.TaskID] = {}
    store.load_writer()
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=console.quiet) as bars:

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=max(done, total))

        yield advance


def _report(console: rich.console.Console, summary: Summary, target: pathlib.Path) -> None:
    console.print(summary.table())
    for line in summary.remarks():
        console.print(line, style="yellow" if line.startswith("warning") else None, markup=False, soft_wrap=True)
    console.print(f"dataset {target}, refused records {target / REFUSED_FILE}", markup=False, soft_wrap=True)
