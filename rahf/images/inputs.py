"""Lists of images of any kind → decoded pictures in batches; and a check that images and prompts are not swapped.

No JAX here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from PIL import Image

from rahf.core import terminal
from rahf.core.errors import ArgumentError, ImageError
from rahf.images.pictures import Picture, as_array, looks_like_image, picture

#: Lists longer than this show a progress bar, unless the caller decides.
_MANY = 64


def image_list(images: Any) -> list[Any]:
    """One image or many → list. An array with four axes is many images.

    Raises:
      ValueError: an empty list.
      TypeError: neither an image nor a collection of images.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        return [images]
    if hasattr(images, "__array__") and hasattr(images, "ndim"):
        listed = list(as_array(images, "images")) if images.ndim == 4 else [images]
    elif hasattr(images, "read"):
        kind = type(images).__name__
        raise TypeError(f"images: found an open file ({kind}); give its path, or its bytes: file.read()")
    elif isinstance(images, Iterable):
        listed = list(images)
    else:
        raise TypeError(
            f"images: expected paths, encoded bytes, Pillow images or arrays, found {type(images).__name__}"
        )
    if not listed:
        raise ArgumentError("images: there are none; give at least one")
    return listed


def check_order(images: Sequence[Any], prompts: Any, call: str = "critic(images, prompts)") -> None:
    """Recognises images where prompts belong, and prompts where images belong.

    Args:
      images: of `image_list`.
      prompts: as the caller gave them. Iterators are not looked at.
      call: how to write the call, for the message.

    Raises:
      TypeError: a picture, array, bytes or path object among the prompts.
      ValueError: a prompt is the path of an image file; or all prompts end like image files and no image does.
    """
    listed = prompts if isinstance(prompts, (list, tuple)) else [prompts]
    for prompt in listed:
        if not looks_like_image(prompt):
            continue
        if not isinstance(prompt, str):
            raise TypeError(f"prompts: found an image ({type(prompt).__name__}) where text belongs; write {call}")
        if os.path.isfile(prompt):
            raise ArgumentError(f"prompts: {prompt!r} is an image file, not a text; write {call}")
    # Files that do not exist may still show the order: "a red cat" is no image, "cat.png" is no prompt.
    if all(map(looks_like_image, listed)) and not any(looks_like_image(one) or _is_file(one) for one in images):
        raise ArgumentError(f"images and prompts seem to be swapped: {listed[0]!r} is no text; write {call}")


def _is_file(image: Any) -> bool:
    return not isinstance(image, str) or os.path.isfile(image)


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
      batch_size: largest number of pictures in a batch.
      on_error: called with the position and error of an image that cannot be used, which is then left out;
        None: the error is raised.
      progress: show a bar on stderr if that is a terminal and there is more than one batch; None: for more
        than 64 images.

    Yields:
      Positions in `images` and their pictures, in order; a batch without any usable image is skipped.
    """
    threads = concurrent.futures.ThreadPoolExecutor(min(batch_size, len(images), os.cpu_count() or 1, 16))
    starts = range(0, len(images), batch_size)

    def submit(start: int) -> list[concurrent.futures.Future]:
        numbers = range(start, min(start + batch_size, len(images)))
        return [threads.submit(picture, images[n], side, n, keep) for n in numbers]

    show = len(images) > _MANY if progress is None else progress
    bar = _bar(show and len(starts) > 1)
    try:
        with bar:
            task = bar.add_task("predicting", total=len(images))
            following = submit(0)
            for start in starts:
                current, following = following, submit(start + batch_size)
                rows, pictures = _collect(current, start, on_error)
                if rows:
                    yield rows, pictures
                bar.advance(task, len(current))
    finally:
        threads.shutdown(cancel_futures=True)


def _bar(shown: bool):
    try:
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        console = terminal.console(stderr=True)
    except ImportError:  # not installed where only exported models are read
        return _Counter(shown and sys.stderr.isatty())

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True)


class _Counter(contextlib.AbstractContextManager):
    """A line with the number of images done, where `rich` is not installed."""

    def __init__(self, shown: bool):
        self.shown, self.done, self.total = shown, 0, 0

    def add_task(self, name: str, total: int) -> str:
        """Sets the name and the number of all images."""
        self.total = total
        return name

    def advance(self, name: str, count: int) -> None:
        """Adds to the count and shows it."""
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
