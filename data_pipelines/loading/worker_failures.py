"""Data worker processes that die: what they were doing, and what is said about it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from typing import Any

from data_pipelines.loading.worker import ENTRY
from rahf.core.errors import WorkerFailure

#: Deaths without a batch in between after which it is no use to start again.
MOST = 3


class Diary:
    """What every worker process is doing, in a small file that outlives it: its process id and the record it reads."""

    def __init__(self, workers: int):
        self.workers = workers
        handle, self.path = tempfile.mkstemp(prefix="rahf-workers-")
        os.write(handle, ENTRY.pack(0, -1) * workers)
        os.close(handle)

    def dead(self) -> list[tuple[int, int | None]]:
        """Number of each worker that has begun and is no more, and the record it read last, None if none."""
        with open(self.path, "rb") as file:
            entries = list(ENTRY.iter_unpack(file.read()))
        gone = [(number, record) for number, (pid, record) in enumerate(entries) if pid and not _alive(pid)]
        return [(number, None if record < 0 else record) for number, record in gone]

    def close(self) -> None:
        """Removes the file."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def explain(error: RuntimeError, times: int, diary: Diary | None, source: Any, where: str) -> str:
    """What to say of an error of Grain's, if the workers are to be started again.

    Args:
      times: how often in a row it has happened.
      diary: of the workers.
      source: of the records, by index.
      where: the dataset and split, for people.

    Raises:
      WorkerFailure: for the third time in a row.
      RuntimeError: it was something else than the death of a worker.
    """
    if not _has_died(error):
        raise RuntimeError(f"the data loader failed: {error}") from error
    dead = diary.dead() if diary else []
    which = [f"data worker {n + 1} of {diary.workers} died at {_named(record, source, where)}" for n, record in dead]
    what = f"{'; '.join(which) or 'a data worker process died'} ({_reason(error)})"
    if times == MOST:
        raise WorkerFailure(
            f"{what}; {times} times at the same place. If it is memory, fewer data.workers, or 0, need less; "
            "if it is always the same record, prepare the data without it"
        ) from error
    return f"warning: {what}; started again at the same place ({times} of {MOST - 1} times)"


def _named(record: int | None, source: Any, where: str) -> str:
    if record is None:
        return f"its first record of {where}"
    try:
        uid = f" (uid {source[record].uid!r})"
    except Exception:  # noqa: BLE001 - the record may be what it died of
        uid = ""
    return f"record {record}{uid} of {where}"


def _has_died(error: RuntimeError) -> bool:
    """Whether Grain says with this error that a worker process has ended."""
    return "terminated unexpectedly" in str(error)


def _reason(error: RuntimeError) -> str:
    """What the end that Grain reports usually means."""
    for number, text in ((signal.SIGKILL, "usually the machine ran out of memory"),
                         (signal.SIGBUS, "usually shared memory ran out")):  # fmt: skip
        if f"exit code {-number}" in str(error):
            return f"killed by {number.name}, {text}"
    return "its own report stands above"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
