"""Nested dicts of parameters ↔ flat dicts by path. Nothing but Python: also for readers without Flax."""

from __future__ import annotations

from typing import Any

Params = dict[str, Any]  # nested: str → Params or array


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Nested dict → {"a/b/c": leaf}, sorted by path."""
    flat: dict[str, Any] = {}
    for name in sorted(params):
        value, path = params[name], f"{prefix}{name}"
        flat.update(flatten(value, path + "/") if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(int(leaf.size) for leaf in flatten(params).values())
