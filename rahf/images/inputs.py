"""Lists of images and prompts, as people hand them to a critic → pictures in batches, and token arrays.

No JAX here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rahf.core.errors import ArgumentError, ImageError
from rahf.images.pictures import Picture, is_floating, picture

if TYPE_CHECKING:  # whoever only reads an exported model does without
    pass


#: Lists longer than this show how far they are, unless told otherwise.
_MANY = 64


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
        raise ArgumentError("images: there are none; give at least one")
    return found


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
