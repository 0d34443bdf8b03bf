"""Suggestions for misspelt names, and text of any origin made printable."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def suggest(name: str, names: Sequence[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest of `names`, else the list of all."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Known: {', '.join(sorted(names))}."


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
