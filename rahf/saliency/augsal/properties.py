"""Low-level properties of a part of a picture: what the readouts learn to say, and what bounds an edit (spec 7.1).

All are differentiable in the pixels, and computed in float32. Grey is ITU-R BT.601 luma, as of Pillow's "L".
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

#: In the order of the last axis of `properties`.
PROPERTIES = ("red", "green", "blue", "brightness", "local_contrast", "global_contrast")
#: Standard deviations over 10,000 pictures of SALICON, as the published code states them (spec 7.3).
SALICON_STD = {
    "red": 0.2012,
    "green": 0.2410,
    "blue": 0.2410,
    "brightness": 0.1997,
    "local_contrast": 0.0392,
    "global_contrast": 0.0673,
}
GREY = (0.299, 0.587, 0.114)
_EPS = 1e-12

GlobalContrast = Literal["rms", "difference"]


def properties(
    pictures: Float[Array, "b h w 3"],
    region: Float[Array, "b h w"],
    global_contrast: GlobalContrast = "rms",
    whole: Array | None = None,
) -> Float[Array, "b 6"]:
    """The properties of a region of each picture.

    red, green, blue: mean of the channel in the region. brightness: mean of grey. local_contrast: standard deviation of
    grey about the region's mean. global_contrast: root mean square of grey in the region about the mean of the whole
    picture ("rms", the paper's); or the absolute difference of std / mean of grey in the region and in the picture
    ("difference", the published code's).

    Args:
      pictures: in [0,1].
      region: weights of the pixels, at least 0, not 0 everywhere.
      global_contrast: see above.
      whole: likewise, of the whole picture on a canvas; None: it fills the canvas.

    Returns:
      float32 [B,6], in the order of `PROPERTIES`; in [0,1] but for "difference".
    """
    pictures, region = pictures.astype(jnp.float32), region.astype(jnp.float32)
    shares = lambda weights: weights / jnp.maximum(weights.sum((1, 2), keepdims=True), _EPS)  # noqa: E731
    inside = shares(region)
    mean = lambda x: (x * inside).sum((1, 2))  # noqa: E731
    whole = shares(jnp.ones(region.shape, jnp.float32) if whole is None else whole.astype(jnp.float32))
    of_whole = lambda x: (x * whole).sum((1, 2))  # noqa: E731
    grey = pictures @ jnp.asarray(GREY, jnp.float32)
    channels = (pictures * inside[..., None]).sum((1, 2))
    brightness, middle = mean(grey), of_whole(grey)
    rms_about = lambda centre: _root(mean(jnp.square(grey - centre[:, None, None])))  # noqa: E731
    local = rms_about(brightness)
    if global_contrast == "rms":
        contrast = rms_about(middle)
    else:
        std = _root(of_whole(jnp.square(grey - middle[:, None, None])))
        contrast = jnp.abs(local / jnp.maximum(brightness, 1e-6) - std / jnp.maximum(middle, 1e-6))
    return jnp.concatenate([channels, jnp.stack([brightness, local, contrast], -1)], -1)


def _root(x: Any) -> Array:
    """The square root, whose gradient at 0 is 0 rather than infinite."""
    safe = jnp.where(x > _EPS, x, 1.0)
    return jnp.where(x > _EPS, jnp.sqrt(safe), 0.0)
