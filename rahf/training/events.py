"""TensorBoard events of a run, written at once and in this thread.

tensorboardX's own `SummaryWriter` writes in a thread: when the disk is full, the thread dies with a traceback and the
run waits for ever for room in its queue. Here the error reaches the run.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

from rahf.core.files import disk_full_named


class EventFile:
    """A file of scalars for TensorBoard."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Begins a file.

        Args:
          folder: for the file; it is made.
          first_step: TensorBoard forgets what earlier files hold from this step on.

        Raises:
          DiskFull: no space left.
          OSError: the file cannot be written.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._event, self._folder = event_pb2.Event, folder
        with disk_full_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._write(step=first_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Writes values by name, and flushes. Raises OSError."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))
        with disk_full_named(self._folder):
            self._writer.flush()

    def _write(self, **fields) -> None:
        with disk_full_named(self._folder):
            self._writer.write_event(self._event(wall_time=time.time(), **fields))

    def close(self) -> None:
        """Closes the file. What could not be written was an error before."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed already
            self._writer.close()
