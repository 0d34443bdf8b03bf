"""`rahf prepare feedback`: a user's own feedback, a JSONL file and a folder of pictures → a prepared dataset."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from rich.text import Text

from data_pipelines import store
from data_pipelines.feedback import labels, lines, splits
from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.index import Index, IndexedLine
from data_pipelines.feedback.opinions import Opinions, read_opinions
from data_pipelines.feedback.summary import LABELS, NO_SPLIT, FeedbackSummary
from data_pipelines.prepare.counts import Refused, print_report, stored_counts, summary_files
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import Advance, progress_bars
from data_pipelines.prepare.stored_images import storable
from data_pipelines.prepare.vocabulary import read_vocabulary
from data_pipelines.store.records import Record, missing_labels
from rahf import images as images_lib
from rahf import text
from rahf.core import names, terminal
from rahf.core.batch import HEATMAPS
from rahf.core.errors import DatasetError

_PLAN_VERSION = 2  # raise it when a change lets the same inputs give other bytes
_MOST_MAP_SIZE = 4096  # pixels
_DESCRIPTION = (
    "Feedback on generated images, consolidated by the rules of RichHF-18K. "
    "Scores 0..1, high = good; heatmaps 0..255, high = bad; word labels 1 = aligned, 0 = misaligned."
)


def prepare(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    out: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    map_size: int | None = None,
    dev: float = 0.1,
    test: float = 0.1,
    progress: bool = True,
) -> FeedbackSummary:
    """Makes a dataset for `data_pipelines.store.open_split` out of a user's own feedback.

    The format of a line is described in ``docs/data.md``. For each of the seven labels only the annotators count who
    gave it. Lines that cannot be used are counted and listed in ``OUT/refused.jsonl``. The same inputs give the
    same bytes; a finished run with unchanged inputs returns at once. One picture is in memory at a time.

    Args:
      annotations: JSONL file, a line per picture.
      images: folder that the paths in the lines start from; nothing outside it is read.
      out: directory to make; a dataset in its place is replaced.
      tokenizer: SentencePiece vocabulary to put beside the data; default: a small one is trained on the training
        prompts.
      map_size: side of all maps in pixels; None: see `data_pipelines.feedback.labels.heatmaps`.
      dev, test: shares of the prompts to hold out, where lines have no field ``split``.
      progress: print progress and, at the end, the table.

    Returns:
      The counts.

    Raises:
      DatasetError: wrong arguments or files, every line was refused, or there is nothing to train on.
    """
    target = pathlib.Path(os.path.abspath(out))
    store.check_replaceable(target)
    splits.check_shares(dev, test)
    if map_size is not None and not 1 <= map_size <= _MOST_MAP_SIZE:
        raise DatasetError(f"--map-size {map_size}: expected 1..{_MOST_MAP_SIZE} pixels")
    console = terminal.console(quiet=not progress)
    vocabulary = read_vocabulary(tokenizer)
    folder, file = Folder(images), pathlib.Path(annotations)
    index = Index(file, folder, dev, test)
    vocabulary_digest = hashlib.sha256(vocabulary).hexdigest() if vocabulary else None
    inputs = [_PLAN_VERSION, index.digest, vocabulary_digest, map_size, dev, test]
    plan = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    summary = stored_counts(FeedbackSummary, target, plan)
    if summary is not None:
        console.print(Text(names.one_line(f"{target} is complete and its inputs have not changed")), soft_wrap=True)
    else:
        with progress_bars(console) as advance:
            summary = _Assembly(file, folder, index, map_size, advance).write(target, vocabulary, plan, dev, test)
    print_report(console, summary, target)
    return summary


class _Assembly:
    """Second pass: turns lines into records, and counts what is used and refused."""

    def __init__(self, file: pathlib.Path, folder: Folder, index: Index, map_size: int | None, advance: Advance):
        self.file, self.folder, self.index, self.map_size, self.advance = file, folder, index, map_size, advance
        self.summary = FeedbackSummary()
        self.refused: list[dict[str, Any]] = []
        self.prompts: dict[str, None] = {}  # of the training examples; in order, without repetition

    def write(
        self, target: pathlib.Path, vocabulary: bytes | None, plan: str, dev: float, test: float
    ) -> FeedbackSummary:
        """Writes the dataset.

        Raises:
          DatasetError: nothing to train on.
        """
        index = self.index
        self.summary = FeedbackSummary(
            dev=dev,
            test=test,
            sources=index.sources,
            prompts_in_two=index.prompts_in_two,
            pictures_in_two=index.pictures_in_two,
        )
        for split in ("train", *index.entries, *([NO_SPLIT] if index.refused else [])):
            self.summary.add_split(split)
        for number, kind, reason in index.refused:
            self.summary.count(NO_SPLIT, "records")
            self._refuse(NO_SPLIT, number, None, kind, reason)
        sheet = DataSheet(f"Feedback in {self.file.name}", source=os.fspath(self.file), license="yours")
        extra = {**summary_files(plan, self.summary, self.refused), **sheet.files(self.summary)}
        # The vocabulary is learnt from the prompts of the training examples that were written.
        extra[store.TOKENIZER_FILE] = lambda: vocabulary or text.train_tokenizer(list(self.prompts))
        records = {split: self._records(split) for split in ("train", *(s for s in index.entries if s != "train"))}
        annotators = tuple(f"annotator_{name}" for name in HEATMAPS)
        store.write_dataset(target, sheet.watch(records), _DESCRIPTION, extra=extra, optional=annotators)
        return self.summary

    def _records(self, split: str) -> Iterator[Record]:
        with lines.open_file(self.file) as file:
            for entry in self.index.entries.get(split, ()):
                self.summary.count(split, "records")
                try:
                    record = self._record(file, split, entry)
                except Refused as why:
                    self._refuse(split, entry.number, entry.uid, why.kind, str(why))
                else:
                    yield record
                self.advance("writing records", self.summary.total("records"), len(self.index))
        if split == "train" and not self.summary.splits["train"]["joined"]:
            raise DatasetError(self._nothing_to_train_on())

    def _record(self, file: BinaryIO, split: str, entry: IndexedLine) -> Record:
        if self.index.owners[entry.uid] != entry.number:
            raise Refused(
                "duplicates",
                f"line {self.index.owners[entry.uid]} has the same uid or picture; put all annotators of a picture "
                "into one line, or give each of its prompts a 'uid' of its own",
            )
        file.seek(entry.offset)
        line = lines.parse(file.readline())
        words = tuple(text.split_words(line.prompt))
        opinions = read_opinions(line.tree, len(words))
        if opinions.missing():
            unread = f"; not known here: {', '.join(opinions.unread)}" if opinions.unread else ""
            raise Refused(
                "no label", f"neither annotators nor the line itself say anything of the picture{unread:.200}"
            )
        image, size = self._picture(line)
        shown = labels.shown_size(line.tree, size)
        maps = labels.heatmaps(opinions, shown, self.folder, self.map_size)
        record = Record(
            uid=line.uid,
            prompt=line.prompt,
            words=words,
            word_labels=labels.word_labels(opinions),
            image=image,
            scores=labels.scores(opinions),
            **maps,
            **labels.annotator_maps(opinions, shown, self.map_size),
        )
        self._note(split, record, opinions, shown)
        return record

    def _picture(self, line: lines.FeedbackLine) -> tuple[bytes, labels.Size]:
        """What to store of the picture, and its upright size."""
        name = line.image or self.folder.picture_of(line.uid)
        try:
            image = storable(self.folder.read(name, "image"), name)
        except images_lib.ImageError as error:
            raise Refused("undecodable", str(error)) from error
        header = images_lib.check_header(image)
        return image, (header.width, header.height)

    def _note(self, split: str, record: Record, opinions: Opinions, shown: labels.Size) -> None:
        self.summary.count(split, "joined")
        missing = missing_labels(record)
        for label in LABELS:
            if label not in missing:
                self.summary.count(split, label)
        if labels.points_outside(opinions, shown):
            self.summary.count(split, "points outside the picture")
        for name in opinions.unread:
            self.summary.note_unread(name)
        if split == "train":
            self.prompts[record.prompt] = None

    def _refuse(self, split: str, number: int, uid: str | None, kind: str, reason: str) -> None:
        self.summary.count(split, kind)
        self.refused.append({"file": self.file.name, "line": number, "uid": uid, "kind": kind, "reason": reason})

    def _nothing_to_train_on(self) -> str:
        counts = {split: len(entries) for split, entries in self.index.entries.items() if split != "train"}
        others = "".join(f", {count} are in {split}" for split, count in counts.items())
        message = (
            f"{self.file}: no line can be trained on: {len(self.refused)} of {len(self.index)} were refused{others}"
        )
        if counts and not self.index.entries.get("train"):
            message += "; give more prompts, or smaller shares with --dev and --test"
        ordered = sorted(self.refused, key=lambda line: line["line"])
        first = "".join(f"\n  line {line['line']}: {line['reason']}" for line in ordered[:5])
        hint = "\nA JSONL file has one object per line, not a list of them." if self._is_a_list() else ""
        return message + (f". First reasons:{first}" if first else "") + hint

    def _is_a_list(self) -> bool:
        with lines.open_file(self.file) as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
