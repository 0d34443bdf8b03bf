"""Which line of a predictions file is about which record of a split."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rahf.comparison.predictions import PredictionFile, PredictionLine, RefusedLine, Unusable
from rahf.core import names
from rahf.text.words import same_prompt


class RecordKey(NamedTuple):
    """What identifies a record, and what its predictions must fit."""

    uid: str
    prompt: str
    words: int  # number of words


class _Index:
    """Records by uid, by the name of their picture, and by prompt."""

    def __init__(self, records: Sequence[RecordKey]):
        self.records = records
        self._uids = {record.uid: place for place, record in enumerate(records)}
        self._stems = _unique((_stem(record.uid), place) for place, record in enumerate(records))
        self._prompts = _unique((same_prompt(record.prompt), place) for place, record in enumerate(records))

    def place(self, line: PredictionLine) -> int:
        """The position of the record that a line is about. Raises Unusable: there is none, or it does not fit."""
        place = self._place(line)
        record = self.records[place]
        if line.prompt is not None and same_prompt(line.prompt) != same_prompt(record.prompt):
            raise Unusable("another prompt", f"prompt {line.prompt!r:.80}, but {record.uid} has {record.prompt!r:.80}")
        if line.word_labels is not None and len(line.word_labels) != record.words:
            raise Unusable(
                "word mismatch", f"{len(line.word_labels)} words, but the prompt of {record.uid} has {record.words}"
            )
        return place

    def _place(self, line: PredictionLine) -> int:
        if line.uid is not None:
            if line.uid not in self._uids:
                raise Unusable("no such example", f"no example of the split has the uid {line.uid!r:.80}")
            return self._uids[line.uid]
        if line.image is not None:
            place = self._uids.get(line.image, self._stems.get(_stem(line.image)))
            if place is None:
                raise Unusable("no such example", f"no example, or more than one, is named as {line.image!r:.80}")
            return place
        place = self._prompts.get(same_prompt(line.prompt or ""))
        if place is None:
            raise Unusable("no such example", f"no example, or more than one, has the prompt {line.prompt!r:.80}")
        return place


def match(file: PredictionFile, records: Sequence[RecordKey]) -> tuple[dict[int, PredictionLine], list[RefusedLine]]:
    """Finds the record of every line: by `uid`, else by the name of the picture, else by a prompt that occurs once.

    Args:
      file: of a model's predictions.
      records: of a split, in order.

    Returns:
      The lines by position in the split, and the refused ones: those of the file, and those that fit no record.
    """
    index = _Index(records)
    lines: dict[int, PredictionLine] = {}
    refused = list(file.refused)
    for line in file.lines:
        try:
            place = index.place(line)
            if place in lines:
                raise Unusable("twice", f"line {lines[place].number} is about {records[place].uid!r:.80}, too")
            lines[place] = line
        except Unusable as error:
            refused.append(RefusedLine(line.number, error.kind, names.one_line(error, 300)))
    return lines, sorted(refused)


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name.replace("\\", "/")))[0]


def _unique(pairs: Iterable[tuple[str, int]]) -> Mapping[str, int]:
    """The pairs whose key occurs once."""
    places: dict[str, list[int]] = {}
    for key, place in pairs:
        places.setdefault(key, []).append(place)
    return {key: found[0] for key, found in places.items() if len(found) == 1}
