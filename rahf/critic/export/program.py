"""Turns a serialised function of `jax.export` into a JAX function for `jit`, `grad` and `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.custom_batching import custom_vmap

from rahf.core.errors import ExportError, NotDifferentiable
from rahf.core.tree import Params


def read_program(data: bytes, what: str) -> jax_export.Exported:
    """Deserialises a function of `jax.export`.

    Args:
      data: as `Exported.serialize` gave it. It must be trusted like a program.
      what: names the data in errors.

    Raises:
      ExportError: this JAX cannot read it, or the package `flatbuffers` is missing.
    """
    try:
        return jax_export.deserialize(bytearray(data))
    except ImportError as error:  # JAX imports flatbuffers only here, and does not install it
        raise ExportError(f"{what}: {error}; reading it needs the package: pip install flatbuffers") from error
    except Exception as error:  # JAX raises many kinds
        raise ExportError(
            f"{what}: jax {jax.__version__} cannot read it ({type(error).__name__}: {error}); "
            "use the jax that its manifest.json names or one of the next six months, or export the model again"
        ) from error


def differentiable(exported: jax_export.Exported) -> Callable[..., Any]:
    """Gives an exported function the rules for `grad` and `vmap` that `jax.export` does not give it.

    Args:
      exported: a function (params, pixels, *others) → arrays, serialised with its first derivative. Every argument but
        the first and every result has the batch axis first.

    Returns:
      The function of the same arguments. Reverse mode differentiates it once, in the pixels. `vmap` merges the new axis
      into the batch axis. It raises NotDifferentiable where it is differentiated twice, or with respect to its
      parameters.
    """
    forward = _not_differentiable(_vmappable(exported.call))
    vjp = exported.vjp()  # takes the leaves of all arguments, then the cotangents of the results

    @_not_differentiable
    @_vmappable
    def backward(params: Params, pixels: Any, others: Any, cotangents: Any) -> Any:
        leaves = [*jax.tree.leaves(params), pixels, *others]
        return vjp.call(*leaves, *jax.tree.leaves(cotangents))[len(leaves) - 1 - len(others)]

    @jax.custom_vjp
    def function(params, pixels, *others):
        return forward(params, pixels, *others)

    def function_fwd(params, pixels, *others):
        if any(leaf.perturbed for leaf in jax.tree.leaves(params, is_leaf=_is_primal)):
            raise NotDifferentiable(
                "an exported model is differentiable in its pixels, not in its parameters; train the run directory"
            )
        values = jax.tree.map(lambda x: x.value, (params, pixels, *others), is_leaf=_is_primal)
        return forward(*values), values

    def function_bwd(residuals, cotangents):
        params, pixels, *others = residuals
        cotangents = jax.tree.map(_instantiate, cotangents, is_leaf=_is_symbolic)
        return (None, backward(params, pixels, others, cotangents), *[None] * len(others))

    function.defvjp(function_fwd, function_bwd, symbolic_zeros=True)
    return function


def _is_primal(x: Any) -> bool:
    return hasattr(x, "perturbed")


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def _instantiate(cotangent: Any) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_symbolic(cotangent) else cotangent


def _not_differentiable(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, which says what to do where JAX would differentiate it: without, JAX recurses until memory ends."""
    function = jax.custom_jvp(call)

    @function.defjvp
    def refuse(*_: Any) -> Any:
        raise NotDifferentiable(
            "an exported model is differentiable once: its file holds first derivatives only. For second ones (a "
            "Hessian, a gradient of a gradient) load the run directory that it was exported from"
        )

    return function


def _vmappable(call: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `call(params, *arrays)` a rule for `vmap`: the mapped axis is folded into the batch axis."""
    function = custom_vmap(call)

    @function.def_vmap
    def rule(size, mapped, params, *arrays):
        if any(jax.tree.leaves(mapped[0])):  # several sets of parameters: one call after the other

            def call_with_row(i):
                row = jax.tree.map(lambda x, is_mapped: x[i] if is_mapped else x, (params, *arrays), tuple(mapped))
                return function(*row)

            results = jax.lax.map(call_with_row, jnp.arange(size))
        else:

            def fold(x, is_mapped):
                x = x if is_mapped else jnp.broadcast_to(x[None], (size, *x.shape))
                return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

            folded = jax.tree.map(fold, tuple(arrays), tuple(mapped[1:]))
            results = function(params, *folded)
            results = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return function
