"""Output that never ends the work: streams that outlive their reader, and consoles that show text as it is.

A command writes files, and says so in the terminal. A terminal that cannot show a character, a pipe whose reader has
ended or a full disk behind `rahf … > log` must not cost the files.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from rahf.core import names

if TYPE_CHECKING:  # Rich is not installed where only exported models are read
    from rich.console import Console


class LastingStream:
    """A text stream that takes everything: what its encoding lacks becomes "?", what cannot be written is dropped.

    Attributes:
      error: why nothing is written any more; None: everything was written so far.
    """

    def __init__(self, stream: TextIO | None):
        """Args: the stream to write to; None, as `sys.stdout` of a process without one: nothing is written."""
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream
        self.error: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        try:
            self._attempt(lambda: self._stream.write(text))
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            shown = text.encode(encoding, "replace").decode(encoding)
            self._attempt(lambda: self._stream.write(shown))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes every line, or drops it."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream if that can be done."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Any) -> None:
        if self.error is not None:
            return
        try:
            action()
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.error = error
            # Python flushes the stream again at exit. What is left in its buffer then goes to the null device.
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextlib.contextmanager
def lasting_streams() -> Iterator[tuple[LastingStream, LastingStream]]:
    """Makes stdout and stderr of this process lasting streams for the time of the block, and yields both."""
    _open_standard_descriptors()
    previous = sys.stdout, sys.stderr
    streams = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        for stream, before in zip(streams, previous):
            stream.flush()
            if before is None:
                stream.close()
        sys.stdout, sys.stderr = previous


def _open_standard_descriptors() -> None:
    """Opens the null device in the place of a closed stdin, stdout or stderr.

    Else the next file that is opened gets the number of stdout, and a library that prints writes into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def say(text: str, stderr: bool = False) -> None:
    """Prints one printable line, whatever the paths and names in it hold."""
    print(names.one_line(text), file=sys.stderr if stderr else sys.stdout)


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A Rich console on stdout or stderr that shows text as it is.

    Rich would take ``[final]`` in a path for a style and ``:cat:`` for an emoji. Style text with `rich.text.Text`.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if not isinstance(stream, LastingStream):
        stream = LastingStream(stream)
    return Console(file=stream, quiet=quiet, highlight=False, markup=False, emoji=False)
