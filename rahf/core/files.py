"""Atomic writes, reading regular files only, and the check for Git-LFS pointers.

A reader of a path sees its old content or the complete new one, never a part of it. The new content is written under a
temporary name in the same folder and takes its own name by `os.replace`. A failure removes what was written so far; a
killed process leaves it behind, and the old content in its place.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import pathlib
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

from rahf.core.errors import ArgumentError, DatasetError, DiskFull, NotRegularFile, RahfError

#: End of the names of files and folders that are being written.
UNFINISHED = ".unfinished"
_NAME_LENGTH = 40  # characters of a file's name in its temporary name: file systems limit names to 255 bytes
#: Numbers of the errors of a full disk.
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: str | os.PathLike, data: bytes | str, sync: bool = False) -> None:
    """Writes a file, and the folders that are to hold it.

    Args:
      path: the file; one that exists is replaced.
      data: its content; text is written as UTF-8.
      sync: wait until the content is on the device, so that it also survives a crash of the machine.

    Raises:
      DiskFull: no space left.
      OSError: the file cannot be written.
    """
    with open_atomically(path, sync) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike, sync: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write in pieces; takes its name when the block ends without an error. See `write_atomically`."""
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the temporary path at which the block creates the file; renames it when the block ends without an error.

    Raises:
      DiskFull: no space left.
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(temporary_name(path.name))
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a new empty folder; it takes the name `path` when the block ends without an error.

    A folder may be large. Its temporary name is therefore always the same, so that the next write removes what a killed
    process has left. A folder in the place of `path` is replaced. This takes two renames: a process that is killed
    between them leaves nothing under the name `path`, and the old folder as ``.NAME.old``.

    Raises:
      DiskFull: no space left.
      OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    unfinished, old = path.with_name(f".{path.name}{UNFINISHED}"), path.with_name(f".{path.name}.old")
    with disk_full_named(path):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(unfinished, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def check_writable(folder: str | os.PathLike, remedy: str) -> None:
    """Checks that files can be written into a folder: before long work, not after it. Nothing is left behind.

    Args:
      folder: that is to hold results; it need not exist.
      remedy: what to do otherwise, for the end of the message.

    Raises:
      ArgumentError: it is no folder, or it cannot be written to.
    """
    folder = pathlib.Path(folder).absolute()
    try:
        probe = next(path for path in (folder, *folder.parents) if path.exists()) / temporary_name("probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentError(f"{folder}: cannot be written to ({error.strerror or error}); {remedy}") from error


def temporary_name(name: str) -> str:
    """A name for the unfinished file `name`. Differs each time: several machines may write to one folder."""
    return f".{name[:_NAME_LENGTH]}.{secrets.token_hex(4)}{UNFINISHED}"


def remove_unfinished(path: str | os.PathLike) -> None:
    """Removes what killed processes have left of writes to `path`. Nobody else may be writing to it."""
    path = pathlib.Path(path)
    for file in path.parent.glob(f".{glob.escape(path.name[:_NAME_LENGTH])}.*{UNFINISHED}"):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_full_named(path: pathlib.Path) -> Iterator[None]:
    """Turns the error of a full disk into one that names the file and the remedy, whichever library raised it."""
    try:
        yield
    except Exception as error:
        number = _full_number(error)
        if number is None or isinstance(error, RahfError):
            raise
        text = getattr(error, "strerror", None) or os.strerror(number)
        raise DiskFull(number, disk_full_message(path, text)) from error


def _full_number(error: Exception) -> int | None:
    """The number of the error of a full disk; None for any other error."""
    if isinstance(error, OSError):
        return error.errno if error.errno in FULL else None
    # Libraries in C++ (array_record) raise other classes, with the system's text in the message.
    return next((number for number in FULL if os.strerror(number) in str(error)), None)


def disk_full_message(path: str | os.PathLike, text: str) -> str:
    """What to say of a full disk: the file, the system's text and the remedy."""
    return f"{os.fspath(path)}: the disk is full ({text}); free some space, or write to another place"


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading, and nothing else: a FIFO or a device could block the program for ever.

    Raises:
      NotRegularFile: a FIFO, device or socket.
      OSError: the file is missing, a folder, or cannot be read.
    """
    # Without O_NONBLOCK `open` would wait for a writer of a FIFO.
    handle = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise NotRegularFile(errno.EINVAL, f"{_kind(mode)}, not a regular file; give a file", os.fspath(path))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike) -> bytes:
    """The content of a regular file. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_regular_text(path: str | os.PathLike, encoding: str = "utf-8") -> str:
    """The text of a regular file. Raises as `open_regular`, and UnicodeDecodeError."""
    return read_regular(path).decode(encoding).replace("\r\n", "\n")


_NONBLOCK, _BINARY = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_BINARY", 0)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


_LFS_START = b"version https://git-lfs"
#: What to do about a Git-LFS pointer.
LFS_REMEDY = "get it with `git lfs install && git lfs pull` in the clone it comes from"


def is_lfs_pointer(path: str | os.PathLike) -> bool:
    """Whether a file is a Git-LFS pointer instead of its content. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        return file.read(len(_LFS_START)) == _LFS_START


def check_not_lfs_pointer(path: str | os.PathLike, remedy: str = LFS_REMEDY) -> None:
    """Checks that a file is no Git-LFS pointer.

    Args:
      path: the file.
      remedy: what the user shall do, for the end of the message.

    Raises:
      DatasetError: it is one; the message gives size and digest of the content, and the remedy.
      OSError: the file cannot be read.
    """
    if not is_lfs_pointer(path):
        return
    with open(path, "rb") as file:
        text = file.read(512).decode(errors="replace")
    size, oid = re.search(r"size (\d+)", text), re.search(r"oid (\S+)", text)
    raise DatasetError(
        f"{os.fspath(path)} is a Git-LFS pointer, not the data: the content has "
        f"{size[1] if size else 'an unknown number of'} bytes ({oid[1] if oid else 'no oid given'}); {remedy}"
    )
