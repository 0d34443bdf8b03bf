"""Forward warping: every pixel is moved along its displacement and spread over four pixels of the result.

Where several pixels arrive at one place, softmax splatting weights each by ``exp(importance)`` (Niklaus & Liu 2020), so
that what is in front hides what is behind. In Generative Image Dynamics the importance is the mean motion of a pixel
over time: things in front of others usually move more (Li et al. 2024, section 4.3). Everything is differentiable and
needs no kernel of its own: one scatter-add per corner.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from rahf.motion import spectrum as spectrum_lib

#: Largest difference of importances within a picture: exp(-20) is still an ordinary float32.
RANGE = 20.0
_TINY = 1e-30


class Splatted(NamedTuple):
    """What arrived where.

    Attributes:
      values: float32 [B,h,w,c], weighted means; 0 where nothing arrived.
      coverage: float32 [B,h,w], how much of a pixel arrived at each place, 0: a hole, 1: as in a picture at rest.
    """

    values: Float[Array, "b h w c"]
    coverage: Float[Array, "b h w"]


def softmax_splat(
    values: Float[Array, "b h w c"], flow: Float[Array, "b h w 2"], importance: Float[Array, "b h w"]
) -> Splatted:
    """Moves pixels along their displacements; the most important one wins where several meet.

    ``out(q) = sum_p k(q - p - F(p)) exp(W(p)) v(p) / sum_p k(q - p - F(p)) exp(W(p))`` with the bilinear kernel k. What
    leaves the picture is dropped.

    Args:
      values: pixels or features, any range.
      flow: displacements (x, y) in pixels of `values`.
      importance: W. Only differences count; where they exceed `RANGE` in a picture, all are scaled down.
    """
    highest, lowest = importance.max((1, 2), keepdims=True), importance.min((1, 2), keepdims=True)
    scale = RANGE / jnp.maximum(highest - lowest, RANGE)
    weights = jnp.exp((importance - highest) * scale)[..., None]
    ones = jnp.ones_like(weights)
    total = _scatter(jnp.concatenate([values * weights, weights, ones], -1).astype(jnp.float32), flow)
    sums, weight, coverage = total[..., :-2], total[..., -2:-1], total[..., -1]
    hit = weight > _TINY
    return Splatted(jnp.where(hit, sums / jnp.where(hit, weight, 1.0), 0.0), coverage)


def average_splat(values: Float[Array, "b h w c"], flow: Float[Array, "b h w 2"]) -> Splatted:
    """The baseline: all pixels count alike where several meet."""
    return softmax_splat(values, flow, jnp.zeros(values.shape[:3]))


def backward_warp(values: Float[Array, "b h w c"], flow: Float[Array, "b h w 2"]) -> Float[Array, "b h w c"]:
    """Bilinear samples at ``q + flow(q)``, the border repeated outside: the other baseline, given ``-flow``."""
    height, width = values.shape[1:3]
    rows, columns = _grid(height, width)
    y = jnp.clip(rows + flow[..., 1], 0, height - 1)
    x = jnp.clip(columns + flow[..., 0], 0, width - 1)

    def one(picture: Array, y: Array, x: Array) -> Array:
        sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, [y, x], order=1)  # noqa: E731
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(picture)

    return jax.vmap(one)(values.astype(jnp.float32), y, x)


def mean_motion(texture: Float[Array, "t h w 2"]) -> Float[Array, "h w"]:
    """The importance of pixels: ``mean_t |F_t(p)|``, in pixels (Li et al. 2024)."""
    return jnp.linalg.norm(texture, axis=-1).mean(0)


def mean_motion_of(spectrum: Complex[Array, "k h w 2"], frames: int) -> Float[Array, "h w"]:
    """`mean_motion` of the texture of a spectral volume; holds one frame at a time, not all."""

    def add(total: Array, time: Array) -> tuple[Array, None]:
        return total + jnp.linalg.norm(spectrum_lib.at_time(spectrum, frames, time), axis=-1), None

    total, _ = jax.lax.scan(add, jnp.zeros(spectrum.shape[1:3]), jnp.arange(frames, dtype=jnp.float32))
    return total / frames


def _scatter(values: Float[Array, "b h w c"], flow: Float[Array, "b h w 2"]) -> Float[Array, "b h w c"]:
    """Sums of bilinear shares; corners outside the picture are dropped."""
    height, width = values.shape[1:3]
    rows, columns = _grid(height, width)
    y, x = rows + flow[..., 1], columns + flow[..., 0]
    # A displacement that is no number moves its pixel nowhere; a cast of it to an integer would be undefined.
    finite = jnp.isfinite(x) & jnp.isfinite(y)
    y, x = jnp.where(finite, y, -2.0), jnp.where(finite, x, -2.0)
    top, left = jnp.floor(y), jnp.floor(x)
    far = lambda edge, side: jnp.clip(edge, -2, side + 1).astype(jnp.int32)  # noqa: E731
    top_index, left_index = far(top, height), far(left, width)
    below, right = y - top, x - left

    def one(values: Array, top: Array, left: Array, below: Array, right: Array) -> Array:
        # A frame of one pixel around the picture takes what leaves it: negative indices would count from the end.
        padded = jnp.zeros((height + 2, width + 2, values.shape[-1]), values.dtype)
        for down in (0, 1):
            for along in (0, 1):
                share = jnp.where(down, below, 1 - below) * jnp.where(along, right, 1 - right)
                row, column = top + down, left + along
                row = jnp.clip(row, -1, height) + 1
                column = jnp.clip(column, -1, width) + 1
                padded = padded.at[row, column].add(values * share[..., None])
        return padded[1:-1, 1:-1]

    return jax.vmap(one)(values, top_index, left_index, below, right)


def _grid(height: int, width: int) -> tuple[Array, Array]:
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )
    return rows, columns
