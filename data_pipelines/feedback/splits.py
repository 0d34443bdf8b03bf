"""Assigns prompts to splits: as the lines say, or by a hash of the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.prepare.splits import PRECEDENCE, by_hash, check_shares, key

__all__ = ["assign", "by_hash", "check_shares", "in_two", "key"]


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
