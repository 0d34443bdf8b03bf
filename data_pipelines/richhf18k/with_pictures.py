"""RichHF-18K as parquet shards with the pictures inside, as mirrors on the Hugging Face hub have it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from data_pipelines.prepare import arrow_maps, dataset_source, from_shards, shards
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.splits import PRECEDENCE
from data_pipelines.prepare.stored_images import storable
from data_pipelines.prepare.vocabulary import read_vocabulary
from data_pipelines.richhf18k.labels import (
    MAP_FEATURES,
    SCORE_FEATURES,
    WORD_FEATURE,
    ReleasedLabels,
    read_labels,
)
from data_pipelines.store.records import Record, missing_labels
from rahf import text
from rahf.core.errors import DatasetError, ImageError

#: The mirror that `--hub` without a name means.
MIRROR = "Exploration/richhf_18k_with_images"
_PLAN_VERSION = 1  # raise it when a change lets the same inputs give other bytes


@dataclasses.dataclass
class MirrorCounts(from_shards.ShardCounts):
    """Counts of a preparation from a mirror.

    Attributes:
      map_pixels: pixels of all maps.
      map_pixels_moved: pixels that snapping to the annotators' levels moved by more than 20 grey levels.
    """

    title: ClassVar[str] = "RichHF-18K with pictures"
    refusals: ClassVar[tuple[str, ...]] = (
        "missing image",
        "missing caption",
        "word/label mismatch",
        "undecodable",
        "duplicates",
        "missing field",
        "bad score",
        "bad map",
        "malformed",
    )
    notes: ClassVar[tuple[str, ...]] = ("partial labels", "maps moved to the levels")

    def remarks(self) -> list[str]:
        lines = super().remarks()
        if moved := self.total("maps moved to the levels"):
            lines.append(
                f"warning: maps of {moved} records had pixels more than 20 grey levels away from the annotators' "
                "levels 0, 85, 170, 255 (stored as JPEG?); they were moved to the nearest"
            )
        return lines


class MirrorReader:
    """Rows of a mirror → records, the same ones as of the release joined with Pick-a-Pic."""

    layout = shards.RICHHF
    optional = ()
    description = (
        "Rich human feedback on generated images (RichHF-18K, Liang et al. 2024) with pictures and prompts. "
        "Scores 0..1, high = good; heatmaps 0..255, high = bad; word labels 1 = aligned, 0 = misaligned."
    )

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, int]] = {}
        self.absent: set[tuple[str, str]] = set()  # split and score
        self.scales: dict[tuple[str, str], float] = {}  # shard and map

    def survey(self, opened: Sequence[shards.Shard], counts: from_shards.ShardCounts) -> None:
        """Finds the one row that may use a picture, scores that were not stored, and the scale of each map."""
        nameless = [shard.name for shard in opened if shard.split is None]
        if nameless:
            raise DatasetError(
                f"no split is named in {', '.join(nameless[:3])}: expected names like train-00000-of-00037.parquet, "
                "dev-…, validation-…, test-…, or folders of these names; rename them"
            )
        scored: set[tuple[str, str]] = set()
        order = sorted(opened, key=lambda shard: PRECEDENCE.index(shard.split))
        for shard in order:
            for number, values in enumerate(shards.readable_values(shard, (*SCORE_FEATURES.values(), "filename"))):
                uid = _stem(values["filename"])
                if uid:
                    self.owners.setdefault(uid, (shard.path, number))
                scored |= {(shard.split, name) for name in SCORE_FEATURES.values() if values[name]}
            for role in {*MAP_FEATURES.values()} & {*shard.columns}:
                self.scales[shard.path, role] = shards.map_scale(shard, role)
        for split in dict.fromkeys(shard.split for shard in opened):
            for name, feature in SCORE_FEATURES.items():
                if (split, feature) not in scored:
                    self.absent.add((split, feature))
                    has = any(feature in shard.columns for shard in opened if shard.split == split)
                    why = "is 0 or null in every row" if has else "is no column"
                    counts.absent.append(f"{name} of {split}: {feature} {why}")

    def convert(self, row: shards.Row) -> from_shards.Converted:
        """One row → a record. Raises Refused."""
        encoded, path = row.image()
        uid = _stem(row.value("filename")) or _stem(path)
        if not encoded:
            raise Refused("missing image", "the row has no picture")
        row.uid = uid = uid or hashlib.sha256(encoded).hexdigest()[:24]
        if self.owners.setdefault(uid, (row.shard.path, row.number)) != (row.shard.path, row.number):
            owner, number = self.owners[uid]
            raise Refused("duplicates", f"{pathlib.PurePath(owner).name}, row {number}, has the same picture")
        try:
            image = storable(encoded, f"picture {uid}")
        except ImageError as error:
            raise Refused("undecodable", str(error)) from error
        prompt = row.text("prompt")
        if not prompt.strip():
            raise Refused("missing caption", "the row has no caption")
        labels = self._labels(row)
        words = tuple(text.split_words(prompt))
        if labels.word_labels is not None and len(words) != len(labels.word_labels):
            raise Refused(
                "word/label mismatch", f"{len(words)} words but {len(labels.word_labels)} labels: {prompt!r:.200}"
            )
        record = Record(
            uid, prompt, words, labels.word_labels, image, labels.implausibility, labels.misalignment, labels.scores
        )
        notes = ("partial labels",) * bool(missing_labels(labels)) + ("maps moved to the levels",) * bool(
            labels.moved_far
        )
        return from_shards.Converted(row.shard.split, record, notes)

    def _labels(self, row: shards.Row) -> ReleasedLabels:
        """The labels by the code that reads the release, which gets the same values."""
        features: dict[str, Any] = {}
        for feature in SCORE_FEATURES.values():
            value = row.value(feature)
            if value is not None and (row.shard.split, feature) not in self.absent:
                features[feature] = [_number(feature, value)]
        labels = row.value(WORD_FEATURE)
        if labels is not None:
            features[WORD_FEATURE] = [_word_text(labels).encode()]
        decoded: dict[str, np.ndarray] = {}
        for role in MAP_FEATURES.values():
            value = row.map(role)
            if value is None:
                continue
            scale = self.scales[row.shard.path, role]
            if isinstance(value, bytes) and scale == 255:
                features[role] = [value]
            else:
                decoded[role] = arrow_maps.to_grey(arrow_maps.decoded(value, role), scale, role)
        return read_labels(features, decoded)


def prepare(
    source: dataset_source.DatasetSource,
    out: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    progress: bool = True,
) -> MirrorCounts:
    """Makes a dataset of a copy of RichHF-18K with its pictures inside.

    Shards are read by row group and column, in threads. Rows that cannot be used are counted and listed in
    ``OUT/refused.jsonl``. An interrupted run leaves ``OUT.partial`` behind; the next one goes on there.

    Args:
      source: shards named by split (``train-*.parquet``, ``dev-*`` or ``validation-*``, ``test-*``).
      out: directory to make; a dataset in its place is replaced.
      tokenizer: SentencePiece vocabulary to put beside the data; default: a small one is trained.
      progress: print progress and, at the end, the table.

    Raises:
      DatasetError: shards of another dataset, none that can be read, or nothing that can be used.
    """
    return from_shards.prepare(
        source,
        MirrorReader(),
        MirrorCounts(),
        out,
        options=[_PLAN_VERSION],
        title="RichHF-18K",
        vocabulary=read_vocabulary(tokenizer),
        progress=progress,
    )


def _stem(name: Any) -> str:
    return pathlib.PurePosixPath(str(name)).stem if name else ""


def _number(feature: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused("bad score", f"{feature} is {value!r:.40}, expected a number in [0, 1]")
    return float(value)


def _word_text(labels: Any) -> str:
    """ "1 0 1", whether the column holds text or a list."""
    if isinstance(labels, (list, tuple)):
        return " ".join(
            str(int(one)) if isinstance(one, (bool, float)) and one in (0, 1) else str(one) for one in labels
        )
    return labels.decode(errors="replace") if isinstance(labels, bytes) else str(labels)
