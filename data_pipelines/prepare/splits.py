"""The splits of data that people labelled, and the split of a prompt by its hash."""

from __future__ import annotations

import hashlib
import unicodedata

from rahf.core.errors import DatasetError
from rahf.text import split_words

SPLITS = ("train", "dev", "test")
#: What occurs in two splits stays in the first of these, so that nothing of the test split is trained on.
PRECEDENCE = ("test", "dev", "train")


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
