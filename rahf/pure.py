"""The network as pure functions of parameters, pixels and tokens: for `jit`, `grad`, `vmap`."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.batch import Batch, Prediction
from rahf.images import ImageError
from rahf.models import functional
from rahf.models import rahf as model_lib

#: A float above it cannot come from the range [0,1], not even after steps of an optimizer on the pixels.
_SURELY_NOT_UNIT = 2.0


def forward(
    graphdef: nnx.GraphDef,
    suffix_id: int,
    length: int,
    params: functional.Params,
    image: Array,
    text_ids: Int[Array, "b L"],
    text_mask: Bool[Array, "b L"],
    prompt_ids: Int[Array, "b T"],
    word_end: Int[Array, "b K"],
    generate: bool = False,
) -> tuple[Prediction, Int[Array, "b T"] | None]:
    """Everything the network says of a batch; fields as in `rahf.batch.Batch`.

    Args:
      suffix_id: first piece of the suffix of misaligned words.
      length: of generated sequences, in tokens.
      generate: also decode the target sequence.

    Returns:
      Prediction, and generated ids int32 [B,length] or None.
    """
    batch = Batch(**dict.fromkeys(Batch._fields))._replace(
        image=image, text_ids=text_ids, text_mask=text_mask, prompt_ids=prompt_ids, word_end=word_end
    )
    model = functional.merge(graphdef, params)
    fused = model.fuse(model.image_tokens(image), text_ids, text_mask)
    generated = model.generate(fused, length) if generate else None
    return model_lib.predict(model, batch, suffix_id, fused), generated


def scores(
    graphdef: nnx.GraphDef,
    params: functional.Params,
    pixels: Float[Array, "b h w 3"],
    text_ids: Int[Array, "b L"],
    text_mask: Bool[Array, "b L"],
) -> Float[Array, "b 4"]:
    """The four scores in [0,1] without the other heads."""
    model = functional.merge(graphdef, params)
    return jax.nn.sigmoid(model.score_logits(model.fuse(model.image_tokens(pixels), text_ids, text_mask)))


def heatmaps(
    graphdef: nnx.GraphDef,
    params: functional.Params,
    pixels: Float[Array, "b h w 3"],
    text_ids: Int[Array, "b L"],
    text_mask: Bool[Array, "b L"],
) -> Float[Array, "b s s 2"]:
    """Both heatmaps in [0,1] without the other heads."""
    model = functional.merge(graphdef, params)
    return jax.nn.sigmoid(model.heatmap_logits(model.fuse(model.image_tokens(pixels), text_ids, text_mask)))


def call(
    function: Callable, params: functional.Params, pixels: Any, text_ids: Any, text_mask: Any
) -> jax.Array:
    """Checks pixels, gives every image its row of text, and calls `function`.

    Args:
      function: `scores` or `heatmaps`, its graphdef filled in.
      pixels: [B,h,w,3], or [h,w,3], whose result then lacks the batch axis, too.
      text_ids, text_mask: [B,L]; or [1,L] or [L] for all images.

    Raises:
      ImageError: another shape, or values that cannot be in [0,1] (looked at only where they are known).
      ValueError: another number of rows of text than images.
    """
    pixels, text_ids, text_mask = jnp.asarray(pixels), jnp.asarray(text_ids), jnp.asarray(text_mask)
    single = pixels.ndim == 3
    pixels = pixels[None] if single else pixels
    _check(pixels)
    rows = {len(jnp.atleast_2d(x)) for x in (text_ids, text_mask)}
    if not rows <= {1, len(pixels)}:
        raise ValueError(f"{len(pixels)} images but {max(rows)} rows of text; give one row, or one per image")
    text = (jnp.broadcast_to(x, (len(pixels), x.shape[-1])) for x in (text_ids, text_mask))
    result = function(params, pixels, *text)
    return result[0] if single else result


def _check(pixels: jax.Array) -> None:
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        first = pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4)
        remedy = "; this looks like channels first (CHW), use jnp.moveaxis(pixels, -3, -1)" if first else ""
        raise ImageError(f"pixels of shape {pixels.shape}, expected [B,h,w,3] or [h,w,3]{remedy}")
    if isinstance(pixels, jax.core.Tracer) or not jnp.issubdtype(pixels.dtype, jnp.floating):
        return
    highest = float(pixels.max()) if pixels.size else 0.0
    if highest > _SURELY_NOT_UNIT:
        raise ImageError(
            f"pixels: floats up to {highest:g}, expected 0..1; pixels in 0..255 given as float? Divide by 255"
        )
