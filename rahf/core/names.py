"""Suggestions for misspelt names, and text of any origin made printable."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

_LINE_BREAKS = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def suggest(name: str, names: Sequence[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest of `names`, else the list of all."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Known: {', '.join(sorted(names))}."


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: object, most: int | None = None) -> str:
    """Text of a file or a user as one printable line.

    Args:
      text: anything; its `str` is shown.
      most: longer text is cut to so many characters.
    """
    line = printable("".join(" " if c.isspace() else c for c in _LINE_BREAKS.sub(" ", str(text))).strip())
    return line if most is None or len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
