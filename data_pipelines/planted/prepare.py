"""`rahf prepare planted`: a folder of good pictures → a dataset of planted damage and untrue prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar, NamedTuple

from rich.text import Text

from data_pipelines import store
from data_pipelines.planted import damage, example, pictures, sheet, wording
from data_pipelines.planted.example import Example, Options
from data_pipelines.prepare import processes
from data_pipelines.prepare.counts import PreparationCounts, Refused, print_report, summary_files
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import progress_bars
from data_pipelines.prepare.splits import SPLITS
from data_pipelines.prepare.vocabulary import read_vocabulary
from data_pipelines.store.records import Record, missing_labels
from rahf import text
from rahf.core import names, terminal
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import DatasetError

SHEET_FILE = "sheet.png"
_ON_SHEET = 32  # examples
_SIZES = (64, 2048)
_SHOWN = 5  # prompts that cannot be read; all are listed
_PLAN = "planted 1"  # raise it when a change lets the same inputs give other bytes
_DESCRIPTION = (
    "Pictures with planted damage and planted untrue words, rated by three simulated annotators each; "
    "no person rated anything here."
)


@dataclasses.dataclass
class PlantedSummary(PreparationCounts):
    """Counts of a preparation. The rows after the refusals count examples: labels, kinds of damage, untrue prompts.

    Attributes:
      unreadable: prompts that cannot be read, with reasons; their pictures are used without one.
    """

    title: ClassVar[str] = "planted damage"
    refusals: ClassVar[tuple[str, ...]] = ("undecodable", "too small")
    notes: ClassVar[tuple[str, ...]] = (*SCORES, *HEATMAPS, "words", "no damage", *damage.KINDS, *wording.KINDS)
    unreadable: list[str] = dataclasses.field(default_factory=list)

    @property
    def left_out(self) -> int:
        return self.refused + len(self.unreadable)

    def remarks(self) -> list[str]:
        """Sentences below the table: the share used, and prompts that cannot be read."""
        lines = [f"warning: {reason}; its picture is used without a prompt" for reason in self.unreadable[:_SHOWN]]
        if len(self.unreadable) > _SHOWN:
            lines.append(f"warning: {len(self.unreadable) - _SHOWN} more prompts cannot be read")
        return super().remarks() + lines


class _Job(NamedTuple):
    picture: pictures.Picture
    copy: int


def prepare(
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    captions: str | os.PathLike | None = None,
    copies: int = 1,
    options: Options | None = None,
    dev: float = 0.1,
    test: float = 0.1,
    tokenizer: str | os.PathLike | None = None,
    workers: int = 0,
    progress: bool = True,
) -> PlantedSummary:
    """Plants damage on the pictures of a folder and makes some of their prompts untrue.

    Beside the dataset it writes ``truth-<split>.jsonl`` (exact masks, kinds, true word labels, raw annotations),
    ``sheet.png`` (a contact sheet to look at) and ``refused.jsonl``. The same inputs give the same bytes, whatever the
    number of workers. All copies of a picture are in one split.

    Args:
      images: folder of pictures, searched with the folders in it; prompts as in `pictures.find`.
      out: directory to make; a dataset in its place is replaced.
      captions: file of prompts; None: looked for among the pictures.
      copies: examples per picture, each with other damage.
      options: sizes, crops and labels; None: the defaults.
      dev, test: shares of the pictures to hold out.
      tokenizer: SentencePiece vocabulary to put beside the data; None: learnt from the training prompts.
      workers: processes; 0: this one.
      progress: print progress and the table.

    Returns:
      The counts.

    Raises:
      DatasetError: wrong arguments, no pictures, or nothing to train on.
    """
    target = pathlib.Path(os.path.abspath(out))
    store.check_replaceable(target)
    options = options or Options()
    _check(copies, options, dev, test, workers)
    vocabulary = read_vocabulary(tokenizer)
    of_folder, problems = pictures.find(images, captions)
    jobs: dict[str, list[_Job]] = {split: [] for split in SPLITS}
    for picture in of_folder:
        jobs[pictures.split_of(picture.name, dev, test)] += [_Job(picture, copy) for copy in range(copies)]
    if not jobs["train"]:
        raise DatasetError(f"--images {images}: all {len(of_folder)} pictures are held out; lower --dev and --test")
    # Wrong words of held-out prompts would tell the training split of them.
    prompts = {
        split: wording.Prompts([job.picture.prompt for job in of_split if job.picture.prompt])
        for split, of_split in jobs.items()
    }
    console = terminal.console(quiet=not progress)
    with contextlib.ExitStack() as stack:
        assembly = _Assembly(jobs, problems, stack, stack.enter_context(progress_bars(console)))
        for split in [split for split in SPLITS if jobs[split]]:
            make = functools.partial(_make, os.fspath(images), options, prompts[split])
            assembly.makers[split] = stack.enter_context(processes.mapper(make, workers))
        summary = assembly.write(target, vocabulary)
    print_report(console, summary, target)
    console.print(Text(names.one_line(f"look at {target / SHEET_FILE}")), soft_wrap=True)
    return summary


def _check(copies: int, options: Options, dev: float, test: float, workers: int) -> None:
    if copies < 1 or workers < 0:
        raise DatasetError(f"--copies {copies}, --workers {workers}: expected at least 1 copy and 0 workers")
    if not _SIZES[0] <= options.size <= _SIZES[1]:
        raise DatasetError(f"--size {options.size}: expected {_SIZES[0]} to {_SIZES[1]} pixels")
    if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
        raise DatasetError(f"--dev {dev}, --test {test}: expected shares of the pictures whose sum is less than 1")
    if not text.split_words(options.default_prompt):
        raise DatasetError("--default-prompt: expected at least one word")


def _make(folder: str, options: Options, prompts: wording.Prompts, job: _Job) -> Example | Refused:
    try:
        return example.make(folder, job.picture, job.copy, options, prompts)
    except Refused as why:
        return why


class _Assembly:
    """Writes the examples, and counts what is used and refused."""

    def __init__(self, jobs: dict[str, list[_Job]], problems: list[str], stack: contextlib.ExitStack, advance: Any):
        self.jobs = {split: of_split for split, of_split in jobs.items() if of_split}
        self.makers: dict[str, Any] = {}
        self.truths: dict[str, BinaryIO] = {s: stack.enter_context(tempfile.TemporaryFile()) for s in self.jobs}
        self.advance, self.summary = advance, PlantedSummary(unreadable=problems)
        self.refused: list[dict[str, Any]] = [
            {"file": None, "copy": None, "kind": "unreadable prompt", "reason": reason} for reason in problems
        ]
        self.shown: list[Example] = []
        self.training_prompts: dict[str, None] = {}

    def write(self, target: pathlib.Path, vocabulary: bytes | None) -> PlantedSummary:
        for split in self.jobs:
            self.summary.add_split(split)
        extra = summary_files(_PLAN, self.summary, self.refused)
        extra[store.TOKENIZER_FILE] = lambda: vocabulary or text.train_tokenizer(list(self.training_prompts))
        extra[SHEET_FILE] = self._sheet
        extra |= {f"truth-{split}.jsonl": functools.partial(_all_of, file) for split, file in self.truths.items()}
        described = DataSheet(
            "Planted damage",
            source="the user's pictures, damaged by `rahf prepare planted` and rated by simulated annotators",
            license="that of the pictures",
        )
        extra |= described.files(self.summary)
        records = described.watch({split: self._records(split) for split in self.jobs})
        store.write_dataset(target, records, _DESCRIPTION, extra=extra)
        return self.summary

    def _records(self, split: str) -> Iterator[Record]:
        of_split = self.jobs[split]
        for job, one in zip(of_split, self.makers[split](of_split)):
            self.summary.count(split, "records")
            if isinstance(one, Refused):
                self.summary.count(split, one.kind)
                self.refused.append({"file": job.picture.name, "copy": job.copy, "kind": one.kind, "reason": str(one)})
            else:
                self._note(split, one)
                yield one.record
            self.advance("planting damage", self.summary.total("records"), sum(map(len, self.jobs.values())))
        if split == "train" and not self.summary.splits["train"]["joined"]:
            reasons = [line["reason"] for line in self.refused if line["file"] is not None]
            raise DatasetError(f"no picture can be trained on: {len(reasons)} were refused. First reason: {reasons[0]}")

    def _note(self, split: str, one: Example) -> None:
        record, truth = one.record, one.truth
        self.truths[split].write(json.dumps(truth, separators=(",", ":")).encode() + b"\n")
        rows = ["joined", *(label for label in (*SCORES, *HEATMAPS, "words") if label not in missing_labels(record))]
        rows += sorted({region["kind"] for region in truth["damage"]}) or ["no damage"]
        for row in (*rows, *dict.fromkeys(truth["faults"])):
            self.summary.count(split, row)
        if split == "train":
            self.training_prompts[record.prompt] = None
            if len(self.shown) < _ON_SHEET:
                self.shown.append(one)

    def _sheet(self) -> bytes:
        file = io.BytesIO()
        sheet.contact_sheet(self.shown).save(file, "PNG")
        return file.getvalue()


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
