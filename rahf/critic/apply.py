"""The network as pure functions of parameters, pixels and tokens: for `jit`, `grad`, `vmap`."""

from __future__ import annotations

import functools

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.batch import Batch, Prediction
from rahf.config import Config
from rahf.models import functional
from rahf.models import rahf as model_lib
from rahf.network import Network
from rahf.text import Tokenizer


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


def network(config: Config, tokenizer: Tokenizer) -> Network:
    """The functions of a critic, from the modules of the network."""
    graphdef, _ = functional.abstract(model_lib.build(config.model))
    suffix, length = tokenizer.suffix_ids[0], config.data.max_target_tokens
    return Network(
        functools.partial(forward, graphdef, suffix, length),
        functools.partial(scores, graphdef),
        functools.partial(heatmaps, graphdef),
        graphdef,
    )
