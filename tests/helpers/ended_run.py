"""Runs `rahf` and ends it from within: python ended_run.py HOW ARGUMENTS…

HOW is ``SIGKILL:5`` (any signal, when the fifth batch is taken), ``SIGKILL:5:0.1`` (0.1 s later, whatever it does
by then), ``saving:2`` (SIGKILL at some moment while the second checkpoint for resuming is being written), or
``start:0.5`` (SIGKILL half a second after the beginning).
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable


def at_batch(number: int, act: Callable[[], None]) -> None:
    """Calls `act` before this process takes a training batch for the given time, 1 for the first.

    Taken for a step, that is: it was loaded while the step before was running.
    """
    from rahf.training.prefetch import Prefetch

    take, taken = Prefetch.take, []

    def counted(self):
        taken.append(1)
        if len(taken) == number:
            act()
        return take(self)

    Prefetch.take = counted


def while_saving(number: int) -> None:
    """Kills this process while the checkpoint of that number is being written."""
    from rahf.training.checkpoint import Checkpointer

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


def after(seconds: float, number: int = signal.SIGKILL) -> None:
    """Sends this process a signal some time from now."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def tell(number: int) -> None:
    """Sends this process a signal, and waits until the other processes of the run know of it."""
    signal.raise_signal(number)
    if number == signal.SIGTERM and int(os.environ.get("RAHF_PROCESSES", "1")) > 1:
        time.sleep(5)  # JAX looks for it once a second; by then a short run might be at its end


def arrange(how: str) -> None:
    """Prepares the end, as in the description of this file."""
    what, *when = how.split(":")
    if what == "start":
        after(float(when[0]))
    elif what == "saving":
        while_saving(int(when[0]))
    else:
        number, delay = signal.Signals[what], [float(seconds) for seconds in when[1:]]
        at_batch(int(when[0]), lambda: after(delay[0], number) if delay else tell(number))


if __name__ == "__main__":
    arrange(sys.argv.pop(1))
    from rahf.cli.main import main

    sys.exit(main())
