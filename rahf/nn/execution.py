"""How a stack of layers is run: unrolled or scanned, and which intermediate values are kept for the gradient.

Neither changes results or the names of parameters: the parameters of layers are stacked inside the program only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies

from rahf.config import ImageModelConfig
from rahf.nn import gradients

#: block (a module), x, number of the block → x
ApplyBlock = Callable[[Any, jax.Array, jax.Array | int], jax.Array]

#: For XLA's CPU compiler: its kernel library (YNNPACK) computes products only, and Eigen the convolutions.
_EIGEN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_WIDE = 256  # channels from which on that is faster without gradients (docs/benchmarks.md, "Drawing pictures")
#: Networks up to this width are computed in halves on a CPU, if a half has at least this many examples.
_WIDEST, _FEWEST = 256, 8


class Execution(NamedTuple):
    """How a network is run: the fields of the same names in its config."""

    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False


def execution_of(config: ImageModelConfig) -> Execution:
    """How a configured network is to be run."""
    return Execution(config.attention, config.remat, config.scan_layers)


def jit_convolving(function: Callable, width: int) -> Callable:
    """`jax.jit` of a network of 3x3 convolutions, nothing of which is differentiated.

    On a CPU convolutions of 256 to 2,560 channels take 0.4 to 0.9 of the time when Eigen computes them. Options of a
    compiler belong to a whole program: within another one, and for narrower networks, it is plain `jax.jit`.

    Args:
      function: of arrays.
      width: channels of the widest convolutions.
    """
    plain = jax.jit(function)
    options = options_of_convolutions() if width >= _WIDE else None
    if options is None:
        return plain
    whole = jax.jit(function, compiler_options=options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return (plain if inside else whole)(*args)

    return call


def options_of_convolutions() -> dict[str, str] | None:
    """`compiler_options` of a program whose time goes into dense convolutions; None where there are none.

    On a CPU Eigen computes the gradient of a kernel in half the time, whatever the width.
    """
    return dict(_EIGEN_CONVOLUTIONS) if jax.default_backend() == "cpu" and _knows_eigen_convolutions() else None


@functools.cache
def _knows_eigen_convolutions() -> bool:
    """Whether this version of XLA has the option, which is an experimental one."""
    try:
        jax.jit(lambda x: x, compiler_options=_EIGEN_CONVOLUTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def full_precision(function: Callable, dtype: str) -> Callable:
    """A function whose products are computed as exactly as `dtype` says, on every device.

    By default JAX multiplies float32 values on a GPU in TF32, with 10 bits, and on a TPU in bfloat16. A prediction in
    float32 would then differ by device: on an H200 a heatmap of an exported file by 0.014 from the CPU's.
    """
    if dtype != "float32":
        return function

    @functools.wraps(function)
    def exact(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return exact


def keep_products(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Policy `dots`: keep the results of matrix products with parameters, convolutions and cuDNN's fused attention.

    The rest is cheap. On an H200 computing the attentions again took 8 of 500 ms of a step of ViT-L with T5-base.
    """
    if primitive is jax.lax.conv_general_dilated_p or primitive.name.startswith("dot_product_attention_fwd"):
        return True
    return checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *_, **parameters)


def remat_block(execution: Execution, function: Callable) -> Callable:
    """A block of a tower or head that is computed again for its gradient.

    With `remat` "dots" the results of its products are kept, with "block" and "full" only its inputs.
    """
    if execution.remat == "none":
        return function
    policy = keep_products if execution.remat == "dots" else checkpoint_policies.nothing_saveable
    # The passes through a scan are compiled apart, so there the compiler cannot undo the recomputation.
    return jax.checkpoint(lambda *x: function(*x), policy=policy, prevent_cse=not execution.scan_layers)


def remat_part(execution: Execution, function: Callable) -> Callable:
    """A tower or head; with `remat` "full" only its inputs are kept, and its blocks' inputs one part at a time."""
    return jax.checkpoint(lambda *x: function(*x)) if execution.remat == "full" else function


def run_layers(
    blocks: Sequence[nnx.Module], apply: ApplyBlock, x: jax.Array, execution: Execution, dtype: jnp.dtype
) -> jax.Array:
    """Runs x through equally shaped blocks, one after the other.

    Args:
      blocks: modules of the same structure.
      apply: block, x, number of the block → x. In a scan the number is traced.
      x: its shape and dtype must not change from block to block.
      execution: how to run them.
      dtype: in which blocks use their kernels; a scan's stacked copy of the kernels has it.
    """
    if not execution.scan_layers or len(blocks) < 2:
        for number, block in enumerate(blocks):
            x = remat_block(execution, lambda x, block=block, number=number: apply(block, x, number))(x)
        return x
    graphdef, _ = nnx.split(blocks[0])
    states = [nnx.split(block)[1] for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([_kernel(leaf, dtype) for leaf in leaves]), *states)
    run = remat_block(execution, lambda x, state, number: apply(nnx.merge(graphdef, state), x, number))

    def body(x, layer):
        return run(x, *layer), None

    return jax.lax.scan(body, x, (stacked, jnp.arange(len(blocks))))[0]


def in_halves(function: Callable[[Any], Any], batch: Any, width: int) -> Any:
    """function(batch), in training on a CPU perhaps as two independent chains of steps for half of the examples each.

    Many steps of a narrow network are too small for two threads to share one, and in a single chain the second thread
    waits. Two chains keep both busy, and each goes through half of the memory.

    Args:
      function: tree of arrays [B,…] → tree of arrays [B,…]. Examples must not depend on each other.
      batch: its argument.
      width: of the network's tokens. Threads share the steps of wide networks well, and those compile for long.
    """
    examples = jax.tree.leaves(batch)[0].shape[0]
    if not gradients.reordered() or jax.device_count() > 1 or width > _WIDEST or examples % 2 or examples < 2 * _FEWEST:
        return function(batch)
    halves = [jax.tree.map(lambda x, i=i: x[i : i + examples // 2], batch) for i in (0, examples // 2)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(function, halves))


def _kernel(leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A matrix in the dtype that it is used in; a vector, which norms use in float32, unchanged."""
    return leaf.astype(dtype) if leaf.ndim >= 2 else leaf
