"""`rahf prepare richhf18k`: released labels, pictures and captions → a prepared dataset."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from rich.text import Text

from data_pipelines.prepare.counts import Refused, print_report, stored_counts
from data_pipelines.prepare.progress import progress_bars
from data_pipelines.prepare.splits import PRECEDENCE, SPLITS
from data_pipelines.prepare.vocabulary import read_vocabulary
from data_pipelines.richhf18k import gather, join, tfrecord
from data_pipelines.richhf18k.assemble import VOCABULARY_SIZE, Assembly
from data_pipelines.richhf18k.labels import uid_of
from data_pipelines.richhf18k.staging import Staging
from data_pipelines.richhf18k.summary import RichHFSummary
from data_pipelines.store import layout
from rahf.core import names, terminal
from rahf.core.errors import DatasetError
from rahf.core.files import LFS_REMEDY, check_not_lfs_pointer

_PLAN_VERSION = 2  # raise it when a change lets the same inputs give other bytes
_RELEASE = "https://github.com/google-research-datasets/richhf-18k"


def prepare(
    labels: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    captions: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    progress: bool = True,
) -> RichHFSummary:
    """Joins labels with pictures and captions, and writes a dataset for `data_pipelines.store.open_split`.

    Records that cannot be used are counted and listed in ``OUT/refused.jsonl``. An interrupted run leaves
    ``OUT.partial`` behind; the next one goes on there and ends with the same bytes as an uninterrupted one. A
    finished run with unchanged inputs returns at once.

    Args:
      labels: directory with ``train.tfrecord``, ``dev.tfrecord``, ``test.tfrecord``, or some of them.
      images: Pick-a-Pic parquet shards, directories of shards, or folders of ``<uid>.jpg|png|webp``.
      out: directory to make; a dataset in its place is replaced.
      captions: captions by uid (JSON lines, CSV, TSV, parquet), for pictures without one in their shard; default:
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
    layout.check_replaceable(target)
    images = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    console = terminal.console(quiet=not progress)
    files = label_files(labels)
    vocabulary = read_vocabulary(tokenizer)
    owners = _owners(files)
    units = join.units(images, owners)
    caption_files = gather.caption_files(captions, images)
    plan = _digest(files, units, caption_files, vocabulary)
    working = target.with_name(target.name + ".partial")
    summary = stored_counts(RichHFSummary, target, plan)
    if summary is not None:
        console.print(Text(names.one_line(f"{target} is complete and its inputs have not changed")), soft_wrap=True)
        if working.exists():  # the run was ended before it removed its working directory
            Staging(working, plan).remove()
    else:
        staging = Staging(working, plan)
        if staging.continues:
            console.print(Text(names.one_line(f"going on with the interrupted run in {working}")), soft_wrap=True)
        with progress_bars(console) as advance:
            pictures = gather.Pictures(staging, units, owners, caption_files, advance)
            summary = Assembly(files, owners, pictures).write(target, vocabulary, plan, advance)
        staging.remove()
    print_report(console, summary, target)
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
            f"{layout.contents(folder)}; expected a clone of {_RELEASE}"
        )
    for file in files.values():
        check_not_lfs_pointer(file, f"{LFS_REMEDY} ({_RELEASE})")
    return files


def _owners(files: Mapping[str, pathlib.Path]) -> dict[str, tuple[str, int]]:
    """For every uid the one record (split, number) that may use it."""
    owners: dict[str, tuple[str, int]] = {}
    problems: list[str] = []
    for split in PRECEDENCE:
        for entry in tfrecord.read_examples(files[split]) if split in files else ():
            try:
                if entry.features is None:
                    problems.append(f"{files[split]}: {entry.problem}")
                else:
                    owners.setdefault(uid_of(entry.features), (split, entry.number))
            except Refused as why:
                problems.append(f"{files[split]}, record {entry.number}: {why}")
    if not owners:
        reasons = "".join(f"\n  {problem}" for problem in problems[:5]) or " the files are empty"
        raise DatasetError(f"no usable record in {', '.join(map(str, files.values()))}:{reasons}")
    return owners


def _digest(
    files: Mapping[str, pathlib.Path],
    units: Sequence[join.Unit],
    caption_files: Sequence[pathlib.Path],
    vocabulary: bytes | None,
) -> str:
    """A digest of all inputs, which changes whenever the result could."""
    inputs = [
        _PLAN_VERSION,
        [[split, *join.stamp(file)] for split, file in files.items()],
        [unit.signature() for unit in units],
        [join.stamp(file) for file in caption_files],
        hashlib.sha256(vocabulary).hexdigest() if vocabulary else VOCABULARY_SIZE,
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
