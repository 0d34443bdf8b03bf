"""Compiled programs are kept on disk, so that the second start of a command does not compile again.

The `rahf` command turns JAX's persistent compilation cache on. It lies in ``~/.cache/rahf/compiled`` (under
``$XDG_CACHE_HOME`` if that is set). ``RAHF_COMPILE_CACHE=DIR`` puts it elsewhere, ``RAHF_COMPILE_CACHE=off`` turns it
off, and JAX's own ``JAX_COMPILATION_CACHE_DIR`` is respected. Entries are found by the program, the devices and the
versions, so a stale one is never used; the folder may be removed at any time.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping

#: Programs that compile faster than this, in seconds, are not kept. JAX's own 1 s leaves out much of a CPU's start-up.
_SHORTEST = "0.1"


def location(environment: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """Where the cache lies; None if it is turned off."""
    ours, jaxs = environment.get("RAHF_COMPILE_CACHE", ""), environment.get("JAX_COMPILATION_CACHE_DIR", "")
    if ours.lower() == "off":
        return None
    if ours or jaxs:
        return pathlib.Path(ours or jaxs).expanduser()
    base = environment.get("XDG_CACHE_HOME", "")
    return (pathlib.Path(base).expanduser() if base else pathlib.Path.home() / ".cache") / "rahf" / "compiled"


def enable() -> pathlib.Path | None:
    """Turns the cache on for this process, without importing JAX; where it lies.

    A folder that cannot be made leaves it off: compiling again is only slow. A program that has configured JAX
    before keeps its own setting.
    """
    folder = location()
    jax = sys.modules.get("jax")
    if folder is None:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        if jax is not None:
            jax.config.update("jax_compilation_cache_dir", None)
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    chosen = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" in os.environ
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _SHORTEST)
    if jax is not None and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if not chosen:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", float(_SHORTEST))
    return folder
