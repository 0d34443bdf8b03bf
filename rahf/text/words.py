"""Words of a prompt, and their form in the target sequence.

The target sequence repeats the words of the prompt; a misaligned word has the suffix ``_0`` (the prompt "a yellow cat"
for a picture of a black cat: ``a yellow_0 cat``; RAHF paper, section 4.1). The split rule of the released dataset
defines the words, so the target has no punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Int

#: Suffix of a misaligned word in the target sequence.
SUFFIX = "_0"

# The eight separators of google-research/richhf_18k and the blank. Newline, tab, hyphen,
# parentheses and apostrophe do not separate words.
WORD_RULE = r'[^,.?!":; ]+'
WORD = re.compile(WORD_RULE)


def split_words(prompt: str) -> list[str]:
    """Splits a prompt by the dataset's rule: at any of ``, . ? ! " : ;`` and blank, empties dropped."""
    return WORD.findall(prompt)


class Piece(NamedTuple):
    """A stretch of a prompt: a word with its number, or the text between two words (number None)."""

    text: str
    word: int | None


def pieces(prompt: str, words: Sequence[str]) -> Iterator[Piece]:
    """Cuts a prompt into its words and the text between them; joining the pieces gives the prompt again.

    Words that the prompt does not contain in this order (labels of another prompt) are appended after it.
    """
    position = 0
    for number, word in enumerate(words):
        start = prompt.find(word, position)
        if start < 0:
            if prompt[position:]:
                yield Piece(prompt[position:], None)
            for rest in range(number, len(words)):
                yield Piece(" ", None)
                yield Piece(words[rest], rest)
            return
        if start > position:
            yield Piece(prompt[position:start], None)
        yield Piece(word, number)
        position = start + len(word)
    if prompt[position:]:
        yield Piece(prompt[position:], None)


def word_ends(ends: Sequence[int], max_words: int) -> Int[np.ndarray, " K"]:
    """The field `word_end` of a batch for one prompt.

    Args:
      ends: for every word the index of its last piece, -1 for a word without a place (`Tokenizer.encode_target`).
      max_words: K, the number of words that a batch has room for; later words are dropped.

    Returns:
      int32 [K], filled up with -1.
    """
    row = np.full(max_words, -1, np.int32)
    row[: len(ends)] = ends[:max_words]
    return row


def parse_target(text: str) -> list[tuple[str, int]]:
    """Splits a decoded target into (word, label): ``"a yellow_0 cat"`` → [("a",1),("yellow",0),("cat",1)]."""
    parsed = []
    for piece in text.split():
        misaligned = piece.endswith(SUFFIX) and piece != SUFFIX
        parsed.append((piece[: -len(SUFFIX)] if misaligned else piece, 0 if misaligned else 1))
    return parsed


def align_labels(words: Sequence[str], decoded: Sequence[tuple[str, int]]) -> list[int]:
    """Carries labels of generated words over to the prompt's words.

    The words are matched by minimum edit distance over word strings (spec 2.5). A prompt word that was substituted or
    deleted counts as aligned. Generated words without a counterpart are ignored.

    Returns:
      One label per prompt word: 1 aligned, 0 misaligned.
    """
    n, m = len(words), len(decoded)
    cost = np.zeros((n + 1, m + 1), np.int32)
    cost[:, 0], cost[0, :] = np.arange(n + 1), np.arange(m + 1)
    same = [[_same(word, other) for other, _ in decoded] for word in words]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            swap = cost[i - 1, j - 1] + (0 if same[i - 1][j - 1] else 1)
            cost[i, j] = min(swap, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    labels = [1] * n
    i, j = n, m
    while i and j:
        if same[i - 1][j - 1] and cost[i, j] == cost[i - 1, j - 1]:
            labels[i - 1] = decoded[j - 1][1]
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return labels


def _same(word: str, other: str) -> bool:
    # SentencePiece normalises texts (NFKC) and collapses white space, so white space is not compared.
    return word == other or without_blanks(word).casefold() == without_blanks(other).casefold()


def without_blanks(text: str) -> str:
    """The text without any white space."""
    return "".join(text.split())
