"""Failures of data worker processes: which record each was reading, and the message about it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from typing import Any

from data_pipelines.loading.damage import named
from data_pipelines.loading.worker import ENTRY
from rahf.core.errors import WorkerFailure

#: Failures without a batch in between after which the workers are not started again.
MOST_FAILURES = 3


class ReadLog:
    """The process id of every worker and the record that it reads, in a small file that outlives the processes."""

    def __init__(self, workers: int):
        self.workers = workers
        handle, self.path = tempfile.mkstemp(prefix="rahf-workers-")
        os.write(handle, ENTRY.pack(0, -1) * workers)
        os.close(handle)

    def ended(self) -> list[tuple[int, int | None]]:
        """Number of each worker process that has ended, and the record that it read last (None: it read none)."""
        with open(self.path, "rb") as file:
            entries = list(ENTRY.iter_unpack(file.read()))
        ended = [(number, record) for number, (pid, record) in enumerate(entries) if pid and not _alive(pid)]
        return [(number, None if record < 0 else record) for number, record in ended]

    def close(self) -> None:
        """Removes the file."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def explain(error: RuntimeError, times: int, log: ReadLog | None, source: Any, where: str) -> str:
    """The warning about an error of Grain after which the workers are started again.

    Args:
      error: raised by Grain.
      times: number of failures in a row.
      log: of the workers.
      source: the records, by index.
      where: dataset and split, for the message.

    Raises:
      WorkerFailure: for the third time in a row.
      RuntimeError: `error` is not the failure of a worker.
    """
    if not _is_worker_failure(error):
        raise RuntimeError(f"the data loader failed: {error}") from error
    ended = log.ended() if log else []
    which = [f"data worker {n + 1} of {log.workers} died at {_named(record, source, where)}" for n, record in ended]
    what = f"{'; '.join(which) or 'a data worker process died'} ({_reason(error)})"
    if times == MOST_FAILURES:
        raise WorkerFailure(
            f"{what}; {times} times at the same place. If it is memory, fewer data.workers, or 0, need less; "
            "if it is always the same record, prepare the data without it"
        ) from error
    return f"warning: {what}; started again at the same place ({times} of {MOST_FAILURES - 1} times)"


def _named(record: int | None, source: Any, where: str) -> str:
    """Number and uid of the record that a worker read, for messages."""
    return f"its first record of {where}" if record is None else named(record, source, where)


def _is_worker_failure(error: RuntimeError) -> bool:
    """Whether Grain reports with this error that a worker process has ended."""
    return "terminated unexpectedly" in str(error)


def _reason(error: RuntimeError) -> str:
    """The usual cause of the exit code that Grain reports."""
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
