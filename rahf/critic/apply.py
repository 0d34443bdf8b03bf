"""The network as pure functions of parameters, pixels and tokens, for `jit`, `grad` and `vmap`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.config import Config
from rahf.core.batch import Batch, Prediction
from rahf.critic.network import Network
from rahf.critic.networks import build
from rahf.critic.networks.multi_head import Rahf
from rahf.critic.networks.outputs import Fused, Logits
from rahf.nn import functional
from rahf.nn.execution import full_precision
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
    """All outputs of the network for a batch; fields as in `rahf.core.batch.Batch`.

    Args:
      suffix_id: first piece of the suffix that marks misaligned words.
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
    return predict(model, batch, suffix_id, fused), generated


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
    """The functions of a critic whose network is built of Flax modules."""
    graphdef, _ = functional.abstract(build.build(config.model))
    suffix, length = tokenizer.suffix_ids[0], config.data.max_target_tokens
    functions = (
        functools.partial(forward, graphdef, suffix, length),
        functools.partial(scores, graphdef),
        functools.partial(heatmaps, graphdef),
    )
    return Network(*(full_precision(function, config.model.compute_dtype) for function in functions), graphdef)


def word_probabilities(
    logits: Float[Array, "b t v"], prompt_ids: Int[Array, "b t"], word_end: Int[Array, "b k"], suffix_id: int
) -> Float[Array, "b k"]:
    """Constrained keyword scoring: how likely the suffix follows each word of the prompt.

    The target is the prompt without suffixes. At each word's end the suffix's first piece competes with the
    piece that continues the prompt: p = softmax([log p(suffix), log p(next)])[0]. This needs no generation,
    cannot hallucinate, and is differentiable.

    Args:
      logits: of teacher forcing on `prompt_ids`.
      prompt_ids: words without suffix, end of sequence, padding.
      word_end: index of each word's last piece, -1 for words cut off.
      suffix_id: first piece of the suffix.

    Returns:
      Probability of misalignment, float32 [B,K]; 0 for words cut off.
    """
    following = jnp.clip(word_end + 1, 0, logits.shape[1] - 1)
    at_end = jnp.take_along_axis(logits, following[..., None], 1)
    next_id = jnp.take_along_axis(prompt_ids, following, 1)
    next_logit = jnp.take_along_axis(at_end, next_id[..., None], 2)[..., 0]
    return jnp.where(word_end >= 0, jax.nn.sigmoid(at_end[..., suffix_id] - next_logit), 0.0)


def predict(
    model: Rahf, batch: Batch, suffix_id: int, fused: Fused | None = None, logits: Logits | None = None
) -> Prediction:
    """Heatmaps, scores and word probabilities of a batch, no generation; pure and differentiable.

    Args:
      suffix_id: first piece of the suffix, `Tokenizer.suffix_ids[0]`.
      fused: fused tokens of the same batch; None: computed here.
      logits: of the same batch, whose heatmaps and scores are used; None: computed here.
    """
    if fused is None:
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
    sequence = model.sequence_logits(fused, batch.prompt_ids)
    if sequence is None:
        words = jnp.full(batch.word_end.shape, jnp.nan, jnp.float32)
    else:
        words = word_probabilities(sequence, batch.prompt_ids, batch.word_end, suffix_id)
    return Prediction(
        jax.nn.sigmoid(model.heatmap_logits(fused) if logits is None else logits.heatmaps),
        jax.nn.sigmoid(model.score_logits(fused) if logits is None else logits.scores),
        words,
    )
