"""A program in bfloat16 → the same program in float32 that rounds each result as it does, and is differentiated without
rounding: what its gradient would be if only the values were bfloat16, and no sum and no cotangent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

BF16, F32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
_LOOPS = ("scan", "while", "cond")


@jax.custom_jvp
def rounded(x: jax.Array) -> jax.Array:
    """To bfloat16's 8 bits of precision; its derivative is 1."""
    return x.astype(BF16).astype(F32)


@rounded.defjvp
def _(primals, tangents):
    return rounded(*primals), tangents[0]


def straight_through(function: Callable[..., jax.Array], *arguments: Any) -> Callable[..., jax.Array]:
    """`function`, whose result is one array, of arguments of these shapes."""
    program = jax.make_jaxpr(function)(*arguments)
    return lambda *arguments: _run(program.jaxpr, program.consts, jax.tree.leaves(arguments))[0]


def _run(jaxpr: core.Jaxpr, constants: list, arguments: list) -> list:
    values = dict(zip(jaxpr.constvars, map(_widened, constants))) | dict(zip(jaxpr.invars, arguments))

    def read(variable):
        return _widened(variable.val) if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        values |= zip(equation.outvars, _results(equation, [read(variable) for variable in equation.invars]))
    return [read(variable) for variable in jaxpr.outvars]


def _results(equation: Any, operands: list) -> list:
    inner = next((equation.params[n] for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in equation.params), None)
    narrow = [getattr(variable.aval, "dtype", None) == BF16 for variable in equation.outvars]
    if inner is not None and equation.primitive.name not in _LOOPS:  # also of functions with derivatives of their own
        closed = isinstance(inner, core.ClosedJaxpr)
        return _run(inner.jaxpr if closed else inner, inner.consts if closed else [], operands)
    assert not (any(narrow) and equation.primitive.name in _LOOPS), "a loop in bfloat16 is not read here"
    narrow_dtype = lambda value: isinstance(value, np.dtype) and value == BF16  # noqa: E731
    widened = {name: F32 if narrow_dtype(value) else value for name, value in equation.params.items()}
    results = equation.primitive.bind(*operands, **widened)
    results = results if equation.primitive.multiple_results else [results]
    return [rounded(result) if is_narrow else result for result, is_narrow in zip(results, narrow)]


def _widened(value: Any) -> Any:
    return jnp.asarray(value, F32) if getattr(value, "dtype", None) == BF16 else value
