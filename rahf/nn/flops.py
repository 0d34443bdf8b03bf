"""The arithmetic of a function, counted from its trace: nothing is computed, allocated or compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core


def count_flops(function: Callable, *arguments: Any, trips: int | None = None) -> int:
    """Floating-point operations of the matrix products and convolutions of a call; a multiply-add counts 2.

    Everything else (norms, activations, softmax) is left out: it is bound by memory, not by arithmetic. A product
    whose result nothing uses is not counted, nor is one with the zeros of a convolution's padding or of its
    dilated input. A scan counts once per step, a conditional as its costliest branch, `jax.checkpoint` with its
    recomputation. Custom kernels (Pallas) count as one block of their grid.

    Args:
      function: traceable by JAX; give static arguments by `functools.partial`.
      arguments: trees of arrays or of `jax.ShapeDtypeStruct`.
      trips: how often a while loop runs; its length is known only at run time.

    Raises:
      ValueError: there is a while loop and `trips` is None.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return 2 * _multiplications(closed.jaxpr, [True] * len(closed.jaxpr.outvars), trips)


def _multiplications(jaxpr: core.Jaxpr, wanted: Sequence[bool], trips: int | None) -> int:
    """Multiplications of all equations that the wanted outputs depend on."""
    needed = {v for v, want in zip(jaxpr.outvars, wanted) if want and isinstance(v, core.Var)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        used = [v in needed for v in equation.outvars]
        if any(used) or equation.effects:
            needed.update(v for v in equation.invars if isinstance(v, core.Var))
            total += _equation_multiplications(equation, used, trips)
    return total


def _equation_multiplications(equation: core.JaxprEqn, used: list[bool], trips: int | None) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "scan":
        return params["length"] * _all_multiplications(params["jaxpr"], trips)
    if name == "cond":
        return max(_all_multiplications(branch, trips) for branch in params["branches"])
    if name == "while":
        rounds = _all_multiplications(params["body_jaxpr"], trips) + _all_multiplications(params["cond_jaxpr"], trips)
        if rounds and trips is None:
            raise ValueError("a while loop has no length before it runs; say how often it does by trips=")
        return rounds * (trips or 0)
    inner = [_open(program) for value in params.values() for program in _jaxprs(value)]
    if len(inner) == 1 and len(inner[0].outvars) == len(used):  # jit, checkpoint, custom derivatives
        return _multiplications(inner[0], used, trips)
    return sum(_all_multiplications(program, trips) for program in inner)


def _jaxprs(value: Any) -> list[Any]:
    """The programs in a parameter of an equation."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if isinstance(v, (core.Jaxpr, core.ClosedJaxpr))]


def _open(program: Any) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def _all_multiplications(program: Any, trips: int | None) -> int:
    jaxpr = _open(program)
    return _multiplications(jaxpr, [True] * len(jaxpr.outvars), trips)


def _dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    params, dims = equation.params, equation.params["dimension_numbers"]
    image, kernel = (v.aval.shape for v in equation.invars)
    out = equation.outvars[0].aval.shape
    total = out[dims.out_spec[0]] * out[dims.out_spec[1]] * kernel[dims.rhs_spec[1]]
    for axis, (stride, (low, _), spread, reach) in enumerate(
        zip(params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"])
    ):
        size, taps = image[dims.lhs_spec[2 + axis]], kernel[dims.rhs_spec[2 + axis]]
        at = np.arange(out[dims.out_spec[2 + axis]])[:, None] * stride + np.arange(taps) * reach - low
        total *= int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())
    return total
