"""The causal text tower of CLIP (Radford et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rahf.config import ClipTextConfig, ViTConfig
from rahf.core.errors import ConfigError
from rahf.nn import layers, vit


class TextStates(NamedTuple):
    """What diffusion models read of a text.

    Attributes:
      last: [B,L,D], hidden states after the last layer and the final norm.
      penultimate: [B,L,D], before the last layer, without the norm.
      end: [B,D], `last` where the text ends.
    """

    last: Float[Array, "b l d"]
    penultimate: Float[Array, "b l d"]
    end: Float[Array, "b d"]


class TextTower(nnx.Module):
    """Token ids → one vector: a causal transformer, read where the text ends."""

    def __init__(self, config: ClipTextConfig, *, dtype: jnp.dtype):
        block = ViTConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            mlp_width=config.mlp_width,
            layer_norm_eps=config.layer_norm_eps,
            activation=config.activation,
        )
        self.config, self.dtype = config, dtype
        self.embedding = layers.parameter(config.vocab_size, config.width, std=0.02)
        self.position = layers.parameter(config.positions, config.width, std=0.01)
        for number in range(config.depth):
            setattr(self, f"layer_{number}", vit.ViTBlock(block, dtype=dtype))
        self.norm = layers.LayerNorm(config.width, eps=config.layer_norm_eps, dtype=dtype)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """The hidden state at the end of each text, after the final norm.

        No token attends to later ones, so padding behind the end has no influence and needs no mask.

        Raises:
          ConfigError: more tokens than positions.
        """
        _, x = self._layers(ids)
        return self.norm(jnp.take_along_axis(x, self._end(ids), 1)[:, 0])

    def states(self, ids: Int[Array, "b l"]) -> TextStates:
        """The hidden states at all tokens, padding included, as Stable Diffusion reads them.

        Raises:
          ConfigError: more tokens than positions.
        """
        penultimate, x = self._layers(ids)
        last = self.norm(x)
        return TextStates(last, penultimate, jnp.take_along_axis(last, self._end(ids), 1)[:, 0])

    def _layers(self, ids: Array) -> tuple[Array, Array]:
        """Hidden states before and after the last layer."""
        length = ids.shape[1]
        if length > self.config.positions:
            raise ConfigError(
                f"texts of {length} tokens, but this CLIP has {self.config.positions} positions; "
                f"set data.max_prompt_tokens to {self.config.positions}"
            )
        x = (self.embedding[...][ids] + self.position[...][:length]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
        before = x
        for number in range(self.config.depth):
            before, x = x, getattr(self, f"layer_{number}")(x, mask=causal)
        return before, x

    def _end(self, ids: Array) -> Array:
        """Where each text ends, int [B,1,1]."""
        # Old published configs name 2 as the end of a text; it then is the highest id.
        is_end = ids if self.config.eos_token_id == 2 else ids == self.config.eos_token_id
        return jnp.argmax(is_end, -1)[:, None, None]  # the first maximum
