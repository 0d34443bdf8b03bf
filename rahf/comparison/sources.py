"""What is compared: a model, or predictions of any program. Both give `Predicted` for examples of one split."""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipelines.loading.labels import Labels
from rahf.comparison.matching import RecordKey, match
from rahf.comparison.predictions import (
    REFUSALS,
    Predicted,
    PredictionFile,
    PredictionLine,
    RefusedLine,
    is_predictions,
    read_predictions,
)
from rahf.core import names
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.critic import loading

_CHUNK = 64  # pictures that are in memory at a time
_BATCH = 16


class Coverage(NamedTuple):
    """What a source predicts of each of N examples."""

    scores: np.ndarray  # bool [N,4]
    heatmaps: np.ndarray  # bool [N,2]
    words: np.ndarray  # bool [N]


class Source(Protocol):
    """One of the compared.

    Attributes:
      name: for people; differs from those of the others.
      about: which model or file it is, in words.
      notes: what a reader must know besides the numbers.
      refused: lines of a file that are not used.
    """

    name: str
    about: str
    notes: list[str]
    refused: list[RefusedLine]

    def coverage(self, labels: Labels) -> Coverage:
        """What it predicts of the examples of a split."""
        ...

    def predict(self, labels: Labels, places: Sequence[int]) -> Iterator[Predicted]:
        """Its predictions of some examples, in their order."""
        ...


class ModelSource:
    """A model of `rahf.load`. Words are judged by constrained scoring."""

    def __init__(self, critic: Any, name: str):
        self.critic, self.name = critic, name
        self.about = critic.model_id
        self.notes = [note] if (note := critic.outputs.note()) else []
        self.refused: list[RefusedLine] = []

    def coverage(self, labels: Labels) -> Coverage:
        """The same for every example."""
        outputs, count = self.critic.outputs, len(labels)
        return Coverage(
            np.tile(np.array(outputs.score_mask), (count, 1)),
            np.tile(np.array(outputs.heatmap_mask), (count, 1)),
            np.full(count, outputs.keywords),
        )

    def predict(self, labels: Labels, places: Sequence[int]) -> Iterator[Predicted]:
        """Runs the network on the stored pictures and prompts."""
        for start in range(0, len(places), _CHUNK):
            records = [labels.source[place] for place in places[start : start + _CHUNK]]
            feedback = self.critic.iterate([r.image for r in records], [r.prompt for r in records], batch_size=_BATCH)
            for _, one in feedback:
                yield of_feedback(one)


def of_feedback(feedback: Any) -> Predicted:
    """The numbers of a `Feedback`. A word that the network did not read counts as aligned."""
    maps = tuple(
        feedback.network_heatmaps[:, :, kind] if feedback.has_heatmap(name) else None
        for kind, name in enumerate(HEATMAPS)
    )
    scores = np.array([feedback.scores[name] for name in SCORES], np.float32)
    if feedback.decided_by == "nothing":
        return Predicted(scores, maps)
    labels = tuple(int(label) for label in feedback.word_labels)
    return Predicted(scores, maps, labels, tuple(float(p) for p in np.nan_to_num(feedback.word_probabilities)))


class FileSource:
    """A predictions file."""

    def __init__(self, file: PredictionFile, name: str):
        self.file, self.name = file, name
        self.about = f"predictions in {names.one_line(pathlib.PurePath(file.path).name, 80)}"
        self.refused = list(file.refused)
        self.notes: list[str] = []
        self._lines: Mapping[int, PredictionLine] | None = None

    def lines(self, labels: Labels) -> Mapping[int, PredictionLine]:
        """The usable lines by position in the split."""
        if self._lines is None:
            self._lines, self.refused = match(self.file, record_keys(labels))
            if not self._lines:
                raise ArgumentError(
                    f"{self.file.path}: none of its {len(self.file.lines)} lines is about an example of this split; "
                    f"the first refused: line {self.refused[0].line}: {self.refused[0].reason}"
                )
            self.notes = self._notes(len(labels))
        return self._lines

    def _notes(self, total: int) -> list[str]:
        assert self._lines is not None
        notes = [f"{len(self._lines)} of {total} examples are predicted"] if len(self._lines) < total else []
        if self.refused:
            counts = Counter(one.kind for one in self.refused)
            listed = ", ".join(f"{kind} {counts[kind]}" for kind in REFUSALS if counts[kind])
            first = self.refused[0]
            notes.append(f"{len(self.refused)} lines refused ({listed}); line {first.line}: {first.reason}")
        if self.file.unread:
            listed = ", ".join(f"{names.one_line(n, 40)} {count}" for n, count in sorted(self.file.unread.items())[:8])
            notes.append(f"fields that are not read: {listed}")
        return notes

    def coverage(self, labels: Labels) -> Coverage:
        """As the lines have it."""
        count = len(labels)
        coverage = Coverage(
            np.zeros((count, len(SCORES)), bool), np.zeros((count, len(HEATMAPS)), bool), np.zeros(count, bool)
        )
        for place, line in self.lines(labels).items():
            coverage.scores[place] = np.isfinite(line.scores)
            coverage.heatmaps[place] = [path is not None for path in line.maps]
            coverage.words[place] = line.word_labels is not None
        return coverage

    def predict(self, labels: Labels, places: Sequence[int]) -> Iterator[Predicted]:
        """Reads the maps of one example at a time; an example without a line has no prediction at all."""
        lines = self.lines(labels)
        for place in places:
            yield lines[place].read() if place in lines else NOTHING


NOTHING = Predicted(np.full(len(SCORES), math.nan, np.float32), (None,) * len(HEATMAPS))


def record_keys(labels: Labels) -> list[RecordKey]:
    """What identifies the records of a split, in order."""
    records = (labels.source[place] for place in range(len(labels)))
    return [RecordKey(record.uid, record.prompt, len(record.words)) for record in records]


def open_sources(paths: Sequence[str], predictions: Sequence[str] = ()) -> list[ModelSource | FileSource]:
    """Opens what is compared, in order.

    Args:
      paths: models as of `rahf.load`; predictions files by their ending .jsonl.
      predictions: predictions files, whatever their names.

    Raises:
      ArgumentError: none at all.
      DataError, CheckpointError, ExportError: one cannot be read.
    """
    if not paths and not predictions:
        raise ArgumentError("nothing to compare: give models, or --predictions FILE.jsonl")
    sources: list[ModelSource | FileSource] = []
    taken: set[str] = set()
    # Files first: they are refused in a moment, models take seconds to load.
    files = {
        path: read_predictions(path) for path in (*paths, *predictions) if path in predictions or is_predictions(path)
    }
    for path in (*paths, *predictions):
        if path in files:
            sources.append(FileSource(files[path], _free(files[path].name, taken)))
        else:
            critic = loading.load(path)
            sources.append(ModelSource(critic, _free(pathlib.PurePath(path).name or str(path), taken)))
    return sources


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken."""
    name, number, base = names.one_line(name, 60) or "model", 1, names.one_line(name, 60) or "model"
    while name in taken:
        number += 1
        name = f"{base} ({number})"
    taken.add(name)
    return name
