"""The nearest known name for one that nobody knows, and names of any origin as one printable line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def suggest(name: str, known: Sequence[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known name, else the list of known names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
