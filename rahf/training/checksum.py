"""A checksum of each array of a checkpoint, which shows damage on disk or on the way from it.

The number does not depend on how an array lies on devices: it is the sum over all elements i, in C order, of
bits_i · (2i + 1) modulo 2³². Such a sum is exact in any order, and a change of any single element changes it, because
an odd factor has an inverse. So the devices compute it, each of its own share, without a copy of the arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.nn import functional

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # 8 bytes count as two elements
_CHUNK = 2**20  # elements at a time on the host: what the factors take stays in the cache
_FACTORS = 2 * np.arange(_CHUNK, dtype=np.uint32) + np.uint32(1)


def of_arrays(tree: dict[str, Any]) -> dict[str, int]:
    """Checksum of every array.

    Args:
      tree: nested dict of arrays, sharded in any way.

    Returns:
      Path → number in [0, 2³²). Waits for the arrays.
    """
    flat = functional.flatten(tree)
    if all(_on_host(leaf) for leaf in flat.values()):  # nothing is compiled, nothing copied
        return {path: by_numpy(np.asarray(leaf)) for path, leaf in flat.items()}
    numbers = jax.device_get({path: by_devices(leaf) for path, leaf in flat.items()})
    return {path: int(number) for path, number in numbers.items()}


def _on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())


def by_numpy(values: np.ndarray) -> int:
    """The checksum of an array on the host."""
    bits = np.ascontiguousarray(values).reshape(-1).view(_UNSIGNED[values.dtype.itemsize])
    total = 0
    for first in range(0, bits.size, _CHUNK):
        part = bits[first : first + _CHUNK].astype(np.uint32, copy=False)
        total += int(np.dot(part, _FACTORS[: part.size]))
        total += 2 * first * int(part.sum(dtype=np.uint32))
    return total % 2**32


@jax.jit
def by_devices(values: jax.Array) -> jax.Array:
    """The same, uint32 scalar, computed where the array lies."""
    bits = jax.lax.bitcast_convert_type(values, _UNSIGNED[values.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for dimension, size in enumerate(bits.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def differing(checksums: dict[str, int], expected: dict[str, int]) -> list[str]:
    """Paths of arrays whose checksum differs from the expected one; arrays without an expected one are left out."""
    return sorted(path for path, number in checksums.items() if expected.get(path, number) != number)
