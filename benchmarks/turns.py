"""Lets programs share one device: they import and compile beside each other, and whatever is timed is alone.

`benchmarks/gpu.py` names a file in RAHF_BENCHMARK_TURNS and runs several programs at a time. A program calls `share`
before it first touches the device, and `alone` before it first reads a clock. Its turn lasts until its process ends.
Without the variable both do nothing. The operating system gives up the lock of a process that ends in any way. A
program that knows nothing of turns has one for all of its life by

    python benchmarks/turns.py alone|shared PROGRAM [ARGUMENTS]
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import sys

VARIABLE = "RAHF_BENCHMARK_TURNS"
_held: list[int] = []  # the open file of this process


def _lock(kind: int) -> None:
    file = os.environ.get(VARIABLE)
    if not file:
        return
    if not _held:
        _held.append(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    fcntl.flock(_held[0], fcntl.LOCK_UN)  # two programs that both kept theirs would wait for each other for ever
    fcntl.flock(_held[0], kind)


def share() -> None:
    """Waits until nobody is alone; from then on nobody is, until this process ends or calls `alone`."""
    _lock(fcntl.LOCK_SH)


def alone() -> None:
    """Waits until this process is the only one that has a turn; others wait until it ends."""
    file = os.environ.get(VARIABLE)
    mark = pathlib.Path(f"{file}.waiting.{os.getpid()}") if file else None
    if mark:
        mark.touch()  # `waiting`: this time is none of the program's own
    try:
        _lock(fcntl.LOCK_EX)
    finally:
        if mark:
            mark.unlink(missing_ok=True)


def waiting(file: str, process: int) -> bool:
    """Whether a process waits in `alone`; `file` is the value of the variable."""
    return pathlib.Path(f"{file}.waiting.{process}").exists()


if __name__ == "__main__":
    {"shared": share, "alone": alone}[sys.argv[1]]()
    if _held:
        os.set_inheritable(_held[0], True)  # the lock goes on with the program that takes the place of this one
    os.execvp(sys.argv[2], sys.argv[2:])
