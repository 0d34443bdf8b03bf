"""Compares an answer with the right one of a training or gold picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.feedback.opinions import POINT_FIELDS
from data_pipelines.prepare.consolidate import RADIUS
from rahf.core.labels import SCORES

#: A score is right if it differs by at most this many steps.
TOLERANCE = 1
#: A mark is right within this multiple of a disc's radius: two discs whose centres are farther apart do not touch.
REACH = 2.0


class Comparison(NamedTuple):
    """How an answer compares with the right one.

    Attributes:
      right: checks that were passed: one for each score, one for the words, one for each kind of mark.
      checks: number of checks.
      remarks: a sentence for each check that was not passed.
    """

    right: int
    checks: int
    remarks: list[str]

    @property
    def share(self) -> float:
        """Checks that were passed, 0..1."""
        return self.right / self.checks


def compare(answer: Mapping[str, Any], gold: Mapping[str, Any], words: Sequence[str], height: int) -> Comparison:
    """Compares a complete answer with the right one.

    Args:
      answer, gold: as of `rahf.annotate.answers.check`.
      words: of the prompt.
      height: of the picture in pixels.
    """
    checks = [_score(name, answer["scores"][name], gold["scores"][name]) for name in SCORES]
    wrong = [f"“{w}”" for w, own, right in zip(words, answer["word_labels"], gold["word_labels"]) if own != right]
    checks.append(f"words to look at again: {', '.join(wrong)}" if wrong else "")
    checks += [_marks(kind, answer[field], gold[field], height) for kind, field in POINT_FIELDS.items()]
    remarks = [remark for remark in checks if remark]
    return Comparison(len(checks) - len(remarks), len(checks), remarks)


def _score(name: str, own: int, right: int) -> str:
    return "" if abs(own - right) <= TOLERANCE else f"{name}: you gave {own}, expected about {right}"


def _marks(kind: str, own: Sequence[Sequence[float]], right: Sequence[Sequence[float]], height: int) -> str:
    missed, extra = _unmatched(right, own, height), _unmatched(own, right, height)
    parts = [f"{missed} place{'s' * (missed > 1)} not marked"] if missed else []
    parts += [f"{extra} mark{'s' * (extra > 1)} where nothing was expected"] if extra else []
    return f"{kind}: {' and '.join(parts)}" if parts else ""


def _unmatched(points: Sequence[Sequence[float]], others: Sequence[Sequence[float]], height: int) -> int:
    """Number of points with none of the others near."""
    reach = REACH * RADIUS * height
    return sum(all(math.dist(point, other) > reach for other in others) for point in points)
