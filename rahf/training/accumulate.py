"""A batch in parts, one after the other, so that only one part's activations are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rahf.config import Config, MeshConfig
from rahf.core.errors import ConfigError


def check(config: Config, devices: int) -> None:
    """Raises ConfigError if devices cannot share a batch, or it cannot be cut into `train.accumulate` such parts."""
    parts, size = config.train.accumulate, config.data.batch_size
    sharing = examples_axes(config.mesh, devices)
    if parts < 1 or size % parts:
        raise ConfigError(f"train.accumulate {parts}: expected a divisor of data.batch_size, {size}")
    if size % sharing:
        raise ConfigError(
            f"data.batch_size {size}: cannot be shared by the {sharing} devices along mesh.data and mesh.fsdp; give a "
            f"multiple of {sharing}, such as {max(1, round(size / sharing)) * sharing}"
        )
    if (size // parts) % sharing:
        raise ConfigError(
            f"train.accumulate {parts}: parts of {size // parts} examples cannot be shared by the {sharing} "
            "devices along mesh.data and mesh.fsdp; accumulate less or enlarge data.batch_size"
        )


def examples_axes(mesh: MeshConfig, devices: int) -> int:
    """Number of devices that see different examples."""
    return mesh.data * mesh.fsdp if mesh.data > 0 and mesh.fsdp > 0 else max(1, devices // max(mesh.tensor, 1))


def summed(one: Callable[[Any, jax.Array], Any], batch: Any, parts: int) -> Any:
    """Sum of `one(part, number)` over the parts of a batch.

    Part i holds the examples i, i + parts, i + 2 · parts, …: cut so, every device works on its own examples
    of each part, and nothing is sent between devices.
    """

    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    numbered = jax.tree.map(cut, batch), jnp.arange(parts)
    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], numbered))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, xs: (jax.tree.map(jnp.add, total, one(*xs)), None), zeros, numbered)[0]
