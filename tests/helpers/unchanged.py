"""Folders that tests share: nobody may change them."""

import hashlib
import pathlib
from collections.abc import Iterator


def unchanged(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder; at the end of all tests an error if one of them has changed it, whatever their order was."""
    before = sums(folder)
    yield folder
    after = sums(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"a test changed what others share and must take a copy of it: {changed} in {folder}"


def sums(folder: pathlib.Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
