"""A signal ends a command within two seconds, whatever its threads and its compiled code are doing.

Python runs the handler of a signal only when the main thread is between two instructions of Python: not while XLA
compiles, while a file system does not answer, or while a thread pool waits for its threads.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

#: Seconds that a command has to end by itself, with what it must still write or remove.
GRACE = 1.5


def watch(grace: float = GRACE, end: Callable[[int], None] = os._exit) -> Callable[[], None]:
    """Ends the process `grace` seconds after a SIGINT that nothing but Python's own handler answers.

    A training run has a handler, which saves a checkpoint; there the second SIGINT counts. Called in the main thread.

    Args:
      grace: in seconds.
      end: called with the exit code; by default the process ends at once.

    Returns:
      A function that ends the watch.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Python writes the number of each signal here, in the handler of the operating system.
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def wait(_writer: socket.socket) -> None:  # the thread keeps it open: nobody else may refer to it
        answered = 0
        while number := reader.recv(1):
            if number[0] != signal.SIGINT:
                continue
            answered += 1
            if answered > 1 or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                stopped.wait(grace)
                if not stopped.is_set():
                    end(128 + signal.SIGINT)
                return

    def stop() -> None:
        stopped.set()
        signal.set_wakeup_fd(previous)
        writer.close()
        thread.join()
        reader.close()

    stopped = threading.Event()
    thread = threading.Thread(target=wait, args=(writer,), daemon=True, name="rahf-interrupt")
    thread.start()
    return stop
