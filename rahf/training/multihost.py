"""What evaluations exchange between processes. With one process nothing is sent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rahf.training import sharding

Tree = TypeVar("Tree")


@functools.cache
def _laid_out_like_a_batch(mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding.batch_sharding(mesh))


def local_rows(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """This process's rows of arrays [B,…], as NumPy arrays."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    # The compiler is free to lay results out in another way; here they lie like the examples that went in.
    laid_out = _laid_out_like_a_batch(mesh)(tree)

    def rows(array: jax.Array) -> np.ndarray:
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return jax.tree.map(rows, laid_out)


def total(values: Any) -> Any:
    """The sum of numbers or arrays over all processes, leaf by leaf."""
    if jax.process_count() == 1:
        return values
    return jax.tree.map(lambda value: np.asarray(multihost_utils.process_allgather(np.asarray(value))).sum(0), values)


def all_agree(condition: bool) -> bool:
    """Whether the condition holds in all processes."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def barrier(name: str) -> None:
    """Waits until all processes have called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def largest(value: int) -> int:
    """The largest of the processes' numbers."""
    return value if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.array(value))))


def all_processes(tree: Tree) -> list[Tree]:
    """The arrays of every process, equally shaped in all of them, in the order of processes."""
    if jax.process_count() == 1:
        return [tree]
    stacked = multihost_utils.process_allgather(tree)
    return [jax.tree.map(lambda array, i=i: np.asarray(array[i]), stacked) for i in range(jax.process_count())]
