"""Files by local path or URL (any protocol of fsspec: s3://, gs://, https://, memory://).

The functions import fsspec and pyarrow, because they are heavy and `rahf mask`, which uses this module, needs neither.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import io
import os
import pathlib
import posixpath
import stat as stat_lib
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from rahf.core import lock
from rahf.core.errors import ScoreError
from rahf.core.files import open_regular, temporary_name, write_atomically

_GLOB = frozenset("*?[")
#: Protocols of fsspec that name files of this machine.
_LOCAL = ("file", "local")
#: What file systems of fsspec say about the state of a file, beside its size.
_MARKS = (
    "etag", "ETag", "md5Hash", "crc32c", "checksum", "generation", "version_id",
    "mtime", "modified", "LastModified", "last_modified", "updated", "created",
)  # fmt: skip


class FolderEntry(NamedTuple):
    """A file below a folder."""

    name: str  # relative to the folder, with "/"
    stamp: str  # of `stamp`
    error: str  # why it cannot be read; "" otherwise


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
    path = local_path(os.fspath(path))
    return path if is_url(path) else os.path.abspath(path)


def local_path(path: str) -> str:
    """The path in a URL that names a file of this machine (``file:///a/b``); any other path as it is."""
    protocol, separator, rest = path.partition("://")
    if not separator or protocol.lower() not in _LOCAL or "::" in path:
        return path
    return urllib.request.url2pathname(rest.removeprefix("localhost"))


def join(folder: str, name: str) -> str:
    """`name` in `folder`; an absolute name or a URL stays as it is."""
    if is_url(name):
        return name
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, name)


def reachable(folder: str, name: str, allowed: Sequence[str] = ()) -> str:
    """The path or URL of a picture that a line of data names.

    A line of data names only what lies below the input's folder, or on the input's own protocol and host, so that
    nobody who writes data decides what this machine reads and which requests it sends.

    Args:
      folder: of the input, absolute or a URL.
      name: from the data: relative to `folder`, or absolute, or a URL.
      allowed: further folders and URLs below which a name may lie.

    Raises:
      ValueError: the name leads elsewhere. The message says how to allow it.
    """
    path = join(folder, name)
    if is_url(path):
        if "::" in path:
            raise ValueError(f"{name!r:.200} is a chain of protocols, which data may not name")
        if any(part == ".." for part in urllib.parse.unquote(urllib.parse.urlsplit(path).path).split("/")):
            raise ValueError(f"{name!r:.200} holds '..'; name it without")
        inside = is_url(folder) and _host(folder) == _host(path)
        below = any(is_url(one) and _is_below_url(path, one) for one in allowed)
    else:
        real = os.path.realpath(path) if os.path.islink(path) else _real_file(path)
        inside = not is_url(folder) and _is_below(real, _real_folder(folder))
        below = any(not is_url(one) and _is_below(real, _real_folder(one)) for one in map(local_path, allowed))
    if not inside and not below:
        where = parent(path) or "/"
        raise ValueError(f"{name!r:.200} leads out of {folder}; to allow it, give --images-from {where!r:.200}")
    return path


@functools.lru_cache(4096)
def _real_folder(folder: str) -> str:
    """A folder, links followed. Kept, because the lines of a file name few folders, and each link is a system call."""
    return os.path.realpath(folder)


def _real_file(path: str) -> str:
    """A path whose last component is no link."""
    folder, name = os.path.split(path)
    return os.path.realpath(path) if name in ("", ".", "..") else os.path.join(_real_folder(folder), name)


def _host(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def _is_below_url(url: str, prefix: str) -> bool:
    path, start = (urllib.parse.urlsplit(one).path.rstrip("/") + "/" for one in (url, prefix))
    return _host(url) == _host(prefix) and path.startswith(start)


def _is_below(path: str, folder: str) -> bool:
    return pathlib.PurePath(path).is_relative_to(folder)


def parent(path: str) -> str:
    """The folder that holds a file."""
    return path.rsplit("/", 1)[0] if is_url(path) else os.path.dirname(path)


def open_binary(path: str) -> BinaryIO:
    """Opens for reading, seekable where the storage allows. Raises OSError, also for a FIFO or a device."""
    if not is_url(path):
        return open_regular(path)
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


def stamp(path: str) -> str:
    """Size and time of change of a file (by URL: what its file system says); another one if the file was changed.

    Raises OSError.
    """
    if not is_url(path):
        return _local_stamp(os.stat(path))
    fs, inside = filesystem(path)
    return _remote_stamp(fs.info(inside))


def _local_stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote_stamp(info: Mapping[str, Any]) -> str:
    return " ".join(str(info[name]) for name in ("size", *_MARKS) if info.get(name) is not None)


def walk(folder: str) -> list[FolderEntry]:
    """All files below a folder, sorted by name, hidden ones and what cannot be read included."""
    if not is_url(folder):
        return sorted(_walk(folder))
    fs, inside = filesystem(folder)
    fs.invalidate_cache(inside)
    start = len(inside.rstrip("/")) + 1
    found = fs.find(inside, detail=True)
    return sorted(FolderEntry(path[start:], _remote_stamp(info), "") for path, info in found.items())


def _walk(root: str) -> Iterator[FolderEntry]:
    """Follows links to folders, each folder once."""
    todo, seen = [""], set()
    while todo:
        prefix = todo.pop()
        try:
            status = os.stat(os.path.join(root, prefix))
            if (status.st_dev, status.st_ino) in seen:
                yield FolderEntry(prefix, "", "leads to a folder that is read already")
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, prefix)) as items:
                for item in items:
                    name = prefix + item.name
                    if item.is_dir():
                        todo.append(name + "/")
                    else:
                        yield _entry(name, item)
        except OSError as error:
            yield FolderEntry(prefix, "", f"cannot be read ({error.strerror})")


def _entry(name: str, item: os.DirEntry) -> FolderEntry:
    try:
        status = item.stat()
    except OSError as error:  # a link to nothing
        return FolderEntry(name, "", f"cannot be read ({error.strerror})")
    return FolderEntry(name, _local_stamp(status), "" if stat_lib.S_ISREG(status.st_mode) else "not a regular file")


def expand(path: str) -> list[str]:
    """The files of a pattern, sorted. A name without * ? [ and the name of an existing file stand for themselves."""
    if not _GLOB & set(path):
        return [path]
    if not is_url(path):
        return [path] if os.path.exists(path) else sorted(glob.glob(path))
    fs, inside = filesystem(path)
    return sorted(fs.unstrip_protocol(match) for match in fs.glob(inside))


def fits(name: str, pattern: str) -> bool:
    """Whether one component of a path fits a pattern."""
    return bool(_GLOB & set(pattern)) and fnmatch.fnmatchcase(name, pattern)


def locked(folder: str) -> contextlib.AbstractContextManager[bool]:
    """Keeps other jobs out of a folder of scores; gives whether it does, which it cannot by URL. Raises FolderInUse."""
    return contextlib.nullcontext(False) if is_url(folder) else lock.locked(folder, "writes scores")


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

    if is_url(path):
        return pq.ParquetFile(open_binary(path))
    open_binary(path).close()  # names what is no regular file, for which Arrow would wait
    return pq.ParquetFile(path)


def parquet_bytes(table) -> bytes:
    """A table as a parquet file; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
