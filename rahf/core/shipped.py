"""Models that come with the package, by name: exported files in `rahf/shipped`."""

from __future__ import annotations

import os
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "shipped"


def names() -> dict[str, pathlib.Path]:
    """The file of each shipped model by its name, in the order of the names."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.rahf"))}


def resolve(path: str | os.PathLike) -> str | os.PathLike:
    """The file of a shipped model for its name, anything else as it is. A local path that exists always wins."""
    if not isinstance(path, str) or os.path.exists(path):
        return path
    file = names().get(path)
    return path if file is None else os.fspath(file)
