"""Lists of images and prompts, as people hand them to a critic → pictures in batches, and token arrays.

No JAX here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from rahf.config import DataConfig
from rahf.images import ImageError
from rahf.pictures import Picture, is_floating, picture
from rahf.text import Tokenizer, split_words

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Int


#: Lists longer than this show how far they are, unless told otherwise.
_MANY = 64


class PromptWarning(UserWarning):
    """Part of a prompt is not read, or some of its words are not judged."""


class Text(NamedTuple):
    """One prompt as the network reads it."""

    prompt: str
    words: list[str]
    text_ids: Int[np.ndarray, " L"]
    text_mask: Bool[np.ndarray, " L"]
    prompt_ids: Int[np.ndarray, " T"]
    word_end: Int[np.ndarray, " K"]  # -1 for words without a place
    notes: list[str]  # what of the prompt is not read or not judged


def image_list(images: Any) -> list[Any]:
    """One image or many → list. An array with four axes is many images.

    Raises:
      ValueError: there is none.
      TypeError: neither an image nor a collection of images.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        return [images]
    if hasattr(images, "__array__") and hasattr(images, "ndim"):
        found = list(np.asarray(images)) if images.ndim == 4 else [images]
    elif isinstance(images, Iterable):
        found = list(images)
    else:
        raise TypeError(
            f"images: expected paths, encoded bytes, Pillow images or arrays, found {type(images).__name__}"
        )
    if not found:
        raise ValueError("images: there are none; give at least one")
    return found


def prompt_list(prompts: str | Sequence[str], count: int | None = None) -> list[str]:
    """One prompt for all or one per image → one per image.

    Args:
      count: of images; None: as many as there are prompts.

    Raises:
      ValueError: another number of prompts than images, an empty prompt, or one that is not valid Unicode.
      TypeError: a prompt is not a string.
    """
    if not isinstance(prompts, Iterable):
        raise TypeError(f"prompts: expected one text or one per image, found {type(prompts).__name__}")
    found = [prompts] * (1 if count is None else count) if isinstance(prompts, str) else list(prompts)
    if not found:
        raise ValueError("prompts: there are none")
    if count is not None and len(found) != count:
        raise ValueError(f"{count} images but {len(found)} prompts; give one for all, or one per image")
    for number, prompt in enumerate(found):
        which = "the prompt" if isinstance(prompts, str) else f"prompt {number}"
        if not isinstance(prompt, str):
            raise TypeError(f"{which}: expected text, found {type(prompt).__name__}")
        if not prompt.strip():
            raise ValueError(f"{which} is empty; give the text that the image was made from")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{which} is not valid Unicode ({error.reason}): {prompt[:60]!r}") from error
    return found


def encode(prompt: str, config: DataConfig, tokenizer: Tokenizer) -> Text:
    """Tokenizes a prompt like the data loader. Words without a place are named in `notes`."""
    words = split_words(prompt)
    text = tokenizer.encode_prompt(prompt, config.max_prompt_tokens)
    plain, ends = tokenizer.encode_target(words, None, config.max_target_tokens)
    word_end = np.full(config.max_words, -1, np.int32)
    word_end[: len(ends)] = ends[: config.max_words]
    notes = []
    if text.words_lost:
        notes.append(f"the model reads {config.max_prompt_tokens} tokens; not read: {_some(text.words_lost)}")
    judged = int((word_end >= 0).sum())
    if judged < len(words):
        notes.append(
            f"{judged} of {len(words)} words are judged ({config.max_target_tokens} tokens, "
            f"{config.max_words} words at most); not judged: {_some(words[judged:])}"
        )
    return Text(prompt, words, text.ids, text.mask, plain.ids, word_end, notes)


def warn(texts: Sequence[Text]) -> None:
    """One `PromptWarning` for all prompts of which something is lost, on the line that called the critic."""
    notes = {text.prompt: text.notes for text in texts if text.notes}
    if notes:
        lines = [f"prompt {_start(prompt)}: {'; '.join(found)}" for prompt, found in list(notes.items())[:5]]
        more = [f"… and {len(notes) - 5} more prompts"] if len(notes) > 5 else []
        warnings.warn("\n".join([*lines, *more]), PromptWarning, stacklevel=3)


def _start(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:40] + "…")


def _some(words: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown} … and {len(words) - most} more"


def decoded(
    images: Sequence[Any],
    side: int,
    batch_size: int,
    keep: bool = False,
    on_error: Callable[[int, ImageError], None] | None = None,
    progress: bool | None = None,
) -> Iterator[tuple[list[int], list[Picture]]]:
    """Decodes a list of images in threads, one batch ahead of the caller.

    Args:
      images, side, keep: as in `picture`.
      batch_size: most pictures at a time.
      on_error: called with the position of an image that cannot be used, which is then left out; None: its
        error is raised.
      progress: show a bar on stderr if that is a terminal and there is more than one batch; None: if there are
        more than 64 images.

    Yields:
      Positions in `images` and their pictures, in order; batches of which nothing is left are skipped.
    """
    floating = any(is_floating(image) for image in images)  # of one type, so that one compilation serves all
    threads = concurrent.futures.ThreadPoolExecutor(min(batch_size, len(images), os.cpu_count() or 1, 16))
    starts = range(0, len(images), batch_size)

    def begin(start: int) -> list[concurrent.futures.Future]:
        numbers = range(start, min(start + batch_size, len(images)))
        return [threads.submit(picture, images[n], side, n, floating, keep) for n in numbers]

    wanted = len(images) > _MANY if progress is None else progress
    bar = _bar(wanted and len(starts) > 1)
    try:
        with bar:
            task = bar.add_task("predicting", total=len(images))
            ahead = begin(0)
            for start in starts:
                now, ahead = ahead, begin(start + batch_size)
                rows, pictures = _collect(now, start, on_error)
                if rows:
                    yield rows, pictures
                bar.advance(task, len(now))
    finally:
        threads.shutdown(cancel_futures=True)


def _bar(shown: bool):
    try:
        from rich.console import Console
    except ImportError:  # whoever only reads an exported model may do without
        return _Counter(shown and sys.stderr.isatty())
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True)


class _Counter(contextlib.AbstractContextManager):
    """A line with the number of images done, where `rich` is not installed."""

    def __init__(self, shown: bool):
        self.shown, self.done, self.total = shown, 0, 0

    def add_task(self, name: str, total: int) -> str:
        """Names what is counted."""
        self.total = total
        return name

    def advance(self, name: str, count: int) -> None:
        """Counts."""
        self.done += count
        if self.shown:
            print(f"\r{name} {self.done}/{self.total}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: Any) -> None:
        if self.shown and self.total:
            print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)


def _collect(
    futures: Sequence[concurrent.futures.Future],
    start: int,
    on_error: Callable[[int, ImageError], None] | None,
) -> tuple[list[int], list[Picture]]:
    rows, pictures = [], []
    for row, future in enumerate(futures, start):
        try:
            pictures.append(future.result())
            rows.append(row)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(row, error)
    return rows, pictures
