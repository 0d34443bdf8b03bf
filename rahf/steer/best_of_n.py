"""Which of many scored candidates to keep: best of each group, thresholds, quantiles, gaps, constraints.

The RAHF paper generates eight pictures for each prompt, scores them, and keeps the best one for fine-tuning if its
plausibility exceeds a threshold (whose value it does not give). Scores of a generator that the critic was not trained
on may be shifted as a whole: then rank (best of group, quantile) rather than compare with an absolute threshold.
This module does not import JAX. `rahf.steer.best_of_n_files` does the same with files.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rahf.core import labels
from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError, NotPredicted
from rahf.critic.provenance import CriticPrediction

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_REQUIREMENT = re.compile(r"\s*([A-Za-z_]+)\s*(>=|<=|>|<)\s*(\S+)\s*")


class Requirement(NamedTuple):
    """A constraint on one score, as in "alignment>=0.6"."""

    score: str
    operator: str
    value: float

    def met(self, scores: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
        """Which candidates meet it; NaN never does."""
        return _OPERATORS[self.operator](scores[:, SCORES.index(self.score)], self.value)

    def __str__(self) -> str:
        return f"{self.score} {self.operator} {self.value:g}"


def requirement(text: str) -> Requirement:
    """Reads a constraint: the name of a score, one of >= <= > <, and a number.

    Raises:
      ValueError: another form, or an unknown score (the nearest is suggested).
    """
    match = _REQUIREMENT.fullmatch(text)
    try:
        value = float(match[3]) if match else None
    except ValueError:
        value = None
    if match is None or value is None or not np.isfinite(value):
        raise ArgumentError(
            f"constraint {text!r}: expected a score, >= <= > or <, and a number, as in 'alignment>=0.6'"
        )
    labels.position("score", match[1], SCORES)
    return Requirement(match[1], match[2], value)


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Which candidates were kept, and why.

    Attributes:
      indices: int64, positions of the kept candidates, ascending.
      reasons: for each candidate, why it was kept or not.
      rank: int64 [N], 1 = best of its group among those that meet every constraint; 0: it does not.
      gap: float [N], by how much the best of a group is above the second; NaN for all others, and if there is no
        second.
      threshold: lowest value of the key that was kept; None: neither a threshold nor a quantile was requested.
    """

    indices: Int[np.ndarray, " k"]
    reasons: list[str]
    rank: Int[np.ndarray, " n"]
    gap: Float[np.ndarray, " n"]
    threshold: float | None


def select(
    preds: Any,
    key: str = "plausibility",
    threshold: float | None = None,
    quantile: float | None = None,
    best_of: bool = True,
    min_gap: float | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    require: Sequence[str | Requirement] = (),
    name: Callable[[int], str] = "candidate {}".format,
) -> Selection:
    """Chooses among scored candidates, in this order:

    1. those that meet every constraint of `require`;
    2. with `best_of`, the one with the highest key of each group; of equal ones the first;
    3. with `min_gap`, only if that is at least `min_gap` above the second of its group (of those that meet the
       constraints; a candidate that is alone has no second and passes);
    4. those of the rest whose key is at least `threshold`, or at least the `quantile` of the keys of the rest.

    Args:
      preds: a `Prediction`, or its scores [N,4] in the order `rahf.core.batch.SCORES`; six decimals count. A candidate
        with NaN among the scores that decide is never kept.
      key: name of the score that decides.
      threshold: in the unit of the score.
      quantile: in [0,1); 0.75 keeps the upper quarter. The threshold is a value that occurs, never one in between.
      best_of: keep at most one candidate of each group.
      min_gap: in the unit of the score; needs `best_of`.
      groups: N names of groups, in practice prompts. Needed with `best_of`.
      require: constraints such as "alignment>=0.6".
      name: gives the words by which a reason refers to another candidate, from its position.

    Raises:
      NotPredicted: the model of a critic's prediction does not give the deciding score, or one that is required.
      ValueError: unknown score, both threshold and quantile, groups that are missing or of another number, or an
        option out of its range.
    """
    # Six decimals: 0.7 in float32 is 0.69999999, and must reach a threshold of 0.7.
    scores = np.round(np.asarray(getattr(preds, "scores", preds), np.float64), 6)
    if scores.ndim != 2 or scores.shape[1] != len(SCORES):
        columns = f"one column each for {', '.join(SCORES)}"
        raise ArgumentError(f"scores: expected [N,{len(SCORES)}], {columns}; found {scores.shape}")
    column = labels.position("score", key, SCORES)
    _check(len(scores), threshold, quantile, best_of, min_gap, groups)
    require = [one if isinstance(one, Requirement) else requirement(one) for one in require]
    if isinstance(preds, CriticPrediction):
        check_predicted(scores, [key, *(one.score for one in require)])
    contest = _Contest(scores[:, column], key, name)
    contest.constrain(scores, require)
    if best_of:
        contest.keep_best(groups)
        contest.require_gap(min_gap)
    used = contest.cut(threshold, quantile, "bests of groups" if best_of else "candidates")
    return Selection(np.flatnonzero(contest.kept), contest.reasons, contest.rank, contest.gap, used)


def _check(count, threshold, quantile, best_of, min_gap, groups) -> None:
    if threshold is not None and quantile is not None:
        raise ArgumentError("give a threshold or a quantile, not both")
    if threshold is not None and not np.isfinite(threshold):
        raise ArgumentError(f"threshold: expected a number, found {threshold}")
    if quantile is not None and not 0 <= quantile < 1:
        raise ArgumentError(
            f"quantile: expected at least 0 and below 1, found {quantile}; 0.75 keeps the upper quarter"
        )
    if min_gap is not None and not (min_gap >= 0 and best_of):
        raise ArgumentError(f"min_gap: expected 0 or more, and the best of each group to be chosen; found {min_gap}")
    if best_of and groups is None:
        raise ArgumentError("groups: needed to find the best of each; give one name per candidate, or best_of=False")
    if groups is not None and len(groups) != count:
        raise ArgumentError(f"groups: expected one per candidate ({count}), found {len(groups)}")


def check_predicted(scores: Float[np.ndarray, "n 4"], names: Sequence[str]) -> None:
    """Refuses scores that a model does not predict: no candidate has them, though it has others. Raises NotPredicted.

    Args:
      scores: of all candidates, NaN where not predicted.
      names: those that are to decide.
    """
    there = [name for column, name in enumerate(SCORES) if np.isfinite(scores[:, column]).any()]
    for name in names:
        if there and name not in there:
            raise NotPredicted(
                f"score: no candidate has {name!r}, which the model does not predict; choose by {' or '.join(there)}"
            )


class _Contest:
    """Candidates that are still kept, and the reasons why the others are not."""

    def __init__(self, values: np.ndarray, key: str, name: Callable[[int], str]):
        self.values, self.key, self.name = values, key, name
        count = len(values)
        self.kept = np.ones(count, bool)
        self.reasons = [f"{key} {_number(value)}" for value in values]
        self.rank = np.zeros(count, np.int64)
        self.gap = np.full(count, np.nan)

    def constrain(self, scores: np.ndarray, require: Sequence[Requirement]) -> None:
        """Drops candidates that are not scored or miss a constraint; names every constraint that they miss."""
        self.kept = np.isfinite(self.values)
        for one in require:
            self.kept &= np.isfinite(scores[:, SCORES.index(one.score)])
        for index in np.flatnonzero(~self.kept):
            self.reasons[index] = "not scored"
        failed: dict[int, list[str]] = {}
        for one in require:
            column = scores[:, SCORES.index(one.score)]
            for index in np.flatnonzero(self.kept & ~one.met(scores)):
                why = f"{one.score} {_number(column[index])} is not {one.operator} {one.value:g}"
                failed.setdefault(int(index), []).append(why)
        for index, why in failed.items():
            self.kept[index] = False
            self.reasons[index] = "; ".join(why)

    def keep_best(self, groups: Sequence[Hashable]) -> None:
        """Keeps the best of each group."""
        members: dict[Hashable, list[int]] = {}
        for index in np.flatnonzero(self.kept).tolist():
            members.setdefault(groups[index], []).append(index)
        for group in members.values():
            group.sort(key=lambda index: (-self.values[index], index))
            first = group[0]
            for rank, index in enumerate(group, start=1):
                self.rank[index] = rank
                if rank > 1:
                    self._drop(index, self._lost_to(index, first))
            self.reasons[first] = f"{self.reasons[first]}, best of {len(group)} in its group"
            if len(group) > 1:
                self.gap[first] = self.values[first] - self.values[group[1]]
                self.reasons[first] += f", {self.gap[first]:.4f} above {self.name(group[1])}"

    def _lost_to(self, index: int, first: int) -> str:
        winner = f"{self.name(first)} of its group has {_number(self.values[first])}"
        return winner + (" as well and comes first" if self.values[index] == self.values[first] else "")

    def require_gap(self, min_gap: float | None) -> None:
        """Keeps candidates that are at least `min_gap` above the second of their group."""
        if min_gap is not None:
            # The values are decimal numbers in binary: 0.8 - 0.7 must count as 0.1.
            for index in np.flatnonzero(self.kept & (self.gap < min_gap - 1e-9)):
                self._drop(index, f"less than the gap of {min_gap:g}")

    def cut(self, threshold: float | None, quantile: float | None, of: str) -> float | None:
        """Keeps candidates that reach the threshold, and returns it."""
        rest = self.values[self.kept]
        description = "the threshold"
        if quantile is not None and rest.size:
            threshold = float(np.quantile(rest, quantile, method="higher"))
            description = f"the {quantile:g} quantile of {rest.size} {of},"
        if threshold is None:
            return None
        low = self.kept & ~(self.values >= threshold)
        for index in np.flatnonzero(self.kept):
            self.reasons[index] += f", {'below' if low[index] else 'at least'} {description} {_number(threshold)}"
        self.kept &= ~low
        return threshold

    def _drop(self, index: int, why: str) -> None:
        self.kept[index] = False
        self.reasons[index] = f"{self.reasons[index]}; {why}"


def _number(value: float) -> str:
    return f"{value:.4f}"
