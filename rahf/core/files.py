"""Files that are written whole or not at all, and files that are not what their name says."""

from __future__ import annotations

import os
import pathlib
import re

from rahf.core.errors import DatasetError


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames. Makes its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{os.getpid()}"
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


_LFS_START = b"version https://git-lfs"


def check_not_lfs_pointer(path: pathlib.Path) -> None:
    """Raises DatasetError, with the remedy, if the file is a Git-LFS pointer instead of its content."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start.startswith(_LFS_START):
        return
    text = start.decode(errors="replace")
    size, oid = re.search(r"size (\d+)", text), re.search(r"oid (\S+)", text)
    raise DatasetError(
        f"{path} is a Git-LFS pointer, not the data: the real file has "
        f"{size[1] if size else 'an unknown number of'} bytes ({oid[1] if oid else 'no oid given'}). "
        "Get it with `git lfs install && git lfs pull` in the clone it comes from "
        "(labels: https://github.com/google-research-datasets/richhf-18k)"
    )
