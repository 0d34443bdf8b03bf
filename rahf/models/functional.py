"""Flax NNX module ↔ plain nested dict with string keys.

What is trained, saved and exported is the dict; the module is only the program. This is the one file that
touches NNX's state types, so that a change in Flax is mended here.
"""

from __future__ import annotations

from typing import Any, Callable

import jax
from flax import nnx

Params = dict[str, Any]  # nested: str → Params or float32 array


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Takes a module apart into its static structure and a nested dict of arrays."""
    graphdef, state = nnx.split(module, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef, params: Params) -> nnx.Module:
    """Puts a module together again; cheap enough to call inside `jax.jit`, where it costs nothing."""
    return nnx.merge(graphdef, nnx.State(_wrap(params)))


def _wrap(tree: Any) -> Any:
    return {k: _wrap(v) for k, v in tree.items()} if isinstance(tree, dict) else nnx.Param(tree)


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """Structure and parameter shapes without allocating a single parameter.

    Args:
      build: makes the module from random number streams.

    Returns:
      The static structure and a nested dict of `jax.ShapeDtypeStruct`.
    """
    found: list[nnx.GraphDef] = []

    def shapes_only():
        graphdef, params = split(build(nnx.Rngs(jax.random.key(0))))
        found.append(graphdef)
        return params

    params = jax.eval_shape(shapes_only)
    return found[0], params


def init(build: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    """Random parameters; pure, so that it runs under `jit` with `out_shardings`."""
    return split(build(nnx.Rngs(key)))[1]


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


def differences(found: Params, expected: Params, limit: int = 8) -> list[str]:
    """Says in words how two parameter trees differ: missing, extra and misshapen, by path."""
    have, want = flatten(found), flatten(expected)
    lines = [f"{p}: missing, expected {tuple(want[p].shape)}" for p in want if p not in have]
    lines += [f"{p}: not part of this model, shape {tuple(have[p].shape)}" for p in have if p not in want]
    lines += [
        f"{p}: shape {tuple(have[p].shape)}, expected {tuple(want[p].shape)}"
        for p in want
        if p in have and tuple(have[p].shape) != tuple(want[p].shape)
    ]
    return lines if len(lines) <= limit else [*lines[:limit], f"… and {len(lines) - limit} more"]
