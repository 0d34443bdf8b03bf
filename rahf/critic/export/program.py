"""A serialised function of `jax.export` → a JAX function for `jit`, `grad` and `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from rahf.core.errors import ExportError
from rahf.core.tree import Params
from rahf.critic.export import flatbuffers_reader


def deserialize(data: bytes, what: str) -> Any:
    """A `jax.export.Exported`. The data must be trusted like a program.

    Raises:
      ExportError: this JAX cannot read it.
    """
    from jax import export

    flatbuffers_reader.ensure()
    try:
        return export.deserialize(bytearray(data))
    except Exception as error:  # JAX raises many kinds
        raise ExportError(
            f"{what}: jax {jax.__version__} cannot read it ({type(error).__name__}: {error}); "
            "use the jax that its manifest.json names or one of the next six months, or export the model again"
        ) from error
    finally:
        flatbuffers_reader.forget()


def function(exported: Any) -> Callable[..., Any]:
    """The function (params, pixels, *others) → arrays, each with the batch axis first.

    Differentiable once in the pixels, in reverse mode. Under `vmap` the new axis joins the batch, since
    exported functions have no rule for it.

    Raises (the function):
      TypeError: it is differentiated with respect to its parameters.
    """
    forward = _batched(exported.call)
    pull = exported.vjp()  # of flat arguments and cotangents

    @_batched
    def backward(params: Params, pixels: Any, others: Any, cotangents: Any) -> Any:
        leaves = [*jax.tree.leaves(params), pixels, *others]
        return pull.call(*leaves, *jax.tree.leaves(cotangents))[len(leaves) - 1 - len(others)]

    @jax.custom_vjp
    def run(params, pixels, *others):
        return forward(params, pixels, *others)

    def remember(params, pixels, *others):
        if any(leaf.perturbed for leaf in jax.tree.leaves(params, is_leaf=_is_primal)):
            raise TypeError(
                "an exported model is differentiable in its pixels, not in its parameters; train the run directory"
            )
        values = jax.tree.map(lambda x: x.value, (params, pixels, *others), is_leaf=_is_primal)
        return forward(*values), values

    def pull_back(saved, cotangents):
        params, pixels, *others = saved
        cotangents = jax.tree.map(_instantiate, cotangents, is_leaf=_is_symbolic)
        return (None, backward(params, pixels, others, cotangents), *[None] * len(others))

    run.defvjp(remember, pull_back, symbolic_zeros=True)
    return run


def _is_primal(x: Any) -> bool:
    return hasattr(x, "perturbed")


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def _instantiate(cotangent: Any) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_symbolic(cotangent) else cotangent


def _batched(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call(params, *arrays)` with a rule for `vmap`: the mapped axis is folded into the batch axis."""
    mapped = custom_vmap(call)

    @mapped.def_vmap
    def rule(size, batched, params, *arrays):
        if any(jax.tree.leaves(batched[0])):  # many sets of parameters: one after the other

            def one(i):
                pick = jax.tree.map(lambda x, b: x[i] if b else x, (params, *arrays), tuple(batched))
                return mapped(*pick)

            found = jax.lax.map(one, jnp.arange(size))
        else:

            def fold(x, is_mapped):
                x = x if is_mapped else jnp.broadcast_to(x[None], (size, *x.shape))
                return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

            folded = jax.tree.map(fold, tuple(arrays), tuple(batched[1:]))
            found = mapped(params, *folded)
            found = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), found)
        return found, jax.tree.map(lambda _: True, found)

    return mapped
