"""Settings of the process: XLA's CPU backend at full speed, a GPU that JAX shares with PyTorch, no use after a fork.

Kept by hand for speed: a tenth of the demo's step on a CPU (docs/benchmarks.md, "The training step").

XLA's CPU backend allocates the buffers of a computation anew for each call, hundreds of MB for a training step. By
default glibc returns large freed buffers to the kernel, and the next step faults them in page by page, filled with
zeros. That costs a tenth of a step, and as much as three steps after a pause in which the kernel has given the memory
to others. The buffer stays in the process on three conditions:

* glibc keeps large free blocks (``TUNABLES``); it reads that setting only when a process starts;
* the block is in the heap of the main thread: other threads have heaps of 64 MB, and larger blocks are mapped;
* so the main thread computes: JAX does not dispatch the step to another thread (`dispatch_in_line`).

None of this concerns accelerators. There, JAX reserves three quarters of a GPU's memory when it starts, unless one of
GPU_MEMORY_SETTINGS says otherwise.
"""

from __future__ import annotations

import os
import sys

from rahf.core.errors import ForkedProcess

#: The process that has loaded a model; None: no process whose memory this one has.
_owner: int | None = None

_KEPT = 4 << 30  # bytes; larger buffers are still returned to the kernel: their steps take long in any case

#: For glibc 2.35 or newer: allocate in huge pages, and keep freed memory.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", _KEPT), ("trim_threshold", _KEPT))
)


def claim() -> None:
    """Notes that this process uses JAX: it loads or uses a model. Call it wherever that happens; it costs nothing.

    Raises:
      ForkedProcess: it was forked from a process that has loaded a model. JAX's threads do not exist in it, and what
        JAX computes would wait for them for ever.
    """
    global _owner
    if _owner is None:
        _owner = os.getpid()
    elif _owner != os.getpid():
        raise ForkedProcess(
            "a model was loaded before this process was forked, and JAX would hang here: load the model inside the "
            "worker only, or start workers by spawn (multiprocessing.get_context('spawn'), or DataLoader(..., "
            "multiprocessing_context='spawn'))"
        )


def restart() -> None:
    """Starts this program again with TUNABLES, under the same process id.

    Does nothing if tunables are set already, perhaps by the user, or the system is not Linux.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


#: Variables of the environment that say how much of a GPU's memory JAX takes. It reads them when it first uses a GPU.
GPU_MEMORY_SETTINGS = (
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "XLA_CLIENT_MEM_FRACTION",
)


def share_gpu_memory() -> None:
    """Makes JAX take memory of a GPU as it needs it, so that PyTorch finds some.

    Does nothing if one of GPU_MEMORY_SETTINGS is set, or where JAX has begun to use its devices.
    """
    bridge = sys.modules.get("jax._src.xla_bridge")  # whether JAX has begun is asked nowhere else
    begun = bridge is not None and bridge.backends_are_initialized()
    if not begun and not any(os.environ.get(name) for name in GPU_MEMORY_SETTINGS):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def dispatch_in_line() -> None:
    """Makes JAX compute on the CPU in the calling thread, if TUNABLES are set. Call it before JAX is used."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
