"""The functions of a network that a critic calls, built of Flax modules or read from an exported file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Network(NamedTuple):
    """Pure functions of parameters and arrays; shapes as in `rahf.core.batch.Batch`, images uint8 or float in [0,1].

    `forward(params, image, text_ids, text_mask, prompt_ids, word_end, generate=False)` → (Prediction, ids or
    None); `scores` and `heatmaps` of (params, pixels, text_ids, text_mask). A function that an exported file lacks
    is None.
    """

    forward: Callable | None
    scores: Callable
    heatmaps: Callable | None
    graphdef: Any = None  # static structure of the Flax modules; None for an exported file, which cannot generate
