"""Which examples are trained on and which are held out: as the lines say, or by a hash of the prompt."""

from __future__ import annotations

import hashlib
from typing import Sequence

from rahf.core.errors import DatasetError
from rahf.text import split_words

SPLITS = ("train", "dev", "test")
#: What belongs to two splits stays in the first of these, so that nothing of the test is trained on.
PRECEDENCE = ("test", "dev", "train")


def check_shares(dev: float, test: float) -> None:
    """Raises DatasetError unless both are shares that leave something to train on."""
    for name, share in (("dev", dev), ("test", test)):
        if not 0 <= share < 1:  # also true for NaN
            raise DatasetError(f"--{name} {share}: expected a share of the prompts, at least 0 and less than 1")
    if dev + test >= 1:
        raise DatasetError(f"--dev {dev} and --test {test} leave nothing to train on; their sum must be less than 1")


def key(prompt: str) -> str:
    """The same for prompts that differ only in case, blanks and the dataset's punctuation."""
    return " ".join(" ".join(split_words(prompt)).split()).casefold()


def by_hash(key: str, dev: float, test: float) -> str:
    """The split of a prompt, the same in every file and on every machine.

    Args:
      key: of the prompt.
      dev, test: shares of all prompts. Prompts of a smaller share are among those of a larger one for the test
        split, so that raising it moves none out.
    """
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "dev" if place < test + dev else "train"


def assign(prompts: Sequence[str], given: Sequence[str | None], dev: float, test: float) -> tuple[list[str], int]:
    """A split for every line.

    A line without one goes where another line has put its prompt, else by hash.

    Args:
      prompts: keys of the lines' prompts.
      given: the lines' own splits.
      dev, test: shares for the hash.

    Returns:
      The splits, and how many lines went where another line has put their prompt.
    """
    placed: dict[str, str] = {}
    for prompt, split in zip(prompts, given, strict=True):
        if split is not None:
            placed[prompt] = min(split, placed.get(prompt, split), key=PRECEDENCE.index)
    followed = sum(split is None and prompt in placed for prompt, split in zip(prompts, given))
    found = [s or placed.get(p) or by_hash(p, dev, test) for p, s in zip(prompts, given)]
    return found, followed


def in_two(things: Sequence[str], splits: Sequence[str]) -> int:
    """How many things are in `train` and in another split, too."""
    trained = {thing for thing, split in zip(things, splits, strict=True) if split == "train"}
    return len(trained & {thing for thing, split in zip(things, splits) if split != "train"})
