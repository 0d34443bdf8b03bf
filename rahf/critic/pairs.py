"""Pairs of known direction: where a part of a picture is made worse, the heatmap of implausibility must get hotter.

Such pairs need no label: the damage is made in the training step, on any picture, and its place is known. A critic that
does not see it is wrong, whatever people said about the picture. The loss compares the two maps inside the part only;
outside nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rahf.config import Config
from rahf.core.batch import Batch
from rahf.core.errors import ConfigError
from rahf.core.labels import HEATMAPS
from rahf.critic import families
from rahf.critic.networks.outputs import Logits
from rahf.nn import boxes as boxes_lib
from rahf.nn import pixels

#: Side of a damaged box, in shares of the picture's.
_SIDES = (0.15, 0.5)
_NOISE = 0.3  # standard deviation, of pixels in [0,1]
_WARP, _WARP_CELLS = 0.06, 8  # standard deviation of a shift in shares of the side; cells along a side that shift alike
_LEAST = 0.02  # mean change of a pixel in the box; less of it may be no worse: a warped wall is a wall
_IMPLAUSIBILITY = HEATMAPS.index("implausibility")


class Worse(NamedTuple):
    """The same pictures, each with a part made worse.

    Attributes:
      image: float32 [B,H,W,3] in [0,1].
      region: float32 [B,H,W] in [0,1], where.
      visible: bool [B], whether the part changed enough to be worse.
    """

    image: Float[Array, "b h w 3"]
    region: Float[Array, "b h w"]
    visible: Array


def check(config: Config) -> None:
    """Raises ConfigError for a weight of pairs where none can be compared."""
    if not config.loss.pair_weight:
        return
    if getattr(config.model, "variant", "multi-head") != "multi-head":
        raise ConfigError(
            "loss.pair_weight: needs all heatmaps in one pass; set model.variant to multi-head, or it to 0"
        )
    if "heatmap/implausibility" not in families.outputs(config.model).label_names:
        raise ConfigError("loss.pair_weight: this model predicts no heatmap of implausibility to compare; set it to 0")
    if config.train.cache_tower:
        raise ConfigError("loss.pair_weight: pictures are changed in every step; set train.cache_tower to False")


def worsened(key: Array, image: Array) -> Worse:
    """Damages one random box of each picture: by noise, or by shifting its pixels at random.

    Args:
      key: of all draws.
      image: uint8 or float [B,H,W,3] in [0,1].
    """
    image = pixels.unit(image, image.shape[1:3])
    b, h, w, _ = image.shape
    of_side, of_place, of_kind, of_noise, of_warp = jax.random.split(key, 5)
    side = jax.random.uniform(of_side, (b, 2), minval=_SIDES[0], maxval=_SIDES[1])
    start = jax.random.uniform(of_place, (b, 2)) * (1 - side)
    region = boxes_lib.regions(jnp.concatenate([start, start + side], 1), (h, w))
    noisy = image + _NOISE * jax.random.normal(of_noise, image.shape)
    shift = _WARP * min(h, w) * jax.random.normal(of_warp, (b, _WARP_CELLS, _WARP_CELLS, 2))
    warped = jax.vmap(_shifted)(image, jax.image.resize(shift, (b, h, w, 2), "linear"))
    warps = jax.random.bernoulli(of_kind, 0.5, (b, 1, 1, 1))
    damaged = jnp.clip(jnp.where(warps, warped, noisy), 0.0, 1.0)
    worse = image + region[..., None] * (damaged - image)
    change = jnp.abs(worse - image).mean(-1).sum((1, 2)) / jnp.maximum(region.sum((1, 2)), 1e-6)
    return Worse(worse, region, change > _LEAST)


def _shifted(picture: Float[Array, "h w 3"], shift: Float[Array, "h w 2"]) -> Float[Array, "h w 3"]:
    """Each pixel from a place that lies rows and columns away, bilinear; the edge beyond it."""
    rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in picture.shape[:2]), indexing="ij")
    places = [rows + shift[..., 0], columns + shift[..., 1]]
    read = lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, 1, "nearest")  # noqa: E731
    return jnp.stack([read(picture[..., number]) for number in range(3)], -1)


def ranking(
    heatmap: Float[Array, "b s s"], of_worse: Float[Array, "b s s"], region: Float[Array, "b s s"], margin: float
) -> Float[Array, " b"]:
    """``max(0, margin - (mean of the worse picture's map - mean of the other's))``, means inside the region.

    Args:
      heatmap, of_worse: in [0,1], high where it is bad.
      region: at least 0.
      margin: in [0,1].
    """
    inside = region / jnp.maximum(region.sum((1, 2), keepdims=True), 1e-6)
    return jax.nn.relu(margin - ((of_worse - heatmap) * inside).sum((1, 2)))


def loss(
    model: Callable[[Batch, Array | None], Logits],
    batch: Batch,
    logits: Logits,
    key: Array,
    dropout_key: Array | None,
    margin: float,
    count: Array,
) -> Float[Array, ""]:
    """The mean ranking loss over the pictures that have a heatmap of implausibility and whose damage is visible.

    Args:
      model: the network.
      batch, logits: the pictures as they are, and what the network says of them.
      key: of the damage.
      dropout_key: of the network's second pass.
      margin: see `ranking`.
      count: pictures of the whole batch that have such a heatmap; this one may be a part of it.
    """
    worse = worsened(key, batch.image)
    after = model(batch._replace(image=worse.image), dropout_key)
    maps = [jax.nn.sigmoid(one.heatmaps[..., _IMPLAUSIBILITY]) for one in (logits, after)]
    region = jax.image.resize(worse.region, maps[0].shape, "linear")
    counts = batch.heatmap_mask[:, _IMPLAUSIBILITY] & worse.visible
    return jnp.where(counts, ranking(*maps, region, margin), 0.0).sum() / jnp.maximum(count, 1)
