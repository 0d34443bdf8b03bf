"""Flax NNX module ↔ plain nested dict with string keys.

What is trained, saved and exported is the dict; the module is only the program. No other file uses NNX's state types:
a change of them in Flax concerns this file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rahf.core.tree import Params, count, flatten, unflatten  # noqa: F401 - for callers
from rahf.nn.initial import draw_parameter


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
    traced: list[Any] = []

    def trace():
        graphdef, state = nnx.split(build(), nnx.Param)
        flat = {
            "/".join(map(str, path)): Initial(tuple(v.shape), v.get_metadata()["std"], v.get_metadata()["fill"])
            for path, v in nnx.to_flat_state(state)
        }
        traced.append((graphdef, flat))
        return ()

    jax.eval_shape(trace)  # nothing is allocated
    return traced[0]


def abstract(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """Structure and parameter shapes without allocating a single parameter.

    Returns:
      The static structure and a nested dict of `jax.ShapeDtypeStruct`.
    """
    graphdef, initial = _trace(build)
    return graphdef, unflatten({p: jax.ShapeDtypeStruct(i.shape, jnp.float32) for p, i in sorted(initial.items())})


def init(
    build: Callable[[], nnx.Module], seed: int, shardings: Params | None = None, loaded: Params | None = None
) -> Params:
    """Initial parameters: random ones, each from its own stream of (seed, path), or those of `loaded`.

    NumPy draws them on the host, one parameter at a time, and each shard goes to its device. So no device ever holds
    more than its share, no host more than the shares of its devices, and the values do not depend on the mesh. Nothing
    is compiled: a compiled initialiser of a deep network takes minutes on a CPU.

    Args:
      build: returns the module.
      seed: of all parameters.
      shardings: a NamedSharding for every parameter; None: the default device.
      loaded: parameters to take instead of random ones, any part of the tree; on the host, or on their devices.

    Raises:
      ValueError: a loaded parameter is not part of the module, or of another shape.
    """
    _, initial = _trace(build)
    places = {} if shardings is None else flatten(shardings)
    taken = {} if loaded is None else flatten(loaded)
    for path, value in taken.items():
        if path not in initial or tuple(value.shape) != initial[path].shape:
            wanted = initial[path].shape if path in initial else "no such parameter"
            raise ValueError(f"{path}: given with shape {tuple(value.shape)}, the network has {wanted}")
    params = {}
    for path in sorted(initial):
        place = places.get(path)
        if path in taken:
            params[path] = _place(taken[path], place)
        else:
            params[path] = draw_parameter(path, *initial[path], seed, place)
    return unflatten(params)


def _place(values: np.ndarray | jax.Array, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Puts an array on its devices; from the host, each device receives its own share only."""
    if sharding is None:
        return jnp.asarray(values)
    if isinstance(values, jax.Array):
        return jax.device_put(values, sharding)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def parameter_differences(params: Params, expected: Params, limit: int = 8) -> list[str]:
    """How two parameter trees differ: one line for each missing, extra or misshapen parameter."""
    have, want = flatten(params), flatten(expected)
    lines = [f"{p}: missing, expected {tuple(want[p].shape)}" for p in want if p not in have]
    lines += [f"{p}: not part of this model, shape {tuple(have[p].shape)}" for p in have if p not in want]
    lines += [
        f"{p}: shape {tuple(have[p].shape)}, expected {tuple(want[p].shape)}"
        for p in want
        if p in have and tuple(have[p].shape) != tuple(want[p].shape)
    ]
    return lines if len(lines) <= limit else [*lines[:limit], f"… and {len(lines) - limit} more"]
