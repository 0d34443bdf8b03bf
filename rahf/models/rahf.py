"""The whole network: ViT tokens and prompt tokens fused by a T5 encoder; heatmap, score and keyword heads.

RAHF (Liang et al., CVPR 2024), figure 3, multi-head variant.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.batch import HEATMAPS, SCORES, Batch, Prediction
from rahf.config import ModelConfig
from rahf.models import functional, heads, layers, t5, vit
from rahf.text import EOS_ID, PAD_ID


class Fused(NamedTuple):
    """Output of the fusion stack: `image` [B,h,w,D] token grid, `memory` [B,N,D] and its mask for the decoder."""

    image: Float[Array, "b h w d"]
    memory: Float[Array, "b n d"]
    memory_mask: Bool[Array, "b n"]


class Rahf(nnx.Module):
    """Image and prompt → heatmaps, scores, and logits of the target sequence."""

    def __init__(self, config: ModelConfig):
        dtype = jnp.dtype(config.compute_dtype)
        width = config.t5.width
        self.config, self.dtype, self.grid = config, dtype, config.image_size // config.vit.patch_size
        self.vit = vit.ViT(config.vit, config.image_size, dtype=dtype)
        std = config.vit.width**-0.5
        self.projection = layers.Linear(config.vit.width, width, bias=True, std=std, dtype=dtype)
        # T5 starts its embeddings at 1 when tied to a scaled output; the residual stream is normalised anyway.
        self.embedding = layers.parameter(config.t5.vocab_size, width, std=1.0)
        self.encoder = t5.Encoder(config.t5, dtype=dtype)
        self.decoder = t5.Decoder(config.t5, dtype=dtype)
        if not config.t5.tie_embeddings:
            self.output = layers.parameter(width, config.t5.vocab_size, std=width**-0.5)
        for name in HEATMAPS:
            head = heads.HeatmapHead(width, config.image_size, config.heatmap_head, dtype=dtype)
            setattr(self, f"heatmap_{name}", head)
        for name in SCORES:
            setattr(self, f"score_{name}", heads.ScoreHead(width, self.grid, config.score_head, dtype=dtype))

    def pixels(self, image: Array) -> Float[Array, "b s s 3"]:
        """uint8 0..255 or float 0..1, any size → normalised float32 of the network's size; differentiable."""
        scale = 1.0 / 255.0 if jnp.issubdtype(image.dtype, jnp.integer) else 1.0
        x = image.astype(jnp.float32) * scale
        side = self.config.image_size
        if x.shape[1:3] != (side, side):
            x = jax.image.resize(x, (x.shape[0], side, side, 3), "bilinear", antialias=True)
        return (x - jnp.asarray(self.config.image_mean)) / jnp.asarray(self.config.image_std)

    def image_tokens(self, image: Array, key: layers.Key = None) -> Float[Array, "b n d"]:
        """ViT tokens in the width of the fusion stack; independent of the prompt, so they can be kept."""
        return self.projection(self.vit(self.pixels(image), key))

    def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings."""
        return self.embedding[...][ids].astype(self.dtype)

    def fuse(
        self,
        image_tokens: Float[Array, "b n d"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: layers.Key = None,
    ) -> Fused:
        """Joint self-attention over image tokens (first) and prompt tokens."""
        b, n, _ = image_tokens.shape
        x = jnp.concatenate([image_tokens, self.embed(text_ids)], 1)
        mask = jnp.concatenate([jnp.ones((b, n), bool), text_mask], 1)
        x = self.encoder(x, mask, n, key)
        patches = n - self.grid**2  # a class token in front belongs to the sequence, not to the grid
        image = x[:, patches:n].reshape(b, self.grid, self.grid, -1)
        if self.config.decoder_sees == "text":
            x, mask = x[:, n:], mask[:, n:]
        return Fused(image, x, mask)

    def heatmap_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of both heatmaps in order HEATMAPS, float32."""
        each = [getattr(self, f"heatmap_{n}")(fused.image, layers.subkey(key, i)) for i, n in enumerate(HEATMAPS)]
        return jnp.stack(each, -1)

    def score_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES, float32."""
        each = [getattr(self, f"score_{n}")(fused.image, layers.subkey(key, i)) for i, n in enumerate(SCORES)]
        return jnp.stack(each, -1)

    def vocabulary_logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Hidden states of the decoder → float32 logits over the vocabulary."""
        if self.config.t5.tie_embeddings:
            hidden = hidden * self.config.t5.width**-0.5
            kernel = self.embedding[...].T
        else:
            kernel = self.output[...]
        return jnp.dot(hidden, kernel.astype(self.dtype), preferred_element_type=jnp.float32)

    def sequence_logits(
        self, fused: Fused, target_ids: Int[Array, "b t"], key: layers.Key = None
    ) -> Float[Array, "b t v"]:
        """Teacher forcing: logits at t predict target_ids[:, t] from the targets before it (start id 0)."""
        inputs = jnp.pad(target_ids[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
        return self.vocabulary_logits(self.decoder(self.embed(inputs), fused.memory, fused.memory_mask, key))

    def __call__(self, batch: Batch, key: layers.Key = None) -> "Logits":
        """All outputs of a batch, before the sigmoids. `key` switches dropout on."""
        tokens = self.image_tokens(batch.image, layers.subkey(key, 0))
        fused = self.fuse(tokens, batch.text_ids, batch.text_mask, layers.subkey(key, 1))
        return Logits(
            self.heatmap_logits(fused, layers.subkey(key, 2)),
            self.score_logits(fused, layers.subkey(key, 3)),
            self.sequence_logits(fused, batch.target_ids, layers.subkey(key, 4)),
        )

    def generate(self, fused: Fused, length: int) -> Int[Array, "b t"]:
        """Greedy decoding with a key/value cache, one compilation, stops when every sequence has ended.

        Returns:
          int32 [B, length] target ids, end of sequence included, padding after it.
        """
        b = fused.memory.shape[0]
        cache = self.decoder.start(fused.memory, length)

        def running(state):
            position, _, _, done, _ = state
            return (position < length) & ~done.all()

        def step(state):
            position, token, ids, done, cache = state
            hidden, cache = self.decoder.step(self.embed(token[:, None]), position, cache, fused.memory_mask)
            token = jnp.argmax(self.vocabulary_logits(hidden)[:, 0], -1).astype(jnp.int32)
            token = jnp.where(done, PAD_ID, token)
            ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, None], position, 1)
            return position + 1, token, ids, done | (token == EOS_ID), cache

        start = jnp.zeros(b, jnp.int32)
        state = (jnp.int32(0), start, jnp.zeros((b, length), jnp.int32), jnp.zeros(b, bool), cache)
        return jax.lax.while_loop(running, step, state)[2]


class Logits(NamedTuple):
    """Raw outputs, float32: `heatmaps` [B,S,S,2], `scores` [B,4], `sequence` [B,T,V]."""

    heatmaps: Float[Array, "b s s 2"]
    scores: Float[Array, "b 4"]
    sequence: Float[Array, "b t v"]


def word_probabilities(
    logits: Float[Array, "b t v"], prompt_ids: Int[Array, "b t"], word_end: Int[Array, "b k"], suffix_id: int
) -> Float[Array, "b k"]:
    """Constrained keyword scoring: how likely the suffix follows each word of the prompt.

    The prompt itself is the target (no suffixes); at each word's end the suffix's first piece competes
    with the piece that continues the prompt: p = softmax([log p(suffix), log p(next)])[0]. Needs no
    generation and cannot hallucinate; differentiable.

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


def predict(model: Rahf, batch: Batch, suffix_id: int, fused: Fused | None = None) -> Prediction:
    """Heatmaps, scores and word probabilities of a batch, no generation; pure and differentiable.

    Args:
      suffix_id: first piece of the suffix, `Tokenizer.suffix_ids[0]`.
      fused: of the same batch, if it has been computed already.
    """
    if fused is None:
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
    logits = model.sequence_logits(fused, batch.prompt_ids)
    return Prediction(
        jax.nn.sigmoid(model.heatmap_logits(fused)),
        jax.nn.sigmoid(model.score_logits(fused)),
        word_probabilities(logits, batch.prompt_ids, batch.word_end, suffix_id),
    )


def build(config: ModelConfig):
    """A function that builds the module; for `functional.init` and `abstract`."""
    return lambda: Rahf(config)


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Number of parameters by part, without allocating any."""
    _, params = functional.abstract(build(config))
    return {name: functional.count({name: params[name]}) for name in sorted(params)}
