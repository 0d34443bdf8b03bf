"""Assigns prompts to splits: as the lines say, or by a hash of the prompt."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from data_pipelines.prepare.splits import PRECEDENCE
from rahf.core.errors import DatasetError
from rahf.text import split_words


def check_shares(dev: float, test: float) -> None:
    """Raises DatasetError unless both are shares that leave something to train on."""
    for name, share in (("dev", dev), ("test", test)):
        if not 0 <= share < 1:  # also true for NaN
            raise DatasetError(f"--{name} {share}: expected a share of the prompts, at least 0 and less than 1")
    if dev + test >= 1:
        raise DatasetError(f"--dev {dev} and --test {test} leave nothing to train on; their sum must be less than 1")


def key(prompt: str) -> str:
    """A key that is equal for prompts that differ only in case, blanks, Unicode form and the dataset's punctuation.

    The form is NFKC, to which SentencePiece normalises: such prompts are the same to the network.
    """
    prompt = unicodedata.normalize("NFKC", prompt)
    return " ".join(" ".join(split_words(prompt)).split()).casefold()


def by_hash(key: str, dev: float, test: float) -> str:
    """The split of a prompt, the same in every file and on every machine.

    Args:
      key: of the prompt.
      dev, test: shares of all prompts. A larger test share keeps all test prompts of a smaller one.
    """
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "dev" if place < test + dev else "train"


def assign(prompts: Sequence[str], own: Sequence[str | None], dev: float, test: float) -> tuple[list[str], int]:
    """A split for every line.

    A line without one gets the split that another line with its prompt names, else one by hash.

    Args:
      prompts: keys of the lines' prompts.
      own: the lines' own splits.
      dev, test: shares for the hash.

    Returns:
      The splits, and the number of lines that got theirs from another line.
    """
    placed: dict[str, str] = {}
    for prompt, split in zip(prompts, own, strict=True):
        if split is not None:
            placed[prompt] = min(split, placed.get(prompt, split), key=PRECEDENCE.index)
    followed = sum(split is None and prompt in placed for prompt, split in zip(prompts, own))
    assigned = [s or placed.get(p) or by_hash(p, dev, test) for p, s in zip(prompts, own)]
    return assigned, followed


def in_two(keys: Sequence[str], splits: Sequence[str]) -> int:
    """Number of keys that are both in `train` and in another split."""
    trained = {key for key, split in zip(keys, splits, strict=True) if split == "train"}
    return len(trained & {key for key, split in zip(keys, splits) if split != "train"})
