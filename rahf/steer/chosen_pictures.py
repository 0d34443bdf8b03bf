"""Batches of the pictures and prompts that `rahf select --chosen` has written, for a latent diffusion to learn."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core import json_text
from rahf.core.errors import ConfigError, DataError, DatasetError, ImageError
from rahf.core.files import read_regular_text
from rahf.images.decode import load_rgb, resize_square
from rahf.training.numbered_batches import NumberedBatches

_MOST_NAMED = 3  # unreadable pictures that a message names


class ChosenBatch(NamedTuple):
    """Pictures to learn.

    Attributes:
      image: uint8 [B,S,S,3].
      ids, negative_ids: tokens of prompt and empty prompt for each text tower, int32 [B,L]; None: zeros (XL).
      example_mask: bool [B].
    """

    image: Any
    ids: tuple[Any, ...]
    negative_ids: tuple[Any, ...] | None
    example_mask: Any


class Chosen(NamedTuple):
    """A line of the file."""

    image: str  # path
    prompt: str


def read(path: str) -> list[Chosen]:
    """The lines of a file of `rahf select --chosen`: JSON objects with `image`, relative to its folder, and `prompt`.

    Raises:
      DatasetError: no file, no line, or a line of another kind; names it.
    """
    if not path:
        raise DatasetError("feedback.chosen: give the file of `rahf select --chosen`")
    try:
        lines = read_regular_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"feedback.chosen: {path} cannot be read as text ({error})") from error
    folder, chosen = pathlib.Path(path).parent, []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_text.parse_object(line)
        except ValueError as error:
            raise DatasetError(f"{path}: line {number} is no JSON object ({error})") from error
        image, prompt = row.get("image"), row.get("prompt")
        if not isinstance(image, str) or not isinstance(prompt, str):
            raise DatasetError(f'{path}: line {number}: expected "image" and "prompt", two texts')
        chosen.append(Chosen(str(folder / image), prompt))
    if not chosen:
        raise DatasetError(f"feedback.chosen: {path} has no line; nothing was chosen")
    return chosen


class ChosenLoader(NumberedBatches):
    """An endless iterator of batches; see `rahf.training.task.Loader`. A batch follows from its number alone.

    A picture that cannot be read is reported once, and the next one of the order takes its place.
    """

    def __init__(
        self,
        chosen: Sequence[Chosen],
        encode: Callable[[Sequence[str]], tuple[Any, Any]],
        image_size: int,
        batch_size: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ):
        """Args:
          chosen: of `read`.
          encode: prompts → `ids` and `negative_ids`, one row per prompt.
          image_size: S; pictures are cut to their central square and resized.
          batch_size: over all processes.
          process: number of this process, and of all.

        Raises:
          ConfigError: a batch that the processes cannot share.
        """
        if batch_size % process[1]:
            raise ConfigError(f"data.batch_size {batch_size}: expected a multiple of the processes, {process[1]}")
        super().__init__(seed, [*map(list, chosen), batch_size], "chosen pictures")
        self._chosen, self._size, self._side = list(chosen), batch_size, image_size
        self._ids, self._negative_ids = encode([one.prompt for one in chosen])
        self._process, self._bad = process, set[int]()

    def __next__(self) -> ChosenBatch:
        index, count = self._process
        first = self._batches * self._size
        self._batches += 1
        places = range(first + index * self._size // count, first + (index + 1) * self._size // count)
        numbers, images = zip(*map(self._picture, places))
        rows = np.asarray(numbers)
        take = lambda arrays: tuple(array[rows] for array in arrays)  # noqa: E731
        negative = None if self._negative_ids is None else take(self._negative_ids)
        return ChosenBatch(np.stack(images), take(self._ids), negative, np.ones(len(rows), bool))

    def _picture(self, place: int) -> tuple[int, np.ndarray]:
        """Number of a picture, and its pixels."""
        for further in range(len(self._chosen)):
            number = self._at(place + further)
            if number in self._bad:
                continue
            try:
                pixels = load_rgb(self._chosen[number].image)
            except ImageError as error:
                self._bad.add(number)
                self.report(f"left out ({len(self._bad)} of {len(self._chosen)}): {error}")
                continue
            height, width = pixels.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            return number, resize_square(pixels[top : top + side, left : left + side], self._side)
        named = ", ".join(self._chosen[number].image for number in sorted(self._bad)[:_MOST_NAMED])
        raise DataError(f"none of the {len(self._chosen)} chosen pictures can be read: {named}, …")

    def _at(self, place: int) -> int:
        turn, place = divmod(place, len(self._chosen))
        return int(np.random.default_rng([self._seed, turn]).permutation(len(self._chosen))[place])
