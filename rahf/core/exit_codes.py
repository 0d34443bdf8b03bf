"""The exit codes of all commands. docs/using.md lists them."""

from __future__ import annotations

#: Nothing was done; the reason is on stderr. The others: 0 all done, 2 wrong usage, 128 + n stopped by signal n.
FAILED = 1
#: The command did its work, but some of the inputs were refused. It has listed them with the reason.
SOME_REFUSED = 3


def of_counts(done: int, refused: int) -> int:
    """The exit code of a command that goes on where an input cannot be used.

    Args:
      done: number of inputs that were used.
      refused: number of those that were not.
    """
    if not done:
        return FAILED
    return SOME_REFUSED if refused else 0
