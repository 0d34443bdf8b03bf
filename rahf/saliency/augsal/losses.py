"""Losses of Augsal, equations 3 to 8 in the reading of spec 7.2, with the published code's variants as options.

All give one value per picture, float32 [B].
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

EditLoss = Literal["bce", "hinge", "mask"]
_EPS = 1e-7


def kld(
    prediction: Float[Array, "b h w"], truth: Float[Array, "b h w"], eps: float = _EPS, inside: Array | None = None
) -> Float[Array, " b"]:
    """Equation 5: ``sum S log(eps + S / (eps + S'))`` of maps divided by their sums, in nats.

    Args:
      prediction, truth: at least 0, of any sums above 0.
      eps: see above.
      inside: [B,h,w], 1: counts, 0: does not; None: all cells count.
    """
    p, g = (_density(x if inside is None else x * inside) for x in (prediction, truth))
    return (g * jnp.log(eps + g / (eps + p))).sum((1, 2))


def cc(
    prediction: Float[Array, "b h w"], truth: Float[Array, "b h w"], inside: Array | None = None
) -> Float[Array, " b"]:
    """Equation 6: Pearson's correlation over the cells; 0 for a constant map. Arguments as of `kld`."""
    inside = jnp.ones(truth.shape, jnp.float32) if inside is None else inside.astype(jnp.float32)
    cells = inside.sum((1, 2), keepdims=True)

    def centred(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return (x - (x * inside).sum((1, 2), keepdims=True) / cells) * inside

    a, b = centred(prediction), centred(truth)
    norm = jnp.sqrt(jnp.square(a).sum((1, 2)) * jnp.square(b).sum((1, 2)) + _EPS**4)
    return (a * b).sum((1, 2)) / norm


def squared_error(prediction: Float[Array, "b k"], truth: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """L2 of equation 3, of each property."""
    return jnp.square(prediction.astype(jnp.float32) - truth.astype(jnp.float32))


def cross_entropy(logits: Float[Array, "b c"], classes: Int[Array, " b"]) -> Float[Array, " b"]:
    """CE of equation 3, in nats; 0 where the class is not known (negative)."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_class = jnp.take_along_axis(logs, jnp.maximum(classes, 0)[:, None], 1)[:, 0]
    return jnp.where(classes >= 0, -of_class, 0.0)


def edit(
    original: Float[Array, "b h w"],
    edited: Float[Array, "b h w"],
    mask: Float[Array, "b h w"],
    kind: EditLoss = "bce",
    margin: float = 0.1,
) -> Float[Array, " b"]:
    """What the saliency of an edited picture is held to.

    "bce" (equation 7): the mean over all cells of the binary cross-entropy between M S' and M S'_E: the edited
    picture's map is led to the original's inside the mask. "mask" (the published code): the cross-entropy between
    ``|sigmoid(S'_E - S') - 0.5|`` where M > 0.5 and M: any change inside the mask, up or down. "hinge" (ours):
    ``max(0, margin - mean_M(S'_E - S'))``: the map must rise inside the mask, which is what the edit was made for.

    Args:
      original: S' in [0,1], of the original picture; a constant of the gradient.
      edited: S'_E in [0,1], of the edited one.
      mask: M in [0,1], where it was edited.
      kind: see above.
      margin: of the hinge.
    """
    original = jax.lax.stop_gradient(original.astype(jnp.float32))
    edited, mask = edited.astype(jnp.float32), mask.astype(jnp.float32)
    if kind == "bce":
        return _bce(mask * edited, mask * original).mean((1, 2))
    if kind == "mask":
        inside = mask > 0.5
        changed = jnp.abs(jax.nn.sigmoid(edited - original) - 0.5)
        return _bce(jnp.where(inside, changed, 0.0), inside.astype(jnp.float32)).mean((1, 2))
    rise = (mask * (edited - original)).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), _EPS)
    return jax.nn.relu(margin - rise)


def chosen_map(
    maps: Float[Array, "b k h w"], saliency: Float[Array, "b h w"]
) -> tuple[Int[Array, " b"], Float[Array, "b h w"]]:
    """Equation 8: ``i* = argmax <C_i, S>`` and ``C_i* S``, both of any scale."""
    products = maps.astype(jnp.float32) * saliency.astype(jnp.float32)[:, None]
    best = products.sum((2, 3)).argmax(1)
    return best, jnp.take_along_axis(products, best[:, None, None, None], 1)[:, 0]


def _density(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / (x.sum((1, 2), keepdims=True) + _EPS)


def _bce(prediction: Array, target: Array) -> Array:
    p = jnp.clip(prediction, _EPS, 1 - _EPS)
    return -(target * jnp.log(p) + (1 - target) * jnp.log1p(-p))
