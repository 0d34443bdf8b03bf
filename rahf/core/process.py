"""What a program must ask for so that XLA's CPU backend computes at full speed, before and after it starts.

XLA's CPU backend allocates the buffers of a computation anew for each call, hundreds of MB for a training step. As a
program comes, glibc gives such a buffer back to the system at the end of every step and gets it page by page, filled
with zeros, in the next one: a tenth of the demo's step, and three times a step after a pause in which the system has
put the memory to other use. The buffer stays in the program if three things hold together:

* glibc keeps large free blocks (``TUNABLES``), which it decides when a program starts;
* the block lies in the heap of the main thread; other threads have heaps of 64 MB, and what does not fit is mapped;
* so the main thread computes: JAX does not hand the step to another one (`dispatch_in_line`).

Figures: docs/benchmarks.md, "The training step". None of this touches accelerators.
"""

from __future__ import annotations

import os
import sys

_KEPT = 4 << 30  # bytes; larger buffers still go back to the system: their steps take long in any case

#: For glibc 2.35 or newer: huge pages for what is allocated, and free memory that is kept.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", _KEPT), ("trim_threshold", _KEPT))
)


def restart() -> None:
    """Starts this program anew with TUNABLES, which glibc reads only then. The process id stays what it was.

    Does nothing if the program has tunables already, which may be its user's own, or the system is not Linux.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def dispatch_in_line() -> None:
    """Lets the calling thread compute on the CPU, if the program has TUNABLES. To be called before JAX is used."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
