"""Nested dicts of parameters, and the same flat by path. Needs the standard library only."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

Params = dict[str, Any]  # nested: str → Params or array


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Turns a nested dict into {"a/b/c": leaf}, sorted by path."""
    flat: dict[str, Any] = {}
    for name in sorted(params):
        value, path = params[name], f"{prefix}{name}"
        flat.update(flatten(value, path + "/") if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`. Raises ValueError where one path ends inside another."""
    tree: Params = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: another path ends inside this one")
        if name in node:
            raise ValueError(f"{path}: this path ends inside another one")
        node[name] = value
    return tree


def top_names(paths: Iterable[str]) -> list[str]:
    """The first name of each path ("vit" of "vit/layer_0/bias"), in order, each once."""
    return list(dict.fromkeys(path.split("/")[0] for path in paths))


def matching_names(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns (``*`` for anything), in order."""
    patterns = list(patterns)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(int(leaf.size) for leaf in flatten(params).values())
