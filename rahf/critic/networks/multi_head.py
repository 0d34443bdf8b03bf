"""The whole network: ViT tokens and prompt tokens fused by a T5 encoder; heatmap, score and keyword heads.

RAHF (Liang et al., CVPR 2024), figure 3, multi-head variant; the other variant is `augmented_prompt`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.config import CriticConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.critic.networks import heads
from rahf.critic.networks.outputs import Fused, Logits, TowerMaps, normalised
from rahf.critic.networks.word_tags import TagHead
from rahf.nn import gradients, layers, t5, vit
from rahf.nn.execution import execution_of, in_halves, remat_part
from rahf.text import EOS_ID, PAD_ID


class Rahf(nnx.Module):
    """Image and prompt → heatmaps, scores, and logits of the target sequence."""

    HEATMAP_HEADS, SCORE_HEADS = HEATMAPS, SCORES

    def __init__(self, config: CriticConfig):
        dtype = jnp.dtype(config.compute_dtype)
        width = config.t5.width
        self.config, self.dtype, self.execution = config, dtype, execution_of(config)
        options = dict(dtype=dtype, execution=self.execution)
        seen = self._add_tower(options)
        self.projection = layers.Linear(seen, width, bias=True, std=seen**-0.5, dtype=dtype)
        # T5 initialises embeddings with deviation 1, as the tied output is scaled; the residual stream is normalised.
        self.embedding = layers.parameter(config.t5.vocab_size, width, std=1.0)
        self.encoder = t5.Encoder(config.t5, **options)
        self.decoder = t5.Decoder(config.t5, **options)
        if not config.t5.tie_embeddings:
            self.output = layers.parameter(width, config.t5.vocab_size, std=width**-0.5)
        for name in self.HEATMAP_HEADS:
            setattr(self, f"heatmap_{name}", self._heatmap_head(options))
        for name in self.SCORE_HEADS:
            setattr(self, f"score_{name}", self._score_head(options))
        if config.tag_head:
            self.tags = TagHead(self._tag_width(), config.t5.vocab_size, dtype=dtype)

    def _add_tower(self, options: dict[str, Any]) -> int:
        """Adds the image tower and the side of its grid of tokens; returns the width of what it sees."""
        config = self.config
        self.grid = config.image_size // config.vit.patch_size
        self.vit = vit.ViT(config.vit, config.image_size, **options)
        return config.vit.width

    def _tag_width(self) -> int:
        """Width of the tokens that the tag head reads."""
        return self.config.vit.width

    def _heatmap_head(self, options: dict[str, Any]) -> heads.HeatmapHead:
        config = self.config
        return heads.HeatmapHead(config.t5.width, config.image_size, config.heatmap_head, grid=self.grid, **options)

    def _score_head(self, options: dict[str, Any]) -> heads.ScoreHead:
        return heads.ScoreHead(self.config.t5.width, self.grid, self.config.score_head, **options)

    def pixels(self, image: Array) -> Float[Array, "b s s 3"]:
        """uint8 0..255 or float 0..1, any size → normalised float32 of the network's size; differentiable."""
        return normalised(self.config, image)

    def image_tokens(self, image: Array, key: layers.Key = None) -> Float[Array, "b n d"]:
        """ViT tokens in the width of the fusion stack; independent of the prompt, so callers may cache them."""
        return self.projection(self.see(image, key))

    def see(self, image: Array | TowerMaps, key: layers.Key = None) -> Float[Array, "b n d"]:
        """ViT tokens in the ViT's width."""
        if isinstance(image, TowerMaps):
            return image.maps[0].astype(self.dtype)
        with jax.named_scope("vit"):  # scopes name the parts of the network in profiles
            return self._part(self.vit)(self.pixels(image), key)

    def tower_maps(self, image: Array) -> tuple[Array, ...]:
        """What the tower makes of an image, all that the rest of the network sees of it; see `TowerMaps`."""
        return (self.see(image),)

    def tag_logits(self, seen: Float[Array, "b n d"]) -> Float[Array, "b v"] | None:
        """Logits that the tower's tokens show each piece; None without a tag head."""
        return self.tags(seen) if self.config.tag_head else None

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
        """Joint self-attention over image tokens, which come first, and prompt tokens."""
        b, n, _ = image_tokens.shape
        x = jnp.concatenate([image_tokens, self.embed(text_ids)], 1)
        mask = jnp.concatenate([jnp.ones((b, n), bool), text_mask], 1)
        with jax.named_scope("encoder"):
            x = self._part(lambda x, mask, key: self.encoder(x, mask, n, key))(x, mask, key)
        first_patch = n - self.grid**2  # a class token belongs to the sequence, not to the grid
        image = x[:, first_patch:n].reshape(b, self.grid, self.grid, -1)
        if self.config.decoder_sees == "text":
            x, mask = x[:, n:], mask[:, n:]
        return Fused(image, x, mask)

    def heatmap_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of both heatmaps in order HEATMAPS, float32."""
        heads = [self._part(getattr(self, f"heatmap_{name}")) for name in HEATMAPS]
        with jax.named_scope("heatmap_heads"):
            return jnp.stack([head(fused.image, layers.subkey(key, i)) for i, head in enumerate(heads)], -1)

    def score_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES, float32."""
        heads = [self._part(getattr(self, f"score_{name}")) for name in SCORES]
        with jax.named_scope("score_heads"):
            return jnp.stack([head(fused.image, layers.subkey(key, i)) for i, head in enumerate(heads)], -1)

    def vocabulary_logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Hidden states of the decoder → float32 logits over the vocabulary."""
        if self.config.t5.tie_embeddings:
            hidden = hidden * self.config.t5.width**-0.5
            kernel = self.embedding[...].T
        else:
            kernel = self.output[...]
        return gradients.product(hidden, kernel.astype(self.dtype), out=jnp.float32)

    def sequence_logits(
        self, fused: Fused, target_ids: Int[Array, "b t"], key: layers.Key = None
    ) -> Float[Array, "b t v"]:
        """Teacher forcing: logits at t predict target_ids[:, t] from the targets before it (start id 0)."""
        inputs = jnp.pad(target_ids[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
        decoder = self._part(self.decoder)
        with jax.named_scope("decoder"):
            return self.vocabulary_logits(decoder(self.embed(inputs), fused.memory, fused.memory_mask, key))

    def _part(self, function: Callable) -> Callable:
        """A tower or head; with `remat` "full" only its inputs are kept for the gradient."""
        return remat_part(self.execution, function)

    def __call__(self, batch: Batch, key: layers.Key = None) -> Logits:
        """All outputs of a batch, before the sigmoids. `key` switches dropout on."""
        if key is None:
            return in_halves(self._outputs, batch, self.config.t5.width)
        return self._outputs(batch, key)

    def _outputs(self, batch: Batch, key: layers.Key = None) -> Logits:
        seen = self.see(batch.image, layers.subkey(key, 0))
        fused = self.fuse(self.projection(seen), batch.text_ids, batch.text_mask, layers.subkey(key, 1))
        return Logits(
            self.heatmap_logits(fused, layers.subkey(key, 2)),
            self.score_logits(fused, layers.subkey(key, 3)),
            self.sequence_logits(fused, batch.target_ids, layers.subkey(key, 4)),
            self.tag_logits(seen),
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
