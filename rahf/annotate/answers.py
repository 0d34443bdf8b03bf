"""Checks the answer of a person: the form of an annotator in a feedback file (docs/data.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.feedback.opinions import POINT_FIELDS
from data_pipelines.prepare.consolidate import HIGHEST, LOWEST
from rahf.core.errors import AnnotateError
from rahf.core.labels import SCORES
from rahf.text import split_words

#: Fields of an answer.
FIELDS = (*POINT_FIELDS.values(), "scores", "word_labels")
#: Why a person may skip a picture, as stored and exported; "other" may be followed by a text.
SKIP_REASONS = ("does not load", "cannot judge", "offensive", "prompt not understood", "other")
MOST_POINTS = 200  # of one kind
_LONGEST_REASON = 300


class BadAnswer(AnnotateError):
    """An answer cannot be stored; the message names the field."""


def check(answer: Any, words: int, width: int, height: int, complete: bool) -> dict[str, Any]:
    """Checks an answer and returns it with exactly the known fields; coordinates are rounded to 1/100 pixel.

    Args:
      answer: parsed JSON.
      words: number of words of the prompt.
      width, height: of the upright picture in pixels.
      complete: the person says that it is finished: then nothing may be missing.

    Raises:
      BadAnswer: a field is missing, unknown, of the wrong kind or out of range.
    """
    if not isinstance(answer, dict):
        raise BadAnswer(f"answer: expected an object, found {type(answer).__name__}")
    unknown = sorted(str(name)[:40] for name in set(answer) - set(FIELDS))
    if unknown:
        raise BadAnswer(f"answer: unknown fields {', '.join(unknown[:5])}; expected {', '.join(FIELDS)}")
    checked: dict[str, Any] = {}
    for field in POINT_FIELDS.values():
        checked[field] = _points(answer.get(field, [] if not complete else None), field, width, height)
    checked["scores"] = _scores(answer.get("scores", {}), complete)
    checked["word_labels"] = _word_labels(answer.get("word_labels"), words, complete)
    return checked


def _points(points: Any, field: str, width: int, height: int) -> list[list[float]]:
    if not isinstance(points, list) or len(points) > MOST_POINTS:
        raise BadAnswer(f"{field}: expected a list of at most {MOST_POINTS} points")
    checked = []
    for number, point in enumerate(points):
        good = isinstance(point, list) and len(point) == 2
        good = good and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in point)
        if not good or not all(abs(v) < 1e6 and math.isfinite(v) for v in point):
            raise BadAnswer(f"{field}[{number}]: expected [x, y] in pixels")
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise BadAnswer(f"{field}[{number}]: lies outside the picture of {width} x {height} pixels")
        checked.append([round(float(v), 2) for v in point])
    return checked


def _scores(scores: Any, complete: bool) -> dict[str, int]:
    if not isinstance(scores, dict) or set(scores) - set(SCORES):
        raise BadAnswer(f"scores: expected an object with {', '.join(SCORES)}")
    checked = {}
    for name in SCORES:
        value = scores.get(name)
        if value is None and not complete:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not LOWEST <= value <= HIGHEST:
            raise BadAnswer(f"scores.{name}: expected a whole number {LOWEST} to {HIGHEST}, found {value!r:.40}")
        checked[name] = value
    return checked


def _word_labels(labels: Any, words: int, complete: bool) -> list[int] | None:
    if labels is None and not complete:
        return None
    if not isinstance(labels, list) or len(labels) != words:
        raise BadAnswer(f"word_labels: expected a list of {words} labels, one for each word of the prompt")
    if any(isinstance(label, bool) or not isinstance(label, int) or label not in (0, 1) for label in labels):
        raise BadAnswer("word_labels: expected 1 (aligned) and 0 (misaligned)")
    return list(labels)


def check_skip(reason: Any) -> str:
    """Checks the reason for a skip. Raises BadAnswer."""
    if not isinstance(reason, str) or len(reason) > _LONGEST_REASON or reason.split(":")[0] not in SKIP_REASONS:
        raise BadAnswer(f"skip_reason: expected one of {', '.join(SKIP_REASONS)}; 'other: …' may say more")
    if not reason.isprintable():
        raise BadAnswer("skip_reason: holds control characters")
    return reason


def count_words(prompt: str) -> int:
    """Number of words of a prompt by the dataset's rule."""
    return len(split_words(prompt))


def spread(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest difference of a score among answers, as a share of the scale, 0..1; None: fewer than two answers."""
    if len(answers) < 2:
        return None
    widest = 0
    for name in SCORES:
        values = [answer["scores"][name] for answer in answers if answer["scores"].get(name) is not None]
        widest = max(widest, max(values) - min(values)) if len(values) > 1 else widest
    return widest / (HIGHEST - LOWEST)


def dumps(answer: Mapping[str, Any]) -> str:
    """The text that is stored."""
    return json.dumps(answer, separators=(",", ":"))
