"""The vocabulary that a user names for a dataset."""

from __future__ import annotations

import os
import pathlib

from rahf import text
from rahf.core.errors import DatasetError


def read_vocabulary(file: str | os.PathLike | None) -> bytes | None:
    """Reads and checks a SentencePiece model; None if no file is named.

    Raises:
      DatasetError: no such file, or something else.
    """
    if file is None:
        return None
    if not pathlib.Path(file).is_file():
        raise DatasetError(f"--tokenizer {file}: no such file; expected a SentencePiece model")
    try:
        return text.load_tokenizer(file).model
    except ValueError as error:
        raise DatasetError(f"--tokenizer {error}") from error
