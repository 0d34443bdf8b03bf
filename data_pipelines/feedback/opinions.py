"""What people said of one picture, checked and sorted by label, so that each label counts only those who gave it.

A missing field, or null, means that nobody was asked; an empty list of points means that nothing was found wrong.
"""

from __future__ import annotations

import math
from typing import Any, Mapping, NamedTuple

from data_pipelines.feedback.lines import FIELDS, check_text
from data_pipelines.prepare.consolidate import HIGHEST, LOWEST, Point, RawAnnotation
from data_pipelines.prepare.counts import Refused
from rahf.core.batch import HEATMAPS, SCORES

#: Heatmap → field of an annotator.
POINT_FIELDS = {"implausibility": "points_implausible", "misalignment": "points_misaligned"}
_FARTHEST = 1e6  # pixels; a point beyond that is no point


class Opinions(NamedTuple):
    """By label; a label of which nobody said anything is not in it."""

    ratings: dict[str, list[int]]  # score → 1..5 of each annotator who gave it
    words: list[tuple[int, ...]]  # word labels of each annotator who gave them
    clicks: dict[str, list[list[Point]]]  # heatmap → points of each annotator who was asked
    scores: dict[str, float]  # score → 0..1, given for the picture as a whole
    word_labels: tuple[int, ...] | None  # the same of the words
    maps: dict[str, str]  # heatmap → relative path
    unread: tuple[str, ...]  # fields that mean nothing here

    def missing(self) -> bool:
        """Whether nobody said anything."""
        return not (self.ratings or self.words or self.clicks or self.scores or self.maps) and self.word_labels is None


def read(tree: Mapping[str, Any], words: int) -> Opinions:
    """Takes what people said from a parsed line.

    Args:
      tree: the line.
      words: number of words of its prompt.

    Raises:
      Refused: something is not of its kind, does not fit the words, or is said twice.
    """
    unread = [str(name) for name in tree if name not in FIELDS]
    found = Opinions({}, [], {}, _scores(tree, unread), _words(tree, "word_labels", words), _maps(tree), ())
    annotators = tree.get("annotators")
    for number, one in enumerate(_kind(annotators, list, "annotators") if annotators is not None else ()):
        _add(found, _kind(one, dict, f"annotators[{number}]"), f"annotators[{number}]", words, unread)
    _check_once(found)
    return found._replace(unread=tuple(dict.fromkeys(unread)))


def _add(found: Opinions, one: Mapping[str, Any], where: str, words: int, unread: list[str]) -> None:
    """Sorts in what one annotator said."""
    unread += [f"annotators.{name}" for name in one if name not in RawAnnotation._fields]
    for name, value in _named(one, f"{where}.scores", unread).items():
        if isinstance(value, bool) or value not in range(LOWEST, HIGHEST + 1):
            raise Refused("bad score", f"{where}: {name} is {value!r:.40}, expected an integer {LOWEST}..{HIGHEST}")
        found.ratings.setdefault(name, []).append(int(value))
    for heatmap, field in POINT_FIELDS.items():
        if one.get(field) is not None:
            found.clicks.setdefault(heatmap, []).append(_points(one[field], f"{where}.{field}"))
    labels = _words(one, f"{where}.word_labels", words)
    if labels is not None:
        found.words.append(labels)


def _check_once(found: Opinions) -> None:
    twice = [name for name in SCORES if name in found.ratings and name in found.scores]
    twice += [name for name in HEATMAPS if name in found.clicks and name in found.maps]
    twice += ["word_labels"] if found.words and found.word_labels is not None else []
    if twice:
        raise Refused("malformed", f"{', '.join(twice)}: both annotators and the line itself say it; keep one")


def _scores(tree: Mapping[str, Any], unread: list[str]) -> dict[str, float]:
    scores = {}
    for name, value in _named(tree, "scores", unread).items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:  # also true for NaN
            hint = "; 1..5 belongs into 'annotators'" if isinstance(value, (int, float)) and 1 < value <= 5 else ""
            raise Refused("bad score", f"{name} is {value!r:.40}, expected a number in [0, 1]{hint}")
        scores[name] = float(value)
    return scores


def _named(tree: Mapping[str, Any], where: str, unread: list[str]) -> dict[str, Any]:
    """The scores that are there, by name."""
    given = tree.get("scores")
    if given is None:
        return {}
    unread += [f"scores.{name}" for name in _kind(given, dict, where) if name not in SCORES]
    return {name: given[name] for name in SCORES if given.get(name) is not None}


def _words(tree: Mapping[str, Any], where: str, count: int) -> tuple[int, ...] | None:
    labels = tree.get("word_labels")
    if labels is None:
        return None
    if any(not isinstance(label, int) or label not in (0, 1) for label in _kind(labels, list, where)):
        raise Refused("word/label mismatch", f"{where} are {labels!r:.80}, expected 0 (misaligned) and 1 (aligned)")
    if len(labels) != count:
        raise Refused("word/label mismatch", f"{where}: {len(labels)} labels for {count} words of the prompt")
    return tuple(map(int, labels))


def _maps(tree: Mapping[str, Any]) -> dict[str, str]:
    maps = {name: tree[name] for name in HEATMAPS if tree.get(name) is not None}
    for name, path in maps.items():
        check_text(name, path)
    return maps


def _points(given: Any, where: str) -> list[Point]:
    points = []
    for point in _kind(given, list, where):
        if not isinstance(point, list) or len(point) != 2 or not all(map(_is_coordinate, point)):
            raise Refused("malformed", f"{where}: {point!r:.80}, expected [x, y] in pixels of the picture")
        points.append((point[0], point[1]))
    return points


def _is_coordinate(value: Any) -> bool:
    # A whole number may be too large for a float: compared before it is asked whether it is finite.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= _FARTHEST and math.isfinite(value)


def _kind(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        names = {list: "a list", dict: "an object"}
        raise Refused("malformed", f"{where} is {value!r:.80}, expected {names[kind]}")
    return value
