"""Edits of known direction for the training of any saliency model: what people look at gets more of something.

Augsal edits with a diffusion model and a caption. Training pictures with gaze have no captions here, so these edits are
of the same three kinds, in pixels, inside the densest part of where people looked. That part then draws no fewer looks:
the loss compares the predicted mass inside it before and after.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Kinds of edits.
KINDS = ("contrast", "brightness", "colour")
#: Cells above this share of the densest one are edited, as the editor's mask.
_SHARE = 1 / 3
#: Mean change of a pixel inside the mask; less of it draws nobody's eye: a white wall gets no brighter.
_LEAST = 0.01


class Edited(NamedTuple):
    """Edited pictures.

    Attributes:
      image: float32 [B,H,W,3] in [0,1].
      mask: float32 [B,h,w], 0 or 1, the cells that were edited.
      counts: bool [B], whether a picture was drawn to be edited, and changed.
    """

    image: Float[Array, "b H W 3"]
    mask: Float[Array, "b h w"]
    counts: Array


def edited(
    key: Array,
    image: Array,
    density: Float[Array, "b h w"],
    probability: float,
    strength: tuple[float, float],
    kind: int | None = None,
) -> Edited:
    """Draws an edit for each picture: contrast about the part's mean, brightness, or a random colour.

    Args:
      key: of all draws.
      image: uint8 [B,H,W,3].
      density: where people looked, at least 0, on a grid of whole pixels a cell.
      probability: of an edit.
      strength: smallest and largest alpha, of pixels in [0,1].
      kind: number in `KINDS`; None: drawn for each picture.
    """
    of_chance, of_kind, of_alpha, of_hue = jax.random.split(key, 4)
    b, h, w = density.shape
    pixels = image.astype(jnp.float32) / 255
    mask = (density > _SHARE * density.max((1, 2), keepdims=True)).astype(jnp.float32)
    cell = image.shape[1] // h, image.shape[2] // w
    inside = jnp.repeat(jnp.repeat(mask, cell[0], 1), cell[1], 2)[..., None]
    area = jnp.maximum(inside.sum((1, 2), keepdims=True), 1.0)
    alpha = jax.random.uniform(of_alpha, (b, 1, 1, 1), minval=strength[0], maxval=strength[1])
    mean = (pixels * inside).sum((1, 2), keepdims=True) / area
    hue = jax.random.normal(of_hue, (b, 1, 1, 3))
    hue = hue - hue.mean(-1, keepdims=True)
    hue = hue / jnp.maximum(jnp.abs(hue).max(-1, keepdims=True), 1e-6)
    kinds = jnp.stack([alpha * (pixels - mean), jnp.broadcast_to(alpha, pixels.shape), alpha * hue + 0 * pixels])
    shape = (1, b, 1, 1, 1)
    drawn = jax.random.randint(of_kind, shape, 0, len(KINDS)) if kind is None else jnp.full(shape, kind)
    change = jnp.take_along_axis(kinds, drawn, 0)[0]
    after = jnp.clip(pixels + inside * change, 0.0, 1.0)
    visible = jnp.abs(after - pixels).mean(-1).sum((1, 2)) / area[:, 0, 0, 0] > _LEAST
    return Edited(after, mask, visible & jax.random.bernoulli(of_chance, probability, (b,)))


def rise(
    original: Float[Array, "b h w"], after: Float[Array, "b h w"], mask: Float[Array, "b h w"], margin: float
) -> Float[Array, " b"]:
    """``max(0, margin - (log m' - log m))`` in nats, with m and m' the masses inside the mask before and after.

    Args:
      original, after: log-densities; the original is a constant of the gradient.
      mask: 0 or 1, not 0 everywhere.
      margin: by which the mass must rise, at least 0.
    """
    inside = jnp.where(mask > 0, 0.0, -1e4)
    mass = lambda logs: jax.nn.logsumexp(logs + inside, (1, 2))  # noqa: E731
    return jax.nn.relu(margin - (mass(after) - mass(jax.lax.stop_gradient(original))))
