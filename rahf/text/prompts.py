"""Prompts → token arrays, and notes on the words that are not read or not judged.

Importable without JAX.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rahf.config.schema import DataConfig
from rahf.core.errors import ArgumentError
from rahf.core.names import one_line
from rahf.text.tokenizer import Tokenizer
from rahf.text.words import split_words, word_ends

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Bool, Int


#: Endings of files of prompts.
_LIST_ENDINGS = (".txt", ".json", ".jsonl", ".csv", ".tsv")
_ENDING = re.compile(r"\.\w{1,8}")
_SEPARATORS = os.sep + (os.altsep or "")


class PromptWarning(UserWarning):
    """Part of a prompt is not read, or some of its words are not judged."""


class Tokens(NamedTuple):
    """The text input of a critic's JAX functions, for one prompt or many: ``critic.scores(pixels, tokens)``."""

    text_ids: Int[np.ndarray, "b L"]  # int32, prompt pieces, end-of-sequence id, padding id 0
    text_mask: Bool[np.ndarray, "b L"]  # True where text_ids is not padding


class EncodedPrompt(NamedTuple):
    """One prompt as the network reads it."""

    prompt: str
    words: list[str]
    text_ids: Int[np.ndarray, " L"]
    text_mask: Bool[np.ndarray, " L"]
    prompt_ids: Int[np.ndarray, " T"]
    word_end: Int[np.ndarray, " K"]  # -1 for words that do not fit
    notes: list[str]  # which words are not read or not judged


def prompt_list(prompts: str | Sequence[str], count: int | None = None) -> list[str]:
    """One prompt for all images, or one per image → one per image.

    Args:
      count: of images; None: as many as there are prompts.

    Raises:
      ValueError: another number of prompts than images, an empty prompt, or one that is not valid Unicode.
      TypeError: a prompt is not a string.
    """
    if isinstance(prompts, (bytes, bytearray, Mapping, Set)) or not isinstance(prompts, Iterable):
        hint = ""
        if isinstance(prompts, Mapping):
            hint = "; give the texts alone, in the order of the images: list(prompts.values())"
        elif isinstance(prompts, Set):
            hint = ", which has no order; give a list"
        elif not isinstance(prompts, Iterable):
            hint = "; to read prompts from a file, give its lines" if isinstance(prompts, os.PathLike) else ""
        raise TypeError(f"prompts: expected one text or one per image, found {type(prompts).__name__}{hint}")
    listed = [prompts] * (1 if count is None else count) if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ArgumentError("prompts: there are none")
    if count is not None and len(listed) != count:
        raise ArgumentError(f"{count} images but {len(listed)} prompts; give one for all, or one per image")
    for number, prompt in enumerate(listed):
        which = "the prompt" if isinstance(prompts, str) else f"prompt {number}"
        check_prompt(prompt, which)
    return listed


def check_prompt(prompt: Any, which: str, remedy: str = "give the text in it") -> None:
    """Checks that a value is a text that an image may have been made from.

    Args:
      prompt: the value.
      which: its name in messages: "prompt 3", "--prompt".
      remedy: what to do about the path of a file.

    Raises:
      ArgumentError: empty, not valid Unicode, or the path of a file.
      TypeError: not a string.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"{which}: expected text, found {type(prompt).__name__}")
    if not prompt.strip():
        raise ArgumentError(f"{which} is empty; give the text that the image was made from")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{which} is not valid Unicode ({error.reason}): {prompt[:60]!r}") from error
    if names_file(prompt):
        raise ArgumentError(f"{which}: {prompt[:200]!r} is a file, not a text; {remedy}")


def names_file(prompt: str) -> bool:
    """Whether a text is the path of a file: one that exists, or one that only a file would be called by.

    A single word without an ending ("cat") is a prompt, even where a file has that name.
    """
    stem, ending = os.path.splitext(prompt.strip())
    if not _ENDING.fullmatch(ending) and not set(prompt) & set(_SEPARATORS):
        return False
    return os.path.isfile(prompt) or (ending.lower() in _LIST_ENDINGS and not any(map(str.isspace, stem)))


def encode(prompt: str, config: DataConfig, tokenizer: Tokenizer) -> EncodedPrompt:
    """Tokenizes a prompt like the data loader. Words that do not fit are named in `notes`."""
    words = split_words(prompt)
    text = tokenizer.encode_prompt(prompt, config.max_prompt_tokens)
    target, ends = tokenizer.encode_target(words, None, config.max_target_tokens)
    word_end = word_ends(ends, config.max_words)
    notes = []
    if text.words_lost:
        notes.append(f"the model reads {config.max_prompt_tokens} tokens; not read: {some(text.words_lost)}")
    judged = int((word_end >= 0).sum())
    if judged < len(words):
        notes.append(
            f"{judged} of {len(words)} words are judged ({config.max_target_tokens} tokens, "
            f"{config.max_words} words at most); not judged: {some(words[judged:])}"
        )
    return EncodedPrompt(prompt, words, text.ids, text.mask, target.ids, word_end, notes)


_collected: contextvars.ContextVar[dict[str, list[str]] | None] = contextvars.ContextVar("notes", default=None)


@contextlib.contextmanager
def collected_notes() -> Iterator[dict[str, list[str]]]:
    """Yields a dict that receives the notes of the prompts encoded in this block, by prompt; `warn` then is silent.

    Only this thread is concerned. `warnings.catch_warnings` would change the filters of the whole process, so that
    threads beside lose their warnings, and filters stay changed.
    """
    notes: dict[str, list[str]] = {}
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def warn(texts: Sequence[EncodedPrompt]) -> None:
    """One `PromptWarning` for all prompts with notes, attributed to the line that called the critic; none inside of
    `collected_notes`."""
    notes = {text.prompt: text.notes for text in texts if text.notes}
    collected = _collected.get()
    if collected is not None:
        collected.update(notes)
    elif notes:
        lines = [one_line(f"prompt {_start(prompt)}: {'; '.join(lost)}") for prompt, lost in list(notes.items())[:5]]
        more = [f"… and {len(notes) - 5} more prompts"] if len(notes) > 5 else []
        warnings.warn("\n".join([*lines, *more]), PromptWarning, stacklevel=3)


def _start(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:40] + "…")


def some(words: Sequence[str], limit: int = 12) -> str:
    """The first words, and how many more there are."""
    shown = ", ".join(words[:limit])
    return shown if len(words) <= limit else f"{shown} … and {len(words) - limit} more"
