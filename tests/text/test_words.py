"""A prompt cut into its words, and the places of word ends in a batch."""

import numpy as np

from rahf.text import split_words
from rahf.text.words import pieces, word_ends

PROMPT = '  A yellow cat,  "two" dogs\n & a cat!'


def test_pieces_rejoin_to_the_prompt():
    words = split_words(PROMPT)
    cut = list(pieces(PROMPT, words))
    assert "".join(piece.text for piece in cut) == PROMPT
    assert [piece.text for piece in cut if piece.word is not None] == words
    assert [piece.word for piece in cut if piece.word is not None] == list(range(len(words)))
    assert list(pieces("", [])) == []


def test_words_of_another_prompt_are_not_lost():
    cut = list(pieces("a cat", ["a", "dog", "ran"]))
    assert [(p.text, p.word) for p in cut if p.word is not None] == [("a", 0), ("dog", 1), ("ran", 2)]
    assert "".join(p.text for p in cut).startswith("a cat")


def test_word_ends_are_filled_up_and_cut():
    for ends, expected in (([0, 2, -1], [0, 2, -1, -1]), ([0, 1, 2, 3, 4], [0, 1, 2, 3]), ([], [-1] * 4)):
        row = word_ends(ends, 4)
        assert row.dtype == np.int32 and row.tolist() == expected
