"""Rapidata's word scores → the share of people who found each word of the prompt shown.

A score is the number of people who marked a word as not shown, each counted with a weight, so it may be above 1; how
many were asked is not stored. Copies that hold shares have no score above 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.prepare.counts import Refused
from rahf.text import split_words
from rahf.text.words import without_blanks

#: The entry that people chose who found no mistake; it is no word.
NO_MISTAKES = "[No_mistakes]"
_UNANIMOUS = 0.99  # quantile over pictures; the largest score of few pictures may be an outlier
_LEAST_MATCHED = 0.5  # share of a prompt's words that must have a counterpart


class WordScores(NamedTuple):
    """The parsed entries of one picture."""

    words: tuple[str, ...]  # by the dataset's split rule
    scores: tuple[float, ...]  # of each word, high = not shown
    no_mistakes: float  # of the people who found none

    @property
    def people(self) -> float:
        """A lower bound of the weights of the people who were asked."""
        return max(self.scores, default=0.0) + self.no_mistakes


class SoftWords(NamedTuple):
    """Labels of the words of a prompt."""

    shares: tuple[float, ...]  # of people who called the word aligned
    labels: tuple[int, ...]  # of the majority, 1 = aligned; a tie is aligned
    matched: bool  # by edit distance, because the split rule gave other words


def parse(text: str | None) -> WordScores | None:
    """Reads the JSON of a row; None if there is nothing in it.

    Raises:
      Refused: not JSON, not pairs of word and score, or scores that are negative or not finite.
    """
    if text is None or not text.strip():
        return None
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("bad word scores", f"word_scores is no JSON ({error}): {text!r:.80}") from error
    pairs = list(tree.items()) if isinstance(tree, dict) else tree
    if not isinstance(pairs, list):
        raise Refused("bad word scores", f"word_scores is {text!r:.80}, expected pairs of word and score")
    words: list[str] = []
    scores: list[float] = []
    no_mistakes = 0.0
    for pair in pairs:
        word, score = _pair(pair)
        if word == NO_MISTAKES:
            no_mistakes = score
            continue
        parts = split_words(word)
        words += parts
        scores += [score] * len(parts)
    return WordScores(tuple(words), tuple(scores), no_mistakes) if words else None


def _pair(pair: object) -> tuple[str, float]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
        raise Refused("bad word scores", f"word_scores has the entry {pair!r:.80}, expected a word and a score")
    word, score = pair
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score) or score < 0:
        raise Refused("bad word scores", f"the score of {word!r:.40} is {score!r:.40}, expected a number from 0 on")
    return word, float(score)


def people_asked(scores: Iterable[WordScores]) -> float:
    """The weights of the people who were asked about one picture, summed: what a score is divided by to be a share.

    1 if no score is above 1: they are shares already. Else everybody of some picture agreed on a word, or on no mistake
    at all, so its largest score is the sum that is looked for: the 99% quantile of these, over all pictures.
    """
    rows = [(one.people, max((*one.scores, one.no_mistakes))) for one in scores]
    if not rows or max(largest for _, largest in rows) <= 1:
        return 1.0
    return float(np.quantile([people for people, _ in rows], _UNANIMOUS, method="higher"))


def soft_words(words: tuple[str, ...], scores: WordScores, people: float) -> SoftWords | None:
    """Labels of a prompt's words; None if too few of them have a counterpart.

    Args:
      words: of the prompt, by the split rule.
      scores: of the picture.
      people: of `people_asked`.
    """
    matched = tuple(words) != scores.words
    places = match_words(words, scores.words) if matched else list(range(len(words)))
    if not words or sum(place is not None for place in places) < _LEAST_MATCHED * len(words):
        return None
    misaligned = [0.0 if place is None else min(1.0, scores.scores[place] / people) for place in places]
    shares = tuple(1.0 - share for share in misaligned)
    return SoftWords(shares, tuple(int(share >= 0.5) for share in shares), matched)


def match_words(words: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """For every word the position of its counterpart among other words, by minimum edit distance over word strings.

    None for a word that was substituted or deleted there. Case and white space are not compared.
    """
    one, two = ([without_blanks(word).casefold() for word in text] for text in (words, others))
    cost = np.add.outer(np.arange(len(one) + 1), np.arange(len(two) + 1))
    for i, word in enumerate(one, 1):
        for j, other in enumerate(two, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (word != other), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    matches: list[int | None] = [None] * len(one)
    i, j = len(one), len(two)
    while i and j:
        same = one[i - 1] == two[j - 1]
        if cost[i, j] == cost[i - 1, j - 1] + (not same):
            i, j = i - 1, j - 1
            matches[i] = j if same else None
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return matches
