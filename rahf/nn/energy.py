"""Energies: what guidance lowers. One number per picture, lower is better, differentiable in the pixels.

    total = plausible + 0.5 * calm + 0.1 * energy.function(my_energy, target)
    total(pixels)                                                         # float32 [B]

An energy is a pytree: parameters, tokens, masks and weights are its leaves. Handed to a function under
`jax.jit` they are arguments, not constants of the compiled program, and another prompt, mask or weight
compiles nothing new. Energies of a critic are made in `rahf.critic.energy`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.core.errors import ArgumentError
from rahf.nn import pixels as pixels_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One summand: `weight` · `function(pixels, *arrays)`; `function` and `name` are static."""

    weight: Any
    arrays: tuple[Any, ...]
    function: Callable[..., Array] = dataclasses.field(metadata=dict(static=True))
    name: str = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Energy:
    """A weighted sum of terms. ``a + b`` and ``2.0 * a`` are energies, too.

    Attributes:
      terms: the summands.
    """

    terms: tuple[Term, ...]

    __array_ufunc__ = None  # otherwise NumPy multiplies an array by the energy element by element

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        """The energy of each picture.

        Args:
          pixels: [B,h,w,3] or [h,w,3] in [0,1], any floating dtype, or uint8; energies are computed in float32.

        Returns:
          float32 [B], or [] without a batch axis; lower is better.

        Raises:
          ImageError, ArgumentTypeError: other pixels, as `rahf.nn.pixels.batch` says.
          ValueError: a function that does not give one number per picture; names it.
        """
        pixels, single = _float32(pixels)
        total = sum(jnp.asarray(term.weight, jnp.float32) * _value(term, pixels) for term in self.terms)
        return total[0] if single else total

    def parts(self, pixels: Float[Array, "b h w 3"]) -> dict[str, Float[Array, " b"]]:
        """The terms by name, each float32 [B] without its weight; a name that occurs twice gets a number."""
        (pixels, single), values = _float32(pixels), {}
        for number, term in enumerate(self.terms):
            value = _value(term, pixels)
            name = term.name if term.name not in values else f"{term.name} #{number}"
            values[name] = value[0] if single else value
        return values

    def __add__(self, other: Any) -> Energy:
        return Energy(self.terms + other.terms) if isinstance(other, Energy) else NotImplemented

    def __mul__(self, factor: Any) -> Energy:
        if isinstance(factor, Energy) or np.ndim(factor):
            return NotImplemented
        return Energy(tuple(dataclasses.replace(term, weight=term.weight * factor) for term in self.terms))

    __rmul__ = __mul__


def function(function: Callable[..., Array], *arrays: Any, name: str | None = None) -> Energy:
    """Any JAX function of (pixels float32 [B,h,w,3], *arrays) → one number per picture, lower is better.

    Args:
      arrays: pytrees that the function needs besides; leaves of the energy. What the function closes over
        instead becomes a constant of compiled programs.
      name: for messages and `Energy.parts`; None: the function's.
    """
    return of(function, _name(function, name), *arrays)


def reward(function: Callable[..., Array], *arrays: Any, best: Any = 1.0, name: str | None = None) -> Energy:
    """``best - reward``, for any JAX function of (pixels float32 [B,h,w,3], *arrays) → one reward per picture.

        energy.reward(my_reward)
        energy.reward(critic.reward("overall"), *critic.tokens(prompts), critic.params)

    Args:
      arrays: as in `function`; for a critic's reward text ids, text mask and, in order not to compile the
        parameters in, the parameters.
      best: the highest value of the reward: 1 for the scores of a critic. Backward guidance stops where the
        energy is about 0, so for other rewards it should not be too low.
      name: for messages and `Energy.parts`; None: the function's.
    """
    return of(_Reward(function), _name(function, name), best, *arrays)


def of(function: Callable[..., Array], name: str, *arrays: Any) -> Energy:
    """The energy of one term, weight 1."""
    return Energy((Term(1.0, arrays, function, name),))


@dataclasses.dataclass(frozen=True)
class _Reward:
    """Equal for equal rewards, so that a program compiled for one energy serves the next."""

    function: Callable[..., Array]

    def __call__(self, pixels, best, *arrays):
        return best - jnp.asarray(self.function(pixels, *arrays)).astype(jnp.float32)


def _name(function: Callable[..., Any], name: str | None) -> str:
    return name or getattr(function, "__name__", type(function).__name__)


def _value(term: Term, pixels: Array) -> Array:
    values = jnp.asarray(term.function(pixels, *term.arrays))
    if values.shape != pixels.shape[:1]:
        raise ArgumentError(
            f"energy {term.name!r}: expected one number per picture, shape {pixels.shape[:1]}, found {values.shape}; "
            "average over pixels and channels, not over pictures"
        )
    return values.astype(jnp.float32)


def _float32(pixels: Any) -> tuple[Array, bool]:
    """Checked pixels as float32 [B,h,w,3] in [0,1], and whether the batch axis was missing."""
    checked, single = pixels_lib.batch(pixels)
    scale = 1.0 / 255.0 if checked.dtype == jnp.uint8 else 1.0
    return checked.astype(jnp.float32) * scale, single
