"""The main module of data worker processes: they start fast, do not import JAX, and end with their parent.

Grain starts its workers with Python's "spawn" method. This has two unwanted consequences:

* A spawned process imports the user's main script again. A training script without a ``__main__`` guard would train
  inside every worker. A script with it still imports JAX, which takes a second, and memory of an accelerator.
* Grain imports JAX for its tree functions wherever JAX is installed, and otherwise uses its own.

`install` therefore makes Grain's workers, and only them, run this module in place of the main script. As the main
module it hides JAX while it imports Grain. Functions of the main script still reach the workers: Grain pickles them by
value.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import struct
import sys
import threading
from multiprocessing import spawn
from typing import Any

from absl import flags

from rahf.core.errors import ConfigError

_NAME = "data_pipelines.loading.worker"
_PREFIX = "grain-process-prefetch"  # of the names of worker processes of Grain
_HIDDEN = ("jax", "jaxlib")
#: Of each worker in the log of `data_pipelines.loading.worker_failures`: its process id, the record that it reads.
ENTRY = struct.Struct("<qq")
_SHARED_MEMORY = "/dev/shm"  # the folder of shared memory on Linux
_number: int | None = None  # of this worker process; None in all others
_log_handle: int | None = None  # file descriptor of the log in this worker process


def install() -> None:
    """Makes worker processes that Grain starts from now on run this module first. May be called again."""
    _give_flag_a_value()
    original = spawn.get_preparation_data
    if getattr(original, "begins_with", None) == _NAME:
        return

    def get_preparation_data(name: str) -> dict[str, Any]:
        data = original(name)
        if name.startswith(_PREFIX):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = _NAME
        return data

    get_preparation_data.begins_with = _NAME
    spawn.get_preparation_data = get_preparation_data


def _give_flag_a_value() -> None:
    """Gives one flag of Grain its default value.

    Grain reads it whenever it starts workers. This fails in programs that do not parse their command line with absl.
    """
    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[name].present = True  # absl then returns the default


def start(index: int, count: int) -> None:
    """Runs in worker `index` of `count` before its first batch.

    The worker ignores Ctrl-C: the parent saves, and then ends its workers. It ends when its parent was killed, where
    Grain would let it wait forever.
    """
    global _number
    _number = index
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def check_shared_memory(needed: int, workers: int) -> None:
    """Raises ConfigError if shared memory is too small; a worker would end with a "bus error" in the middle of a batch.

    Args:
      needed: bytes.
      workers: their number, for the message.
    """
    if os.path.isdir(_SHARED_MEMORY) and (free := shutil.disk_usage(_SHARED_MEMORY).free) < needed:
        raise ConfigError(
            f"{workers} data workers need {needed / 2**20:.0f} MiB of shared memory for finished batches, "
            f"{_SHARED_MEMORY} has {free / 2**20:.0f} MiB free; enlarge it (docker run --shm-size), "
            "or set data.workers to 0 (threads), or a smaller batch"
        )


class LoggedSource:
    """A source that in worker processes writes to the log, before it reads a record, which one it is.

    Records are numbered from `first` on, so that several sources have different numbers.
    """

    def __init__(self, source: Any, first: int = 0):
        self.source, self.first, self.log = source, first, ""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        if _number is not None and self.log:
            global _log_handle
            if _log_handle is None:
                _log_handle = os.open(self.log, os.O_WRONLY)
            os.pwrite(_log_handle, ENTRY.pack(os.getpid(), self.first + index), _number * ENTRY.size)
        return self.source[index]


def _end_with(parent: Any) -> None:
    """Waits for the end of the parent process, then ends this one."""
    parent.join()
    os._exit(1)


def _import_grain_without_jax() -> None:
    for name in _HIDDEN:
        sys.modules[name] = None
    logging.disable(logging.WARNING)  # Grain warns that there is no JAX profiler
    try:
        import grain  # noqa: F401 - here, because JAX is hidden only now
    finally:
        logging.disable(logging.NOTSET)
        for name in _HIDDEN:
            del sys.modules[name]


if __name__ == "__mp_main__":  # the name that "spawn" gives to the main module of a new process
    # One thread per worker for linear algebra: the workers themselves use all cores.
    for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")
    _import_grain_without_jax()
