"""Batches of prompts for a generator that learns from rewards of its own pictures: no pictures are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core.errors import ArgumentError, ConfigError, DatasetError
from rahf.text import prompt_lists
from rahf.training.numbered_batches import NumberedBatches


class FeedbackBatch(NamedTuple):
    """What pictures are drawn for; one row per picture.

    Attributes:
      ids, negative_ids: tokens of each text tower of the generator, int32 [B,L]; None: zeros (XL).
      prompt: int32 [B], equal for equal prompts.
      seeds: uint32 [B], of the noise.
      tokens: for each critic, what it reads of the prompt: int32 [B,L] and bool [B,L].
      example_mask: bool [B]; False: a row that only fills a batch of evaluation.
      rollout: `Rollout` of the pictures that were drawn before the first of several updates; None: not drawn yet.
    """

    ids: tuple[Any, ...]
    negative_ids: tuple[Any, ...] | None
    prompt: Any
    seeds: Any
    tokens: tuple[tuple[Any, Any], ...]
    example_mask: Any
    rollout: Any = None


#: Prompts → the fields `ids`, `negative_ids` and `tokens` of a batch, one row per prompt.
Encode = Callable[[Sequence[str]], tuple[Any, Any, Any]]


def read(path: str, field: str) -> list[str]:
    """The prompts of a text file, one a line, or of a list as `rahf.text.prompt_lists` reads it.

    Raises:
      DatasetError: no file, none that holds a prompt, or a row that is refused; names the field of the config.
    """
    if not path:
        raise DatasetError(f"{field}: give a text file of prompts, one a line")
    try:
        listed = prompt_lists.read(path)
    except ArgumentError as error:
        raise DatasetError(f"{field}: {error}") from error
    if listed.refused:
        raise DatasetError(f"{field}: {path}: {listed.refused[0]}")
    return [one.prompt for one in listed.prompts]


class _Encoded:
    """Prompts, encoded once."""

    def __init__(self, prompts: Sequence[str], encode: Encode):
        self.ids, self.negative_ids, self.tokens = encode(prompts)

    def batch(self, prompt: np.ndarray, seeds: np.ndarray, real: np.ndarray) -> FeedbackBatch:
        take = lambda rows: tuple(row[prompt] for row in rows)  # noqa: E731
        negative = None if self.negative_ids is None else take(self.negative_ids)
        tokens = tuple(take(rows) for rows in self.tokens)
        return FeedbackBatch(take(self.ids), negative, prompt.astype(np.int32), seeds, tokens, real)


class PromptLoader(NumberedBatches):
    """An endless iterator of batches; see `rahf.training.task.Loader`. A batch follows from its number alone."""

    def __init__(
        self,
        prompts: Sequence[str],
        encode: Encode,
        batch_size: int,
        pictures_per_prompt: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ):
        """Args:
          prompts: of training; each occurs once in a round.
          batch_size: over all processes.
          pictures_per_prompt: rows of a batch that share a prompt, with noise of their own.
          process: number of this process, and of all.

        Raises:
          ConfigError: a batch that cannot be shared by the processes or made of whole prompts.
        """
        if batch_size % pictures_per_prompt or batch_size % process[1]:
            raise ConfigError(
                f"data.batch_size {batch_size}: expected a multiple of feedback.pictures_per_prompt, "
                f"{pictures_per_prompt}, and of the number of processes, {process[1]}"
            )
        super().__init__(seed, [list(prompts), batch_size, pictures_per_prompt], "prompts")
        self._encoded, self._count, self._size = _Encoded(prompts, encode), len(prompts), batch_size
        self._each, self._process = pictures_per_prompt, process

    def __next__(self) -> FeedbackBatch:
        number, each = self._batches, self._each
        of_batch = self._size // each
        places = number * of_batch + np.arange(of_batch)
        prompt = np.repeat([self._order(place // self._count)[place % self._count] for place in places], each)
        seeds = np.random.default_rng([self._seed, 1, number]).integers(2**32, size=self._size, dtype=np.uint32)
        self._batches += 1
        index, count = self._process
        share = slice(index * self._size // count, (index + 1) * self._size // count)
        real = np.ones(self._size, bool)
        return self._encoded.batch(prompt[share], seeds[share], real[share])

    def _order(self, number: int) -> np.ndarray:
        """The order of the prompts in a round."""
        return np.random.default_rng([self._seed, 0, int(number)]).permutation(self._count)


def eval_batches(
    prompts: Sequence[str], encode: Encode, batch_size: int, process: tuple[int, int] = (0, 1)
) -> list[FeedbackBatch]:
    """Every prompt once, with the seed of its position, in batches that are filled up with the last one."""
    encoded, (index, count) = _Encoded(prompts, encode), process
    batches = []
    for first in range(0, len(prompts), batch_size):
        rows = np.arange(first, first + batch_size)
        share = rows[index * batch_size // count : (index + 1) * batch_size // count]
        prompt = np.minimum(share, len(prompts) - 1)
        batches.append(encoded.batch(prompt, prompt.astype(np.uint32), share < len(prompts)))
    return batches
