"""`rahf prepare rapidata`: Rapidata's rich human feedback → a prepared dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from data_pipelines.prepare import arrow_maps, dataset_source, from_shards, shards, splits
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.datasheet import small_map
from data_pipelines.prepare.stored_images import encode_smooth_map, storable
from data_pipelines.prepare.vocabulary import read_vocabulary
from data_pipelines.rapidata import word_scores
from data_pipelines.store.records import Record, missing_labels
from rahf import images, text
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import DatasetError, ImageError
from rahf.images.resize import resize

#: The dataset that `--hub` without a name means, and the licence that its card states.
DATASET, LICENSE = "Rapidata/text-2-image-Rich-Human-Feedback", "apache-2.0"
#: Our score → Rapidata's; `overall` was not asked.
SCORE_COLUMNS = {"plausibility": "coherence_score", "alignment": "alignment_score", "aesthetics": "style_score"}
#: Our heatmap → Rapidata's.
MAP_COLUMNS = {"implausibility": "coherence_heatmap", "misalignment": "alignment_heatmap"}
LOWEST, HIGHEST = 1.0, 5.0
_LABELS = (*SCORES, *HEATMAPS, "words")
_PLAN_VERSION = 2  # raise it when a change lets the same inputs give other bytes
_SLACK = 0.02  # largest relative difference between the aspect ratios of a map and its picture


@dataclasses.dataclass
class RapidataCounts(from_shards.ShardCounts):
    """Counts of a preparation. The rows after the refusals count the records that have each label.

    Attributes:
      people: weights of the people asked about the words of one picture, summed; 1: the scores are shares.
      dev, test: shares by which prompts were split.
    """

    title: ClassVar[str] = "Rapidata"
    refusals: ClassVar[tuple[str, ...]] = (
        "missing image",
        "missing prompt",
        "undecodable",
        "duplicates",
        "bad score",
        "bad word scores",
        "bad map",
        "map of another shape",
        "no label",
        "malformed",
    )
    notes: ClassVar[tuple[str, ...]] = (
        *_LABELS,
        "words matched by edit distance",
        "words that do not match the prompt",
        "map of another size",
    )
    people: float = 0.0
    dev: float = 0.0
    test: float = 0.0

    def remarks(self) -> list[str]:
        lines = super().remarks()
        lines.append(f"split by a hash of the prompt (dev {self.dev:.1%}, test {self.test:.1%})")
        if self.people > 1:
            lines.append(
                f"word scores are weights of people: divided by {self.people:.4g}, the sum where all agreed, they are "
                "shares (--people)"
            )
        return lines


class RapidataReader:
    """Rows → records."""

    layout = shards.RAPIDATA
    optional = ("word_shares",)
    description = (
        "Rich human feedback on generated images, collected by Rapidata. Coherence is called plausibility, style "
        "aesthetics. Scores 0..1, high = good; heatmaps 0..255, high = bad; word labels 1 = aligned, 0 = misaligned, "
        "word_shares the share of people who called a word aligned."
    )

    def __init__(self, dev: float, test: float, people: float | None):
        self.dev, self.test, self.people = dev, test, people
        self.scales: dict[tuple[str, str], float] = {}

    def survey(self, opened: Sequence[shards.Shard], counts: RapidataCounts) -> None:
        """Finds the scale of each map, the number of people, and labels that no shard has."""
        for shard in opened:
            for role in {*MAP_COLUMNS.values()} & {*shard.columns}:
                self.scales[shard.path, role] = shards.map_scale(shard, role)
        if self.people is None:
            self.people = word_scores.people_asked(_all_scores(opened))
        counts.people, counts.dev, counts.test = self.people, self.dev, self.test
        columns = {role for shard in opened for role in shard.columns}
        for name, role in {**SCORE_COLUMNS, **MAP_COLUMNS, "words": "word_scores"}.items():
            if role not in columns and f"{role}_norm" not in columns:
                counts.absent.append(f"{name}: {role} is no column")
        counts.absent.append("overall: it was not asked")

    def convert(self, row: shards.Row) -> from_shards.Converted:
        """One row → a record. Raises Refused."""
        encoded, _ = row.image()
        if not encoded:
            raise Refused("missing image", "the row has no picture")
        prompt = row.text("prompt")
        if not prompt.strip():
            raise Refused("missing prompt", "the row has no prompt")
        row.uid = uid = hashlib.sha256(hashlib.sha256(encoded).digest() + prompt.encode()).hexdigest()[:24]
        try:
            image = storable(encoded, f"picture {uid}")
        except ImageError as error:
            raise Refused("undecodable", str(error)) from error
        header = images.check_header(image)
        notes: list[str] = []
        greys = {name: self._map(row, role, (header.height, header.width), notes) for name, role in MAP_COLUMNS.items()}
        if len({grey.shape for grey in greys.values() if grey is not None}) > 1:  # evaluations want both of one size
            greys = {n: None if g is None else resize(g, (header.height, header.width)) for n, g in greys.items()}
        words = tuple(text.split_words(prompt))
        soft = self._words(row, words, notes)
        record = Record(
            uid=uid,
            prompt=prompt,
            words=words,
            word_labels=None if soft is None else soft.labels,
            image=image,
            scores=np.array([_score(row, name) for name in SCORES], np.float32),
            word_shares=None if soft is None else soft.shares,
            **{name: None if grey is None else encode_smooth_map(grey) for name, grey in greys.items()},
        )
        missing = missing_labels(record)
        if len(missing) == len(_LABELS):
            raise Refused("no label", "nobody was asked anything of this picture")
        split = splits.by_hash(splits.key(prompt), self.dev, self.test)
        present = (one for one in _LABELS if one not in missing)
        small = {name: small_map(grey) for name, grey in greys.items() if grey is not None}
        return from_shards.Converted(split, record, (*present, *notes), small)

    def _map(self, row: shards.Row, role: str, size: tuple[int, int], notes: list[str]) -> np.ndarray | None:
        value = row.map(role)
        if value is None:
            return None
        values = arrow_maps.decoded(value, role)
        if values.shape != size:
            (h, w), (height, width) = values.shape, size
            if abs(h * width - w * height) > max(_SLACK * h * width, max(width, height)):
                raise Refused(
                    "map of another shape",
                    f"{role} has {w} x {h} values, the picture {width} x {height} pixels, which is another shape",
                )
            if "map of another size" not in notes:
                notes.append("map of another size")
        return arrow_maps.to_grey(values, self.scales[row.shard.path, role], role)

    def _words(self, row: shards.Row, words: tuple[str, ...], notes: list[str]) -> word_scores.SoftWords | None:
        scores = word_scores.parse(row.text("word_scores"))
        if scores is None:
            return None
        soft = word_scores.soft_words(words, scores, self.people or 1.0)
        if soft is None:
            notes.append("words that do not match the prompt")
        elif soft.matched:
            notes.append("words matched by edit distance")
        return soft


def prepare(
    source: dataset_source.DatasetSource,
    out: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    dev: float = 0.05,
    test: float = 0.05,
    people: float | None = None,
    progress: bool = True,
) -> RapidataCounts:
    """Makes a dataset of Rapidata's rich human feedback.

    Coherence becomes plausibility, style aesthetics; a score s of 1..5 becomes (s - 1) / 4; overall is missing. A map
    that is null, empty or nothing but nulls was not asked for and has no label. Word scores become soft labels.

    Args:
      source: the shards.
      out: directory to make; a dataset in its place is replaced.
      tokenizer: SentencePiece vocabulary to put beside the data; default: a small one is trained.
      dev, test: shares of the prompts to hold out, by a hash of the prompt.
      people: weights of the people asked about the words of one picture, summed; None: see
        `word_scores.people_asked`.
      progress: print progress and, at the end, the table.

    Raises:
      DatasetError: shards of another dataset, none that can be read, or nothing that can be used.
    """
    splits.check_shares(dev, test)
    if people is not None and not (math.isfinite(people) and people > 0):
        raise DatasetError(f"--people {people}: expected a number above 0")
    if source.license == dataset_source.NOT_STATED and source.name == DATASET:
        source = source._replace(license=LICENSE)
    return from_shards.prepare(
        source,
        RapidataReader(dev, test, people),
        RapidataCounts(),
        out,
        options=[_PLAN_VERSION, dev, test, people],
        title="Rapidata's rich human feedback",
        vocabulary=read_vocabulary(tokenizer),
        progress=progress,
    )


def _all_scores(opened: Sequence[shards.Shard]) -> Iterator[word_scores.WordScores]:
    for shard in opened:
        for values in shards.readable_values(shard, ["word_scores"]):
            try:
                scores = word_scores.parse(values["word_scores"])
            except Refused:
                continue  # counted when its row is read
            if scores is not None:
                yield scores


def _score(row: shards.Row, name: str) -> float:
    """A score in 0..1; NaN if it is missing."""
    role = SCORE_COLUMNS.get(name)
    value = None if role is None else row.value(role)
    if value is not None:
        if not LOWEST <= value <= HIGHEST:  # also true for NaN
            raise Refused("bad score", f"{role} is {value}, expected a number in [{LOWEST:g}, {HIGHEST:g}]")
        return (value - LOWEST) / (HIGHEST - LOWEST)
    value = None if role is None else row.value(f"{role}_norm")
    if value is None:
        return math.nan
    if not 0 <= value <= 1:
        raise Refused("bad score", f"{role}_norm is {value}, expected a number in [0, 1]")
    return value
