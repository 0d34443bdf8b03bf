"""Files that a clone without Git LFS holds in place of the data."""

from __future__ import annotations

import pathlib
import re

from data_pipelines.store import DatasetError

_START = b"version https://git-lfs"


def check(path: pathlib.Path) -> None:
    """Raises DatasetError, with the remedy, if the file is a Git-LFS pointer instead of its content."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start.startswith(_START):
        return
    text = start.decode(errors="replace")
    size, oid = re.search(r"size (\d+)", text), re.search(r"oid (\S+)", text)
    raise DatasetError(
        f"{path} is a Git-LFS pointer, not the data: the real file has "
        f"{size[1] if size else 'an unknown number of'} bytes ({oid[1] if oid else 'no oid given'}). "
        "Get it with `git lfs install && git lfs pull` in the clone it comes from "
        "(labels: https://github.com/google-research-datasets/richhf-18k)"
    )
