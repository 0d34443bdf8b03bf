"""How a stack of layers is run: unrolled or scanned, and what of it is kept for the gradient.

Neither changes results or the names of parameters: layers are stacked only while the program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies

from rahf.config import ImageModelConfig
from rahf.nn import gradients

#: block (a module), x, number of the block → x
Apply = Callable[[Any, jax.Array, jax.Array | int], jax.Array]

#: On a CPU: wider networks are not computed in halves, nor halves with fewer examples.
_WIDE, _LEAST = 256, 8


class Execution(NamedTuple):
    """Fields of `ImageModelConfig` of the same names."""

    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False


def of(config: ImageModelConfig) -> Execution:
    """How a network is to be run."""
    return Execution(config.attention, config.remat, config.scan_layers)


def products(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Policy `dots`: keep what matrix products with parameters and convolutions give; the rest is cheap to redo."""
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    return checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *_, **parameters)


def block(execution: Execution, function: Callable) -> Callable:
    """A block of a tower or head: `dots` keeps its products, `block` and `full` only what goes into it."""
    if execution.remat == "none":
        return function
    policy = products if execution.remat == "dots" else checkpoint_policies.nothing_saveable
    # A scan's body is compiled once, forwards and backwards apart: nothing could undo the recomputation.
    return jax.checkpoint(lambda *x: function(*x), policy=policy, prevent_cse=not execution.scan_layers)


def part(execution: Execution, function: Callable) -> Callable:
    """A whole tower or head: `full` keeps only what goes into it; its blocks are kept one part at a time."""
    return jax.checkpoint(lambda *x: function(*x)) if execution.remat == "full" else function


def through(
    blocks: Sequence[nnx.Module], apply: Apply, x: jax.Array, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """x through equally shaped blocks, one after the other.

    Args:
      blocks: modules of the same structure.
      apply: one of them, x and its number → x. The number is traced when scanned.
      x: its shape and dtype must not change from block to block.
      dtype: in which blocks use their kernels; the stacked copy of a scan is made in it.
    """
    if not execution.scan_layers or len(blocks) < 2:
        for number, one in enumerate(blocks):
            x = block(execution, lambda x, one=one, number=number: apply(one, x, number))(x)
        return x
    graphdef, _ = nnx.split(blocks[0])
    states = [nnx.split(one)[1] for one in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([_kernel(leaf, dtype) for leaf in leaves]), *states)
    run = block(execution, lambda x, state, number: apply(nnx.merge(graphdef, state), x, number))

    def body(x, layer):
        return run(x, *layer), None

    return jax.lax.scan(body, x, (stacked, jnp.arange(len(blocks))))[0]


def in_parts(function: Callable[[Any], Any], batch: Any, width: int) -> Any:
    """function(batch), on a CPU perhaps as two independent programs for half of the examples each.

    Many steps of a narrow network are too small for two threads to share one, and in a chain of them the second
    thread waits; two chains keep both busy, with half the memory to go through each. What the function gives
    must not depend on other examples.

    Args:
      function: of a tree of arrays [B,…], gives another one.
      batch: the tree.
      width: of the network's tokens; threads share the steps of wide networks well, and compile them long.
    """
    examples = jax.tree.leaves(batch)[0].shape[0]
    if not gradients.reordered() or jax.device_count() > 1 or width > _WIDE or examples % 2 or examples < 2 * _LEAST:
        return function(batch)
    halves = [jax.tree.map(lambda x, i=i: x[i : i + examples // 2], batch) for i in (0, examples // 2)]
    return jax.tree.map(lambda *each: jnp.concatenate(each), *map(function, halves))


def _kernel(leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Matrices in the dtype that they are used in; vectors, which norms use in float32, as they are."""
    return leaf.astype(dtype) if leaf.ndim >= 2 else leaf
