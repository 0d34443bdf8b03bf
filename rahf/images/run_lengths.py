"""Masks as run lengths, as COCO stores them: lengths of alternating runs down the columns, the first one of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rahf.core.errors import ImageError

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Bool

_MOST_PIXELS = 1 << 28
_BITS, _MORE, _SIGN = 5, 0x20, 0x10  # of a character of COCO's compressed form: payload, continues, negative


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """bool [h,w] → {"size": [h, w], "counts": [...]}, COCO's uncompressed form, which JSON takes."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    counts = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        counts = [0, *counts]
    return {"size": [int(side) for side in mask.shape], "counts": counts}


def decode(run_lengths: Mapping[str, Any], what: str = "run lengths") -> Bool[np.ndarray, "h w"]:
    """The inverse of `encode`; also takes COCO's compressed form, in which `counts` is text.

    Raises:
      ImageError: no size, counts that are no run lengths, or that do not add up to the size.
    """
    size, counts = run_lengths.get("size"), run_lengths.get("counts")
    if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)):
        raise ImageError(f"{what}: size is {size!r:.40}, expected height and width")
    height, width = size
    if height * width > _MOST_PIXELS:
        raise ImageError(f"{what}: size {height} x {width} is too large for a picture")
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts.encode() if isinstance(counts, str) else counts, what)
    if not isinstance(counts, Sequence) or not all(isinstance(c, int) and 0 <= c <= _MOST_PIXELS for c in counts):
        raise ImageError(f"{what}: counts are {counts!r:.60}, expected lengths of runs")
    if sum(counts) != height * width:
        raise ImageError(
            f"{what}: its runs cover {sum(counts)} pixels, its size {height} x {width} has {height * width}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _decompress(text: bytes, what: str) -> list[int]:
    """COCO's text form: 6 bits a character, differences to the length two places before from the third one on."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        more = True
        while more:
            if position >= len(text) or not 48 <= text[position] < 112 or shift > 40:
                raise ImageError(f"{what}: counts are {text[:40]!r}, no run lengths in COCO's text form")
            character = text[position] - 48
            value |= (character & 0x1F) << shift
            more = bool(character & _MORE)
            position, shift = position + 1, shift + _BITS
            if not more and character & _SIGN:
                value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
