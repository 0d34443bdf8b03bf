"""Runs `rahf` and ends it from within: python ended_run.py HOW ARGUMENTS…

HOW is ``SIGKILL:5`` (any signal, when the fifth batch is taken) or ``saving:2`` (SIGKILL at some moment while the
second checkpoint for resuming is being written).
"""

import os
import random
import signal
import sys
import threading
import time
from typing import Callable


def at_batch(number: int, act: Callable[[], None]) -> None:
    """Calls `act` before this process takes a training batch for the given time, 1 for the first."""
    from data_pipelines.loader import TrainLoader

    take, taken = TrainLoader.__next__, []

    def counted(self):
        taken.append(1)
        if len(taken) == number:
            act()
        return take(self)

    TrainLoader.__next__ = counted


def while_saving(number: int) -> None:
    """Kills this process while the checkpoint of that number is being written."""
    from rahf.train.checkpoint import Checkpointer

    save, saved = Checkpointer.save, []

    def watched(self, state, data_state):
        saved.append(1)
        if len(saved) == number:
            threading.Thread(target=_kill_at_first_trace, args=(self.folder / "latest",)).start()
        save(self, state, data_state)

    Checkpointer.save = watched


def _kill_at_first_trace(folder) -> None:
    before = set(folder.iterdir())
    while not (new := set(folder.iterdir()) - before):
        time.sleep(0.0002)
    time.sleep(random.uniform(0, 0.03))
    print("killed beside", *(p.name for p in new), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    how, when = sys.argv.pop(1).split(":")
    if how == "saving":
        while_saving(int(when))
    else:
        at_batch(int(when), lambda: os.kill(os.getpid(), signal.Signals[how]))
    from rahf.cli import main

    sys.exit(main())
