"""One process at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from rahf.core.errors import FolderInUse

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: The file in a folder on which its lock is taken. It goes with the lock.
LOCK_FILE = ".rahf.lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_HELD: set[int] = set()  # descriptors of the locks of this process


@contextlib.contextmanager
def locked(folder: str | os.PathLike, purpose: str) -> Iterator[bool]:
    """Keeps other processes out of a folder for the time of the block. Makes the folder.

    Args:
      folder: a local folder.
      purpose: what the block does there, for the message to the other process: "trains", "writes scores".

    Yields:
      Whether the folder is locked; False where the file system or the platform has no locks.

    Raises:
      FolderInUse: another process holds the lock.
      OSError: the folder cannot be made or written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _take(folder / LOCK_FILE, folder, purpose)
    if descriptor is None:
        yield False
        return
    _HELD.add(descriptor)
    try:
        yield True
    finally:
        _HELD.discard(descriptor)
        # Removed before it is released: `_take` notices that the file it has opened is no longer the one in the folder.
        (folder / LOCK_FILE).unlink(missing_ok=True)
        os.close(descriptor)


def _close_in_child() -> None:
    """A forked child shares the lock, which would outlive the process that took it."""
    for descriptor in _HELD:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _take(file: pathlib.Path, folder: pathlib.Path, purpose: str) -> int | None:
    """The open, locked file; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 40, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in _BUSY:
                return None
            raise FolderInUse(
                f"{folder}: another process{f' ({holder})' if holder else ''} {purpose} there; wait until it has "
                "ended, or give another folder"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        os.close(descriptor)  # its holder has removed it in the meantime: lock the new one
