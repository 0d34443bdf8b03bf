"""JSON that anybody may have written: every way to fail is a ValueError."""

from __future__ import annotations

import json
import math
from typing import Any


def parse(text: str | bytes) -> Any:
    """Parses JSON. Raises ValueError: not JSON, not UTF-8, nested too deeply, or a number of too many digits."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parses a JSON object. Raises ValueError also for any other JSON."""
    tree = parse(text)
    if not isinstance(tree, dict):
        raise ValueError(f"expected an object in braces, found {type(tree).__name__}")
    return tree


def finite(value: Any) -> float | None:
    """A finite number of parsed JSON as float; None for anything else. An integer may be too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
