"""Flax NNX module ↔ plain nested dict with string keys.

What is trained, saved and exported is the dict; the module is only the program. This is the one file that
touches NNX's state types, so that a change in Flax is mended here.
"""

from __future__ import annotations

import zlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


class Initial(NamedTuple):
    """How a parameter starts: fill + std · (standard normal), float32."""

    shape: tuple[int, ...]
    std: float
    fill: float


def _trace(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, dict[str, Initial]]:
    found: list[Any] = []

    def look():
        graphdef, state = nnx.split(build(), nnx.Param)
        flat = {
            "/".join(map(str, path)): Initial(tuple(v.shape), v.get_metadata()["std"], v.get_metadata()["fill"])
            for path, v in nnx.to_flat_state(state)
        }
        found.append((graphdef, flat))
        return ()

    jax.eval_shape(look)  # nothing is allocated
    return found[0]


def abstract(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """Structure and parameter shapes without allocating a single parameter.

    Returns:
      The static structure and a nested dict of `jax.ShapeDtypeStruct`.
    """
    graphdef, initial = _trace(build)
    return graphdef, unflatten({p: jax.ShapeDtypeStruct(i.shape, jnp.float32) for p, i in sorted(initial.items())})


def init(build: Callable[[], nnx.Module], seed: int, shardings: Params | None = None) -> Params:
    """Random parameters, each from its own stream of (seed, path).

    Drawn by NumPy on the host, one parameter at a time, and put where they belong shard by shard: no
    device ever holds more than its share, the values do not depend on the mesh, and nothing is compiled
    (a compiled initialiser of a deep network takes minutes on a CPU).

    Args:
      build: makes the module.
      seed: of all parameters.
      shardings: a NamedSharding for every parameter; None: the default device.
    """
    _, initial = _trace(build)
    places = {} if shardings is None else flatten(shardings)
    return unflatten({path: _draw(path, initial[path], seed, places.get(path)) for path in sorted(initial)})


def _draw(path: str, initial: Initial, seed: int, sharding: jax.sharding.Sharding | None) -> jax.Array:
    values = np.full(initial.shape, initial.fill, np.float32)
    if initial.std:
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
        values += np.float32(initial.std) * stream.standard_normal(initial.shape, np.float32)
    if sharding is None:
        return jnp.asarray(values)
    return jax.make_array_from_callback(initial.shape, sharding, lambda index: values[index])


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
