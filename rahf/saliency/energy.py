"""Energies of a saliency model: a picture is steered to be looked at where a target map says, without training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.core.errors import ArgumentError
from rahf.nn import energy
from rahf.nn.energy import Energy

#: Of the target's density, below which a place counts as empty.
_EMPTY = 1e-20


def target(model: Any, maps: Any, params: Any = None) -> Energy:
    """``KL(target || saliency)`` in nats: 0 where the model expects people to look as the target says.

    Args:
      model: `rahf.saliency.predictor.Saliency`, of `rahf.load`; or any object with its `params` and `log_density_of`.
        Judge with another one.
      maps: float [h,w] for all pictures, or [B,h,w], one per picture: at least 0, of any scale; brought to the
        pictures' size, which must have the same aspect.
      params: of the model; None: its own.

    Raises:
      ArgumentError: another shape, values that are negative or not finite, or a map that is 0 everywhere.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim not in (2, 3) or not maps.size:
        raise ArgumentError(f"maps: expected float [h,w] or [B,h,w], found shape {maps.shape}")
    if not (np.isfinite(maps).all() and maps.min() >= 0):
        raise ArgumentError("maps: expected values of at least 0, found negative ones, NaN or infinity")
    empty = ~(maps.reshape(-1, *maps.shape[-2:]).max((1, 2)) > 0)
    if empty.any():
        raise ArgumentError(f"maps: map {int(empty.argmax())} is 0 everywhere: it asks nobody to look anywhere")
    return energy.of(_Divergence(model), "saliency target", maps, model.params if params is None else params)


@dataclasses.dataclass(frozen=True)
class _Divergence:
    """Equal for the same model, so that a program compiled for one target serves the next."""

    model: Any

    def __call__(self, pixels: Float[Array, "b h w 3"], maps: Any, params: Any) -> Float[Array, " b"]:
        (height, width), (rows, columns) = pixels.shape[1:3], maps.shape[-2:]
        if abs(rows * width / columns - height) >= 1:
            raise ArgumentError(
                f"maps: a map of another aspect: {columns} x {rows}, the pictures are {width} x {height}"
            )
        wanted = jnp.broadcast_to(maps, (len(pixels), rows, columns))
        wanted = jnp.maximum(jax.image.resize(wanted, pixels.shape[:3], "bilinear"), 0.0)
        wanted = wanted / wanted.sum((1, 2), keepdims=True)
        log_density = self.model.log_density_of(params, pixels, jnp.ones(len(pixels), jnp.float32))
        return jnp.where(wanted > 0, wanted * (jnp.log(jnp.maximum(wanted, _EMPTY)) - log_density), 0.0).sum((1, 2))
