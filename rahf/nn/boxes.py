"""Boxes on grids: left, top, right and bottom in shares of the sides."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def regions(boxes: Float[Array, "b 4"], size: tuple[int, int]) -> Float[Array, "b h w"]:
    """How far each cell of a grid lies in its picture's box, float32 in [0,1].

    Args:
      boxes: in shares of the sides.
      size: rows and columns of the grid.
    """

    def share(low: Array, high: Array, cells: int) -> Array:
        edge, low, high = jnp.arange(cells, dtype=jnp.float32), low[:, None] * cells, high[:, None] * cells
        return jnp.clip(jnp.minimum(edge + 1, high) - jnp.maximum(edge, low), 0.0, 1.0)

    left, top, right, bottom = jnp.asarray(boxes, jnp.float32).T
    return share(top, bottom, size[0])[:, :, None] * share(left, right, size[1])[:, None]
