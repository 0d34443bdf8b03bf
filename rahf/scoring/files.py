"""Files by local path or URL (any protocol of fsspec: s3://, gs://, https://, memory://).

The functions import fsspec and pyarrow, because they are heavy and `rahf mask`, which uses this module, needs neither.
"""

from __future__ import annotations

import glob
import io
import os
import pathlib
import posixpath
from typing import BinaryIO

from rahf.core.errors import ScoreError
from rahf.core.files import temporary_name, write_atomically

_GLOB = frozenset("*?[")


def is_url(path: str) -> bool:
    """Whether a path names a protocol. Only such paths reach fsspec, so local names may contain any character."""
    return "://" in path


def filesystem(url: str):
    """The fsspec filesystem of a URL, and the path in it. Raises ScoreError if the protocol's package is missing."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ScoreError(f"{url}: {error}") from error


def absolute(path: str | os.PathLike) -> str:
    """A path that means the same in every process: an absolute path or a URL."""
    path = os.fspath(path)
    return path if is_url(path) else os.path.abspath(path)


def join(folder: str, name: str) -> str:
    """`name` in `folder`; an absolute name or a URL stays as it is."""
    if is_url(name):
        return name
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """The folder that holds a file."""
    return path.rsplit("/", 1)[0] if is_url(path) else os.path.dirname(path)


def open_binary(path: str) -> BinaryIO:
    """Opens for reading, seekable where the storage allows. Raises OSError."""
    if not is_url(path):
        return open(path, "rb")
    fs, inside = filesystem(path)
    return fs.open(inside, "rb")


def read(path: str, most: int) -> bytes:
    """Content of a file. Raises OSError, and ValueError if it has more than `most` bytes."""
    with open_binary(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most / 1e6:g} MB")
    return data


def size(path: str) -> int:
    """Bytes of a file. Raises OSError."""
    if not is_url(path):
        return os.stat(path).st_size
    fs, inside = filesystem(path)
    return int(fs.info(inside).get("size") or 0)


def is_folder(path: str) -> bool:
    """Whether there is a folder."""
    if not is_url(path):
        return os.path.isdir(path)
    fs, inside = filesystem(path)
    return fs.isdir(inside)


def walk(folder: str) -> list[str]:
    """Paths of all files below a folder, relative to it, with "/", sorted. Hidden ones are left out."""
    if is_url(folder):
        fs, inside = filesystem(folder)
        start = len(inside.rstrip("/")) + 1
        paths = [path[start:] for path in fs.find(inside)]
    else:
        root = pathlib.Path(folder)
        paths = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.split("/")))


def expand(path: str) -> list[str]:
    """The files of a pattern, sorted. A name without * ? [ and the name of an existing file stand for themselves."""
    if not _GLOB & set(path):
        return [path]
    if not is_url(path):
        return [path] if os.path.exists(path) else sorted(glob.glob(path))
    fs, inside = filesystem(path)
    return sorted(fs.unstrip_protocol(match) for match in fs.glob(inside))


def listing(folder: str) -> list[str]:
    """Names in a folder, sorted; none if it does not exist."""
    if not is_url(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    fs, inside = filesystem(folder)
    if not fs.isdir(inside):
        return []
    fs.invalidate_cache(inside)
    return sorted(posixpath.basename(path.rstrip("/")) for path in fs.ls(inside, detail=False))


def write(path: str, data: bytes) -> None:
    """Writes a file under another name, then renames it, so that readers never see a part of it. Makes its folder.

    Raises OSError.
    """
    if not is_url(path):
        write_atomically(path, data, sync=True)
        return
    unfinished = join(parent(path), temporary_name(posixpath.basename(path)))
    fs, inside = filesystem(path)
    _, beside = filesystem(unfinished)
    fs.makedirs(parent(inside), exist_ok=True)
    fs.pipe_file(beside, data)
    fs.mv(beside, inside)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    if not is_url(path):
        pathlib.Path(path).unlink(missing_ok=True)
        return
    fs, inside = filesystem(path)
    if fs.exists(inside):
        fs.rm(inside)


def parquet_file(path: str):
    """Opens a parquet file, local or by URL. Raises OSError, pyarrow.ArrowException."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(open_binary(path) if is_url(path) else path)


def parquet_bytes(table) -> bytes:
    """A table as a parquet file; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
