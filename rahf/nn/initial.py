"""Random values of one parameter, drawn on the host; only the shards of this host's devices are kept."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 2**22  # values drawn at a time: 16 MiB

Slices = tuple[slice, ...]


def draw_parameter(
    path: str, shape: tuple[int, ...], std: float, fill: float, seed: int, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """fill + std · (standard normal), float32, from the stream of (seed, path).

    The stream is drawn in blocks, in C order, and each block is cut into the shards of this host's devices. So the
    values do not depend on the sharding. A host holds its own shards and one block (of at least one row), a device
    nothing but its shard. Every host draws the whole stream.

    Args:
      path: of the parameter in the tree.
      shape, std, fill: of the parameter.
      seed: of the network.
      sharding: of the parameter; None: all of it on the default device.
    """
    if sharding is None:
        wanted = [tuple(slice(0, size) for size in shape)]
    else:
        wanted = [_bounds(index, shape) for index in sharding.addressable_devices_indices_map(shape).values()]
    parts = {_key(index): np.full([s.stop - s.start for s in index], fill, np.float32) for index in wanted}
    if std:
        for first, block in _blocks(path, shape, np.float32(std), seed):
            for index in {_key(i): i for i in wanted}.values():
                _add(parts[_key(index)], index, first, block)
    if sharding is None:
        return jnp.asarray(parts[_key(wanted[0])])
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_key(_bounds(index, shape))])


def _blocks(path: str, shape: tuple[int, ...], std: np.float32, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields blocks of rows, each with the number of its first row."""
    stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
    if not shape:
        yield 0, std * stream.standard_normal(shape, np.float32)
        return
    rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], rows):
        yield first, std * stream.standard_normal((min(rows, shape[0] - first), *shape[1:]), np.float32)


def _add(part: np.ndarray, index: Slices, first: int, block: np.ndarray) -> None:
    """Adds to a shard the rows of a block that belong to it."""
    if not index:
        part += block
        return
    start, stop = max(index[0].start, first), min(index[0].stop, first + len(block))
    if start < stop:
        part[start - index[0].start : stop - index[0].start] += block[(slice(start - first, stop - first), *index[1:])]


def _bounds(index: Slices, shape: tuple[int, ...]) -> Slices:
    return tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape))


def _key(index: Slices) -> tuple[tuple[int, int], ...]:
    return tuple((s.start, s.stop) for s in index)
