"""Second half of a preparation: decodes labels, joins them with pictures and captions, and writes the dataset."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import store
from data_pipelines.prepare.counts import Refused, summary_files
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import Advance
from data_pipelines.richhf18k import tfrecord
from data_pipelines.richhf18k.gather import Pictures
from data_pipelines.richhf18k.labels import ReleasedLabels, read_labels, uid_of
from data_pipelines.richhf18k.summary import RichHFSummary
from data_pipelines.store import tf_example
from data_pipelines.store.records import Record, missing_labels
from rahf import text
from rahf.core.errors import DatasetError

VOCABULARY_SIZE = 4096  # of the vocabulary that is trained if none is named
_DESCRIPTION = (
    "Rich human feedback on generated images (RichHF-18K, Liang et al. 2024), joined with pictures and "
    "prompts. Scores 0..1, high = good; heatmaps 0..255, high = bad; word labels 1 = aligned, 0 = misaligned."
)
_SOURCE = "labels of google-research-datasets/richhf-18k, joined with pictures and captions of Pick-a-Pic v1"
#: For every uid the one record (split, number in the file) that may use it.
Owners = Mapping[str, tuple[str, int]]


class Assembly:
    """Turns label files into records, and counts what is used and refused."""

    def __init__(self, files: Mapping[str, pathlib.Path], owners: Owners, pictures: Pictures):
        """Args: label file by split, the owner of each uid, pictures and captions."""
        self.files, self.owners, self.pictures = files, owners, pictures
        self.summary = RichHFSummary(unreadable=list(pictures.unreadable))
        self.refused: list[dict[str, Any]] = [
            {"file": None, "record": None, "uid": None, "kind": "unreadable shard", "reason": reason}
            for reason in pictures.unreadable
        ]
        for split in files:
            self.summary.add_split(split)

    def write(self, target: pathlib.Path, vocabulary: bytes | None, plan: str, advance: Advance) -> RichHFSummary:
        """Writes the dataset.

        Args:
          target: directory to make.
          vocabulary: serialized SentencePiece model; None: train one on the training prompts.
          plan: digest of all inputs, stored with the summary.
          advance: called with the progress.

        Raises:
          DatasetError: nothing could be joined, or `target` is in use for something else.
        """
        if not any(self.pictures.captions.values()):
            raise DatasetError(self._nothing_found())
        sheet = DataSheet("RichHF-18K", source=_SOURCE, license="none stated by google-research-datasets/richhf-18k")
        extra = {**summary_files(plan, self.summary, self.refused), **sheet.files(self.summary)}
        splits = sheet.watch({split: self._records(split, advance) for split in self.files})
        try:
            store.write_dataset(target, splits, _DESCRIPTION, vocabulary or self._vocabulary(), extra)
        except DatasetError as error:
            if self.summary.total("joined"):
                raise
            first = "\n".join(
                f"  {line['file']}, record {line['record']}: {line['reason']}" for line in self.refused[:5]
            )
            raise DatasetError(
                f"all {self.summary.total('records')} records were refused. First reasons:\n{first}"
            ) from error
        return self.summary

    def _vocabulary(self) -> bytes:
        usable = {uid: caption for uid, caption in self.pictures.captions.items() if caption}
        train = [caption for uid, caption in usable.items() if self.owners[uid][0] == "train"]
        return text.train_tokenizer(train or list(usable.values()), VOCABULARY_SIZE)

    def _records(self, split: str, advance: Advance) -> Iterator[Record]:
        for entry in tfrecord.read_examples(self.files[split]):
            self.summary.count(split, "records")
            uid = None
            try:
                if entry.features is None:
                    raise Refused("CRC error or cut off", entry.problem)
                uid = uid_of(entry.features)
                record = self._join(split, entry.number, uid, entry.features)
            except Refused as why:
                self._refuse(split, entry, uid, why)
            else:
                yield record
            advance("writing records", self.summary.total("records"), len(self.owners))

    def _refuse(self, split: str, entry: tfrecord.TFRecordEntry, uid: str | None, why: Refused) -> None:
        file = self.files[split].name
        self.summary.count(split, why.kind)
        if entry.fatal:
            self.summary.cut_short.append(f"{file}: {why}")
        self.refused.append({"file": file, "record": entry.number, "uid": uid, "kind": why.kind, "reason": str(why)})

    def _join(self, split: str, number: int, uid: str, features: Mapping[str, tf_example.Values]) -> Record:
        if self.owners[uid] != (split, number):
            owner_split, owner_number = self.owners[uid]
            raise Refused("duplicates", f"{self.files[owner_split].name}, record {owner_number}, has the same picture")
        image, prompt = self.pictures.find(uid)
        labels = read_labels(features)
        words = tuple(text.split_words(prompt))
        if labels.word_labels is not None and len(words) != len(labels.word_labels):
            raise Refused(
                "word/label mismatch",
                f"{len(words)} words but {len(labels.word_labels)} labels: {prompt!r:.200}",
            )
        self._remark(split, uid, labels)
        return Record(
            uid,
            prompt,
            words,
            labels.word_labels,
            image,
            labels.implausibility,
            labels.misalignment,
            labels.scores,
        )

    def _remark(self, split: str, uid: str, labels: ReleasedLabels) -> None:
        self.summary.count(split, "joined")
        self.summary.map_pixels += labels.pixels
        self.summary.map_pixels_moved += labels.moved_far
        if missing_labels(labels):
            self.summary.count(split, "partial labels")
        if uid in self.pictures.again:
            self.summary.count(split, "picture found again")

    def _nothing_found(self) -> str:
        wanted = next(iter(self.owners))
        reasons = "".join(f"\n  {reason}" for reason in self.pictures.unreadable[:5])
        if self.pictures.captions:
            example = next(iter(self.pictures.captions))
            return (
                f"{len(self.pictures.captions)} pictures were found (one is {example}) but no caption of any; "
                f'name a captions file with --captions (lines like {{"uid": …, "caption": …}}){reasons}'
            )
        return (
            f"nothing could be joined: the labels name {len(self.owners)} pictures (one is {wanted}), and "
            "none of them is under --images. Check that --images names Pick-a-Pic v1 (shards with "
            "image_0_uid, jpg_0, …) or folders with files <uid>.jpg, and that they are complete."
            f"{reasons}"
        )
