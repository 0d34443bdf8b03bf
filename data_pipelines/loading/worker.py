"""What runs first in a data worker process: it starts fast, stays free of JAX and ends with its parent.

Grain starts its workers with Python's "spawn" method, which has two consequences that we do not want:

* A spawned process imports the user's main script again. A training script without a ``__main__`` guard
  would train inside every worker, and one with it still imports JAX (a second, and on a machine with an
  accelerator memory on the device).
* Grain imports JAX for its tree functions wherever JAX is installed, and else uses its own.

`install` therefore lets Grain's workers, and only them, run this module in place of the main script; run that
way, it hides JAX while Grain is imported. Functions that a main script defines still reach the workers: Grain
pickles them by value.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import struct
import sys
import threading
from multiprocessing import spawn
from typing import Any

from rahf.core.errors import ConfigError

_NAME = "data_pipelines.loading.worker"
_PREFIX = "grain-process-prefetch"  # how Grain names its worker processes
_HIDDEN = ("jax", "jaxlib")
ENTRY = struct.Struct("<qq")  # of a worker's diary (`data_pipelines.loading.worker_failures`): process id, record
_number: int | None = None  # of this worker process; None in all others
_handle: int | None = None  # its diary, opened
_SHARED_MEMORY = "/dev/shm"  # where Linux keeps what processes share


def install() -> None:
    """Makes worker processes that Grain starts from now on begin with this module. May be called again."""
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
    """Grain reads this flag of its own whenever it makes workers, which fails in programs that do not parse
    their command line with absl."""
    from absl import flags

    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[name].present = True  # its default then counts as its value


def start(index: int, count: int) -> None:
    """Runs in worker `index` of `count` before its first batch.

    Ctrl-C is for the parent, which saves and then ends its workers; and a worker whose parent was killed
    ends, where Grain would let it wait forever.
    """
    global _number
    _number = index
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def check_shared_memory(needed: int, workers: int) -> None:
    """Too little of it would end a worker with a bare "bus error" in the middle of a batch."""
    if os.path.isdir(_SHARED_MEMORY) and (free := shutil.disk_usage(_SHARED_MEMORY).free) < needed:
        raise ConfigError(
            f"{workers} data workers need {needed / 2**20:.0f} MiB of shared memory for finished batches, "
            f"{_SHARED_MEMORY} has {free / 2**20:.0f} MiB free; enlarge it (docker run --shm-size), "
            "or set data.workers to 0 (threads), or a smaller batch"
        )


class Noted:
    """A source that writes into a diary, in worker processes, which record is read."""

    def __init__(self, source: Any):
        self.source, self.diary = source, ""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        if _number is not None and self.diary:
            global _handle
            if _handle is None:
                _handle = os.open(self.diary, os.O_WRONLY)
            os.pwrite(_handle, ENTRY.pack(os.getpid(), index), _number * ENTRY.size)
        return self.source[index]


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _import_grain_without_jax() -> None:
    import logging

    for name in _HIDDEN:
        sys.modules[name] = None
    logging.disable(logging.WARNING)  # Grain says that it found no JAX profiler
    try:
        import grain  # noqa: F401
    finally:
        logging.disable(logging.NOTSET)
        for name in _HIDDEN:
            del sys.modules[name]


if __name__ == "__mp_main__":  # the name that "spawn" gives to the main module of a new process
    # One thread per worker for linear algebra: the workers themselves fill the cores.
    for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")
    _import_grain_without_jax()
