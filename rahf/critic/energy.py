"""Energies: what guidance lowers. One number per picture, lower is better, differentiable in the pixels.

    plausible = energy.score(critic, prompts, "plausibility")             # 1 - score
    calm = energy.heatmap(critic, prompts, "implausibility", mask=hands)  # mean of the heatmap inside a mask
    total = plausible + 0.5 * calm + 0.1 * energy.function(my_energy, target)
    total(pixels)                                                         # float32 [B]

An energy is a pytree: parameters, tokens, masks and weights are its leaves. Handed to a function under
`jax.jit` they are arguments, not constants of the compiled program, and another prompt, mask or weight
compiles nothing new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rahf import provenance
from rahf.batch import HEATMAPS
from rahf.steer import names

Text = str | Sequence[str] | tuple[Int[Array, "b L"], Bool[Array, "b L"]]


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

    __array_ufunc__ = None  # or NumPy would multiply an array by it one element after the other

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        """The energy of each picture.

        Args:
          pixels: [B,h,w,3] in [0,1], any floating dtype; energies are computed in float32.

        Returns:
          float32 [B], lower is better.

        Raises:
          ValueError: a function that does not give one number per picture; names it.
        """
        pixels = _float32(pixels)
        return sum(jnp.asarray(term.weight, jnp.float32) * _value(term, pixels) for term in self.terms)

    def parts(self, pixels: Float[Array, "b h w 3"]) -> dict[str, Float[Array, " b"]]:
        """The terms by name, each float32 [B] without its weight; a name that occurs twice gets a number."""
        pixels, found = _float32(pixels), {}
        for number, term in enumerate(self.terms):
            found[term.name if term.name not in found else f"{term.name} #{number}"] = _value(term, pixels)
        return found

    def __add__(self, other: Any) -> Energy:
        return Energy(self.terms + other.terms) if isinstance(other, Energy) else NotImplemented

    def __mul__(self, factor: Any) -> Energy:
        if isinstance(factor, Energy) or np.ndim(factor):
            return NotImplemented
        return Energy(tuple(dataclasses.replace(term, weight=term.weight * factor) for term in self.terms))

    __rmul__ = __mul__


def score(critic: Any, text: Text, score: str | Mapping[str, float] = "overall", params: Any = None) -> Energy:
    """``1 - score``, or ``sum of w (1 - score)`` for weights by name.

    Args:
      critic: of `rahf.load`, whether a run or an exported file; or anything with its functions
        ``tokens(prompts)`` and ``scores(pixels, text_ids, text_mask, params)``.
      text: prompt for all pictures, one prompt per picture, or (text_ids, text_mask) of `critic.tokens`.
      score: a name of `rahf.batch.SCORES`, or weights by name.
      params: of the critic; None: its own.

    Raises:
      ValueError: an unknown score; suggests the nearest.
    """
    weights = provenance.weights(score)
    name = f"1 - {score}" if isinstance(score, str) else "scores"
    return _of(_Scores(critic.scores), name, weights, *_tokens(critic, text), _params(critic, params))


def heatmap(
    critic: Any,
    text: Text,
    which: str = "implausibility",
    mask: Float[Array, "... h w"] | Bool[Array, "... h w"] | None = None,
    params: Any = None,
) -> Energy:
    """How much of a picture is marked: the mean of a heatmap, or its mean inside a mask, in [0,1].

    Args:
      critic: as in `score`; its function is ``heatmaps(pixels, text_ids, text_mask, params)``.
      text: as in `score`.
      which: a name of `rahf.batch.HEATMAPS`.
      mask: [h,w] for all pictures or [B,h,w], bool or weights in [0,1]; of any size, brought to the heatmap's
        by averaging. ``1 - mask`` looks at the rest. None: everywhere.
      params: of the critic; None: its own.

    Raises:
      ValueError: an unknown heatmap (suggests the nearest); a mask of another shape, range, or without any
        pixel.
    """
    which_one = names.position("heatmap", which, HEATMAPS)
    arrays = () if mask is None else (_checked(mask),)
    name = which if mask is None else f"{which} in mask"
    return _of(_Heatmap(critic.heatmaps, which_one), name, *_tokens(critic, text), _params(critic, params), *arrays)


def function(function: Callable[..., Array], *arrays: Any, name: str | None = None) -> Energy:
    """Any JAX function of (pixels float32 [B,h,w,3], *arrays) → one number per picture, lower is better.

    Args:
      arrays: pytrees that the function needs besides; leaves of the energy. What the function closes over
        instead becomes a constant of compiled programs.
      name: for messages and `Energy.parts`; None: the function's.
    """
    return _of(function, name or getattr(function, "__name__", type(function).__name__), *arrays)


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Equal for equal critics, so that what is compiled for one energy serves the next."""

    scores: Callable[..., Array]

    def __call__(self, pixels, weights, text_ids, text_mask, params):
        return (1.0 - self.scores(pixels, text_ids, text_mask, params).astype(jnp.float32)) @ weights


@dataclasses.dataclass(frozen=True)
class _Heatmap:
    heatmaps: Callable[..., Array]
    which: int

    def __call__(self, pixels, text_ids, text_mask, params, mask=None):
        values = self.heatmaps(pixels, text_ids, text_mask, params)[..., self.which].astype(jnp.float32)
        if mask is None:
            return values.mean((1, 2))
        mask = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (*values.shape[:1], *mask.shape[-2:]))
        if mask.shape != values.shape:
            mask = jax.image.resize(mask, values.shape, "linear", antialias=True)
        return (values * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1e-6)


def _of(function: Callable[..., Array], name: str, *arrays: Any) -> Energy:
    return Energy((Term(1.0, arrays, function, name),))


def _value(term: Term, pixels: Array) -> Array:
    found = jnp.asarray(term.function(pixels, *term.arrays))
    if found.shape != pixels.shape[:1]:
        raise ValueError(
            f"energy {term.name!r}: expected one number per picture, shape {pixels.shape[:1]}, found {found.shape}; "
            "average over pixels and channels, not over pictures"
        )
    return found.astype(jnp.float32)


def _float32(pixels: Any) -> Array:
    return jnp.asarray(pixels).astype(jnp.float32)


def _tokens(critic: Any, text: Text) -> tuple[Any, Any]:
    if isinstance(text, tuple) and len(text) == 2 and not any(isinstance(part, str) for part in text):
        return text
    return critic.tokens(text)


def _params(critic: Any, params: Any) -> Any:
    return getattr(critic, "params", None) if params is None else params


def _checked(mask: Any) -> Any:
    if np.ndim(mask) not in (2, 3):
        raise ValueError(f"mask of shape {np.shape(mask)}: expected [h,w] for all pictures, or [B,h,w]")
    if isinstance(mask, jax.core.Tracer):
        return mask
    values = np.asarray(mask, np.float32)
    if not (values.size and values.min() >= 0 and values.max() <= 1):
        raise ValueError("mask: expected bool, or weights in [0,1]; divide by 255 if it is a picture")
    if not (values.max((-2, -1)) > 0).all():
        raise ValueError("mask: nothing is inside it, so there is nothing to lower; leave such a picture out")
    return jnp.asarray(values)
