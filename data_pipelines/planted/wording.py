"""Makes true prompts untrue: words of other prompts in the place of true ones or beside them, or another prompt.

A prompt is taken to be true of its picture. Which words are then untrue is known exactly, where in the picture it
shows is not: a misalignment map is known only for true prompts, and is empty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rahf.text import split_words

#: Share of prompts that are made untrue, and of these the share of each kind.
UNTRUE = 0.55
KINDS = {"swapped word": 0.6, "missing word": 0.2, "swapped prompt": 0.2}
_MOST_SWAPS = 2
#: Words that say nothing of the picture's content, or that hold of most pictures.
_FUNCTION_WORDS = frozenset(
    "a an the and or of in on at to with from by for is are was be being it its his her their this that these those as "
    "into over under near very some there photo picture image photograph illustration painting drawing style no not "
    "while up down out off next front back".split()
)
_WORD = re.compile(r"[^\W\d_][\w'-]+")


class Wording(NamedTuple):
    """A prompt, its words, their true labels (1 = aligned), which of them state content, and kinds of faults."""

    prompt: str
    words: tuple[str, ...]
    labels: tuple[int, ...]
    content: tuple[bool, ...]
    faults: tuple[str, ...] = ()

    @property
    def untrue_share(self) -> float:
        """Untrue words as a share of those that state content, 0..1."""
        return (len(self.labels) - sum(self.labels)) / max(1, sum(self.content))


def true_wording(prompt: str) -> Wording:
    """The wording of a prompt that is true of its picture."""
    words = tuple(split_words(prompt))
    return Wording(prompt, words, (1,) * len(words), tuple(map(_is_content, words)))


def _is_content(word: str) -> bool:
    return bool(_WORD.fullmatch(word)) and word.casefold() not in _FUNCTION_WORDS


class Prompts:
    """The prompts of all pictures: where wrong words come from."""

    def __init__(self, prompts: Sequence[str]):
        """`prompts` may repeat. A wrong word is taken from behind the same word as the true one, where there is one."""
        self.prompts = tuple(dict.fromkeys(prompts))
        self._after: dict[str, list[str]] = {}
        for prompt in self.prompts:
            words = split_words(prompt)
            for before, word in zip(["", *words], words):
                if _is_content(word):
                    self._after.setdefault(before.casefold(), []).append(word)
        self._all = [word for words in self._after.values() for word in words]

    def untrue(self, rng: np.random.Generator, prompt: str) -> Wording:
        """With probability `UNTRUE` a wording with planted faults, else the true one."""
        wording = true_wording(prompt)
        if rng.random() >= UNTRUE or len(self.prompts) < 2 or not any(wording.content):
            return wording
        kind = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
        if kind == "swapped prompt":
            return self._other(rng, wording)
        return self._added(rng, wording) if kind == "missing word" else self._swapped(rng, wording)

    def _wrong_word(self, rng: np.random.Generator, before: str, true: Sequence[str]) -> str | None:
        """A content word that the prompt does not have."""
        own_words = {word.casefold() for word in true}
        # A plural of a true word would not be untrue.
        stems = {word.rstrip("s") for word in own_words}
        for pool in (self._after.get(before.casefold(), ()), self._all):
            for _ in range(8 if pool else 0):
                word = pool[rng.integers(len(pool))]
                if word.casefold() not in own_words and word.casefold().rstrip("s") not in stems:
                    return word
        return None

    def _swapped(self, rng: np.random.Generator, wording: Wording) -> Wording:
        places = [number for number, is_content in enumerate(wording.content) if is_content]
        count = min(len(places), 1 + int(rng.random() < 0.3), _MOST_SWAPS)
        words, labels, prompt = list(wording.words), list(wording.labels), wording.prompt
        for place in sorted(rng.choice(places, count, replace=False)):
            wrong = self._wrong_word(rng, words[place - 1] if place else "", wording.words)
            if wrong is None:
                continue
            replaced = _replace_word(prompt, words, place, wrong)
            if replaced is not None:
                prompt, words[place], labels[place] = replaced, wrong, 0
        faults = ("swapped word",) * labels.count(0)
        return Wording(prompt, tuple(words), tuple(labels), wording.content, faults)

    def _added(self, rng: np.random.Generator, wording: Wording) -> Wording:
        """The picture lacks a thing that the prompt names."""
        wrong = self._wrong_word(rng, "a", wording.words)
        if wrong is None:
            return wording
        end = wording.prompt.rstrip(" .,;:!?")
        prompt = f"{end} and {'an' if wrong[0].casefold() in 'aeiou' else 'a'} {wrong}"
        plain = true_wording(prompt)
        labels = (*plain.labels[:-1], 0)
        return plain._replace(labels=labels, faults=("missing word",))

    def _other(self, rng: np.random.Generator, wording: Wording) -> Wording:
        """The prompt of another picture; words that the true one has, too, stay true."""
        other = true_wording(self.prompts[rng.integers(len(self.prompts))])
        own_words = {word.casefold() for word in wording.words}
        labels = tuple(
            int(not is_content or word.casefold() in own_words) for word, is_content in zip(other.words, other.content)
        )
        if all(labels):
            return wording
        return other._replace(labels=labels, faults=("swapped prompt",))


def _replace_word(prompt: str, words: Sequence[str], place: int, wrong: str) -> str | None:
    """The prompt with one of its words replaced; None if it cannot be found again among the words' order."""
    at = 0
    for word in words[:place]:
        at = prompt.index(word, at) + len(word)
    start = prompt.find(words[place], at)
    return None if start < 0 else prompt[:start] + wrong + prompt[start + len(words[place]) :]
