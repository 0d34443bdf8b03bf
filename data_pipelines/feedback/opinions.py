"""The annotations of one picture, checked and sorted by label: each label counts only the annotators who gave it.

A missing field, or null, means that nobody was asked. An empty list of points means that nothing is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.feedback.lines import FIELDS, check_text
from data_pipelines.prepare.consolidate import HIGHEST, LOWEST, Point, RawAnnotation
from data_pipelines.prepare.counts import Refused
from rahf.core.batch import HEATMAPS, SCORES

#: Heatmap → field of an annotator.
POINT_FIELDS = {"implausibility": "points_implausible", "misalignment": "points_misaligned"}
_FARTHEST = 1e6  # pixels; a coordinate beyond that is an error


class Opinions(NamedTuple):
    """By label; labels that nobody gave are left out."""

    ratings: dict[str, list[int]]  # score → 1..5 of each annotator who gave it
    words: list[tuple[int, ...]]  # word labels of each annotator who gave them
    clicks: dict[str, list[list[Point]]]  # heatmap → points of each annotator who was asked
    scores: dict[str, float]  # score → 0..1, the line's own
    word_labels: tuple[int, ...] | None  # the line's own
    maps: dict[str, str]  # heatmap → relative path
    unread: tuple[str, ...]  # unknown fields

    def missing(self) -> bool:
        """Whether there is no label at all."""
        return not (self.ratings or self.words or self.clicks or self.scores or self.maps) and self.word_labels is None


def read_opinions(tree: Mapping[str, Any], words: int) -> Opinions:
    """Takes the annotations from a parsed line.

    Args:
      tree: the line.
      words: number of words of its prompt.

    Raises:
      Refused: a field has the wrong type or does not fit the words, or a label is there twice.
    """
    unread = [str(name) for name in tree if name not in FIELDS]
    opinions = Opinions({}, [], {}, _scores(tree, unread), _words(tree, "word_labels", words), _maps(tree), ())
    annotators = tree.get("annotators")
    for number, one in enumerate(_kind(annotators, list, "annotators") if annotators is not None else ()):
        _add(opinions, _kind(one, dict, f"annotators[{number}]"), f"annotators[{number}]", words, unread)
    _check_once(opinions)
    return opinions._replace(unread=tuple(dict.fromkeys(unread)))


def _add(opinions: Opinions, one: Mapping[str, Any], where: str, words: int, unread: list[str]) -> None:
    """Adds what one annotator gave."""
    unread += [f"annotators.{name}" for name in one if name not in RawAnnotation._fields]
    for name, value in _named(one, f"{where}.scores", unread).items():
        if isinstance(value, bool) or value not in range(LOWEST, HIGHEST + 1):
            raise Refused("bad score", f"{where}: {name} is {value!r:.40}, expected an integer {LOWEST}..{HIGHEST}")
        opinions.ratings.setdefault(name, []).append(int(value))
    for heatmap, field in POINT_FIELDS.items():
        if one.get(field) is not None:
            opinions.clicks.setdefault(heatmap, []).append(_points(one[field], f"{where}.{field}"))
    labels = _words(one, f"{where}.word_labels", words)
    if labels is not None:
        opinions.words.append(labels)


def _check_once(opinions: Opinions) -> None:
    """Raises Refused if annotators and the line itself give the same label."""
    twice = [name for name in SCORES if name in opinions.ratings and name in opinions.scores]
    twice += [name for name in HEATMAPS if name in opinions.clicks and name in opinions.maps]
    twice += ["word_labels"] if opinions.words and opinions.word_labels is not None else []
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
    """The values of the field ``scores`` that are not null, by name; adds unknown names to `unread`."""
    scores = tree.get("scores")
    if scores is None:
        return {}
    unread += [f"scores.{name}" for name in _kind(scores, dict, where) if name not in SCORES]
    return {name: scores[name] for name in SCORES if scores.get(name) is not None}


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


def _points(value: Any, where: str) -> list[Point]:
    points = []
    for point in _kind(value, list, where):
        if not isinstance(point, list) or len(point) != 2 or not all(map(_is_coordinate, point)):
            raise Refused("malformed", f"{where}: {point!r:.80}, expected [x, y] in pixels of the picture")
        points.append((point[0], point[1]))
    return points


def _is_coordinate(value: Any) -> bool:
    # `math.isfinite` raises an error for an integer that is too large for a float: compare first.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= _FARTHEST and math.isfinite(value)


def _kind(value: Any, kind: type, where: str) -> Any:
    """`value`, if it is a `kind`. Raises Refused otherwise."""
    if not isinstance(value, kind):
        names = {list: "a list", dict: "an object"}
        raise Refused("malformed", f"{where} is {value!r:.80}, expected {names[kind]}")
    return value
