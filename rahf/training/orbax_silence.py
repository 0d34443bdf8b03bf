"""Keeps Orbax from logging and warning beside errors that rahf reports itself."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

#: How Python names the writes that Orbax gives up, unstarted, when another one of the same save has failed.
ABANDONED = r"coroutine '\S*async_serialize\S*' was never awaited"


class Silence:
    """Drops the messages of Orbax from `begin` to `end`, in all threads.

    Orbax warns about every checkpoint that it reads, and logs errors that it also raises. After a failed save Python
    names every write that Orbax abandoned, at any later time, when it collects garbage.
    """

    def __init__(self) -> None:
        self._hook: Any = None
        self._loggers = (logging.getLogger("absl"), logging.getLogger("asyncio"))

    def begin(self) -> "Silence":
        """Starts to drop messages."""
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        warnings.filterwarnings("ignore", ABANDONED, RuntimeWarning)
        for logger in self._loggers:
            logger.addFilter(self._wanted)
        return self

    def end(self) -> None:
        """Stops dropping messages. Not to be called after a failed save: Python names each of hundreds of abandoned
        writes at any later time."""
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._hook
        for logger in self._loggers:
            logger.removeFilter(self._wanted)

    def _unraisable(self, unraisable: Any) -> None:
        message = str(unraisable.exc_value)  # a warning comes here where warnings are errors
        if message != "Event loop is closed" and not re.match(ABANDONED, message):
            self._hook(unraisable)

    def _wanted(self, record: logging.LogRecord) -> bool:  # of each instance: they may be nested
        if "orbax" in record.pathname or "tensorstore" in record.pathname:
            return False
        message = record.getMessage()
        return "exception was never retrieved" not in message and "was destroyed but it is pending" not in message


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A `Silence` that lasts as long as what is inside succeeds."""
    silence = Silence().begin()
    yield
    silence.end()  # not reached after a failure
