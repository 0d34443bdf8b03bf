"""JAX's cache of compiled programs on disk, so that the second start of a command does not compile again.

The `rahf` command turns it on. It is in ``~/.cache/rahf/compiled`` (under
``$XDG_CACHE_HOME`` if that is set). ``RAHF_COMPILE_CACHE=DIR`` puts it elsewhere, ``RAHF_COMPILE_CACHE=off`` turns it
off, and JAX's own ``JAX_COMPILATION_CACHE_DIR`` is respected. The key of an entry covers program, devices and versions,
so a stale entry is never used. The folder may be removed at any time.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping

#: Programs that compile in fewer seconds are not stored. JAX's default of 1 s excludes much of the start-up on a CPU.
_SHORTEST = "0.1"


def location(environment: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """The folder of the cache; None if it is turned off."""
    setting = environment.get("RAHF_COMPILE_CACHE", "")
    if setting.lower() == "off":
        return None
    if folder := setting or environment.get("JAX_COMPILATION_CACHE_DIR", ""):
        return pathlib.Path(folder).expanduser()
    base = environment.get("XDG_CACHE_HOME", "")
    return (pathlib.Path(base).expanduser() if base else pathlib.Path.home() / ".cache") / "rahf" / "compiled"


def enable() -> pathlib.Path | None:
    """Turns the cache on for this process, without importing JAX; returns its folder.

    If the folder cannot be created, the cache stays off: compiling again is slow, but no error. A program that has
    configured JAX before keeps its own setting.
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
