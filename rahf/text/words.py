"""Words of a prompt, and their form in the target sequence.

The target sequence repeats the words of the prompt; a misaligned word has the suffix ``_0`` (the prompt "a yellow cat"
for a picture of a black cat: ``a yellow_0 cat``; RAHF paper, section 4.1). The split rule of the released dataset
defines the words, so the target has no punctuation.
"""

from __future__ import annotations

import re
import unicodedata
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


def same_prompt(prompt: str) -> str:
    """A form that is equal for prompts that are the same to a vocabulary: NFKC, and one blank for any white space."""
    return " ".join(unicodedata.normalize("NFKC", prompt).split())


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


class WordForms(NamedTuple):
    """How a word of the prompt reads in a decoded target sequence: tokens between white space, usually one.

    SentencePiece normalises texts, and some characters inside a word become white space.
    """

    aligned: list[str]
    misaligned: list[str]  # with the suffix


def align_forms(words: Sequence[WordForms], decoded: Sequence[str]) -> list[int]:
    """Carries the labels of a decoded target over to the words of the prompt.

    The words are matched by minimum edit distance (spec 2.5). A prompt word that was substituted or deleted counts as
    aligned. Generated tokens without a counterpart are ignored. Case does not count.

    Args:
      words: of the prompt, in both forms.
      decoded: the target sequence, split at white space.

    Returns:
      One label per prompt word: 1 aligned, 0 misaligned.
    """
    tokens = [token.casefold() for token in decoded]
    forms = [[[token.casefold() for token in form] for form in word] for word in words]
    n, m = len(words), len(tokens)
    cost = [list(range(m + 1))]
    for number, both in enumerate(forms, start=1):
        above, row = cost[-1], [number]
        for j in range(m + 1):
            least = above[j] + 1
            if j:
                least = min(least, row[j - 1] + 1, above[j - 1] + 1)
            # Forms of length 0, of words that normalise to nothing, match without a token.
            row[j:] = [min([least, *(above[j - len(form)] for form in both if _ends_with(tokens, j, form))])]
        cost.append(row)
    labels, i, j = [1] * n, n, m
    while i:
        matches = [
            (label, len(form))
            for label, form in zip((1, 0), forms[i - 1])
            if _ends_with(tokens, j, form) and cost[i][j] == cost[i - 1][j - len(form)]
        ]
        if matches:
            labels[i - 1], length = matches[0]
            i, j = i - 1, j - length
        elif j and cost[i][j] == cost[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
        elif cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return labels


def _ends_with(tokens: Sequence[str], end: int, form: Sequence[str]) -> bool:
    """Whether the tokens before `end` end with those of a form."""
    return end >= len(form) and tokens[end - len(form) : end] == form


def align_labels(words: Sequence[str], decoded: Sequence[tuple[str, int]]) -> list[int]:
    """`align_forms` for words and pairs of `parse_target`, without a vocabulary.

    What a vocabulary does to a word (`Tokenizer.target_labels`) is not known here: white space is not compared, and a
    word with white space inside is not found in a text.
    """
    plain = [without_blanks(word) for word in words]
    tokens = [without_blanks(word) + ("" if label else SUFFIX) for word, label in decoded]
    return align_forms([WordForms([word], [word + SUFFIX]) for word in plain], tokens)


def without_blanks(text: str) -> str:
    """The text without any white space."""
    return "".join(text.split())
