"""T5 encoder and decoder (Raffel et al. 2020), v1.0 (ReLU, tied) and v1.1 (gated GELU, untied).

Attention is not scaled; the relative position bias is one table per stack, shared by its layers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.config import T5Config
from rahf.nn import layers
from rahf.nn.attention import attention, missing_tokens
from rahf.nn.execution import Execution, run_layers


def relative_buckets(
    query: Int[np.ndarray, " q"], key: Int[np.ndarray, " k"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[np.ndarray, "q k"]:
    """Bucket of every distance key - query: exact when near, logarithmic when far (T5, section 2.1)."""
    distance = np.asarray(key)[None, :] - np.asarray(query)[:, None]
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset, distance = buckets * (distance > 0), np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    # float32 as in the published checkpoints' code: the border of a bucket must not move by rounding.
    log_part = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    far = exact + (log_part * np.float32(buckets - exact)).astype(np.int32)
    return offset + np.where(distance < exact, distance, np.minimum(far, buckets - 1))


class RelativeBias(nnx.Module):
    """Table [buckets, heads] → additive attention bias."""

    def __init__(self, config: T5Config, *, bidirectional: bool):
        self.table = layers.parameter(config.relative_buckets, config.heads, std=config.width**-0.5)
        self.config, self.bidirectional = config, bidirectional

    def __call__(self, length: int, image_tokens: int = 0) -> Float[Array, "1 h q k"]:
        """Bias between `length` positions; without `image_relative_bias` it is 0 among the first `image_tokens`."""
        positions = np.arange(length)
        buckets = relative_buckets(
            positions,
            positions,
            bidirectional=self.bidirectional,
            buckets=self.config.relative_buckets,
            max_distance=self.config.relative_max_distance,
        )
        bias = self.table[...][buckets].transpose(2, 0, 1)[None]
        if image_tokens and not self.config.image_relative_bias:
            image = positions < image_tokens
            bias = jnp.where(image[:, None] & image[None, :], 0.0, bias)
        return bias


class Attention(nnx.Module):
    """Unscaled multi-head attention without biases in its projections."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, execution: Execution = Execution()):
        d, inner = config.width, config.heads * config.head_width
        options = dict(bias=False, dtype=dtype)
        self.query = layers.Linear(d, inner, std=(d * config.head_width) ** -0.5, **options)
        self.key = layers.Linear(d, inner, std=d**-0.5, **options)
        self.value = layers.Linear(d, inner, std=d**-0.5, **options)
        self.out = layers.Linear(inner, d, std=inner**-0.5, **options)
        self.config, self.execution = config, execution

    def heads(self, x: Float[Array, "b n i"]) -> Float[Array, "b n h d"]:
        """Splits the last axis into heads."""
        return x.reshape(*x.shape[:-1], self.config.heads, self.config.head_width)

    def keys_values(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n h e"], Float[Array, "b n h e"]]:
        """Keys and values of tokens, for attention or for a cache."""
        return self.heads(self.key(x)), self.heads(self.value(x))

    def __call__(self, x, keys, values, *, mask=None, bias=None, causal=False):
        """Attends from x [B,Q,D] to keys and values [B,K,H,E]; returns [B,Q,D]. Masks as of `attention`."""
        options = dict(mask=mask, bias=bias, causal=causal, scale=1.0, implementation=self.execution.attention)
        y = attention(self.heads(self.query(x)), keys, values, **options)
        return self.out(y.reshape(*y.shape[:-2], -1))


class FeedForward(nnx.Module):
    """ReLU (v1.0) or gated GELU (v1.1) feed-forward, no biases."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype):
        d, inner = config.width, config.mlp_width
        options = dict(bias=False, dtype=dtype)
        self.wi = layers.Linear(d, inner, std=d**-0.5, **options)
        if config.ff == "gated-gelu":
            self.gate = layers.Linear(d, inner, std=d**-0.5, **options)
        self.wo = layers.Linear(inner, d, std=inner**-0.5, **options)
        self.config = config

    def __call__(self, x: Float[Array, "b n d"], key: layers.Key = None) -> Float[Array, "b n d"]:
        if self.config.ff == "gated-gelu":
            hidden = jax.nn.gelu(self.gate(x), approximate=True) * self.wi(x)
        else:
            hidden = jax.nn.relu(self.wi(x))
        return self.wo(layers.dropout(hidden, self.config.dropout, key))


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each on an RMS-normalised input with a residual."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, execution: Execution = Execution()):
        self.norm1 = layers.RMSNorm(config.width, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, execution=execution)
        self.norm2 = layers.RMSNorm(config.width, dtype=dtype)
        self.ff = FeedForward(config, dtype=dtype)
        self.rate = config.dropout

    def __call__(self, x, *, mask, bias, key: layers.Key = None):
        y = self.norm1(x)
        y = self.attention(y, *self.attention.keys_values(y), mask=mask, bias=bias)
        x = x + layers.dropout(y, self.rate, layers.subkey(key, 0))
        y = self.ff(self.norm2(x), layers.subkey(key, 1))
        return x + layers.dropout(y, self.rate, layers.subkey(key, 2))


class Encoder(nnx.Module):
    """The fusion stack: self-attention over image and text tokens together."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, execution: Execution = Execution()):
        self.relative_bias = RelativeBias(config, bidirectional=True)
        for number in range(config.encoder_layers):
            setattr(self, f"layer_{number}", EncoderBlock(config, dtype=dtype, execution=execution))
        self.norm = layers.RMSNorm(config.width, dtype=dtype)
        self.config, self.dtype, self.execution = config, dtype, execution

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], image_tokens: int = 0, key: layers.Key = None
    ) -> Float[Array, "b n d"]:
        """Encodes embedded tokens; positions where `mask` is False, the last ones, are never attended to."""
        tokens = x.shape[1]
        more = missing_tokens(tokens, self.config.head_width, self.dtype, self.execution.attention)
        if more:
            x, mask = jnp.pad(x, ((0, 0), (0, more), (0, 0))), jnp.pad(mask, ((0, 0), (0, more)))
        bias = self.relative_bias(tokens + more, image_tokens)
        x = layers.dropout(x, self.config.dropout, layers.subkey(key, 0))
        blocks = [getattr(self, f"layer_{number}") for number in range(self.config.encoder_layers)]

        def apply(block, x, number):
            return block(x, mask=mask, bias=bias, key=layers.subkey(key, 1 + number))

        x = run_layers(blocks, apply, x, self.execution, self.dtype)[:, :tokens]
        return layers.dropout(self.norm(x), self.config.dropout, layers.subkey(key, 1000))


class Cache(NamedTuple):
    """Keys and values of the decoder's layers while it decodes token by token; static shapes, so one compilation.

    Each layer has arrays of its own, so that a loop writes them in place and never copies one.
    """

    keys: tuple[Float[Array, "b t h e"], ...]
    values: tuple[Float[Array, "b t h e"], ...]
    cross_keys: tuple[Float[Array, "b n h e"], ...]
    cross_values: tuple[Float[Array, "b n h e"], ...]


class DecoderBlock(nnx.Module):
    """Causal self-attention, cross-attention, feed-forward."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, execution: Execution = Execution()):
        self.norm1 = layers.RMSNorm(config.width, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, execution=execution)
        self.norm2 = layers.RMSNorm(config.width, dtype=dtype)
        self.cross = Attention(config, dtype=dtype, execution=execution)
        self.norm3 = layers.RMSNorm(config.width, dtype=dtype)
        self.ff = FeedForward(config, dtype=dtype)
        self.rate = config.dropout

    def __call__(self, x, *, keys_values, bias, cross, cross_mask, mask=None, causal=False, key: layers.Key = None):
        """One block. `keys_values` maps the normalised x to all keys and values of self-attention, cached ones too."""
        y = self.norm1(x)
        y = self.attention(y, *keys_values(y), mask=mask, bias=bias, causal=causal)
        x = x + layers.dropout(y, self.rate, layers.subkey(key, 0))
        y = self.cross(self.norm2(x), *cross, mask=cross_mask)
        x = x + layers.dropout(y, self.rate, layers.subkey(key, 1))
        y = self.ff(self.norm3(x), layers.subkey(key, 2))
        return x + layers.dropout(y, self.rate, layers.subkey(key, 3))


class Decoder(nnx.Module):
    """Embedded target tokens → hidden states, attending to the fused tokens."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, execution: Execution = Execution()):
        self.relative_bias = RelativeBias(config, bidirectional=False)
        for number in range(config.decoder_layers):
            setattr(self, f"layer_{number}", DecoderBlock(config, dtype=dtype, execution=execution))
        self.norm = layers.RMSNorm(config.width, dtype=dtype)
        self.config, self.dtype, self.execution = config, dtype, execution

    def blocks(self) -> list[DecoderBlock]:
        """The layers in order."""
        return [getattr(self, f"layer_{number}") for number in range(self.config.decoder_layers)]

    def __call__(
        self,
        x: Float[Array, "b t d"],
        memory: Float[Array, "b n d"],
        memory_mask: Bool[Array, "b n"],
        key: layers.Key = None,
    ) -> Float[Array, "b t d"]:
        """Teacher forcing over a whole sequence; position t sees only positions up to t.

        The decoder attends to the memory's first positions, where `memory_mask` is True.
        """
        bias = self.relative_bias(x.shape[1])
        x = layers.dropout(x, self.config.dropout, layers.subkey(key, 0))

        def apply(block, x, number):
            return block(
                x,
                keys_values=block.attention.keys_values,
                causal=True,
                bias=bias,
                cross=block.cross.keys_values(memory),
                cross_mask=memory_mask,
                key=layers.subkey(key, 1 + number),
            )

        x = run_layers(self.blocks(), apply, x, self.execution, self.dtype)
        return layers.dropout(self.norm(x), self.config.dropout, layers.subkey(key, 1000))

    def start(self, memory: Float[Array, "b n d"], length: int) -> Cache:
        """An empty cache for `length` tokens, with the memory's keys and values computed once."""
        cross = [block.cross.keys_values(memory) for block in self.blocks()]
        shape = (memory.shape[0], length, self.config.heads, self.config.head_width)
        empty = tuple(jnp.zeros(shape, k.dtype) for k, _ in cross)
        return Cache(empty, empty, tuple(k for k, _ in cross), tuple(v for _, v in cross))

    def step(
        self, x: Float[Array, "b 1 d"], position: Int[Array, ""], cache: Cache, memory_mask: Bool[Array, "b n"]
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """Decodes one token at `position`; equals `__call__` at that position."""
        length = cache.keys[0].shape[1]
        bias = jax.lax.dynamic_slice_in_dim(self.relative_bias(length), position, 1, 2)
        mask = (jnp.arange(length) <= position)[None, None, None]
        new_keys, new_values = [], []
        for number, block in enumerate(self.blocks()):

            def cached(y, number=number, block=block):
                k, v = block.attention.keys_values(y)
                new_keys.append(jax.lax.dynamic_update_slice_in_dim(cache.keys[number], k, position, 1))
                new_values.append(jax.lax.dynamic_update_slice_in_dim(cache.values[number], v, position, 1))
                return new_keys[-1], new_values[-1]

            x = block(
                x,
                keys_values=cached,
                mask=mask,
                bias=bias,
                cross=(cache.cross_keys[number], cache.cross_values[number]),
                cross_mask=memory_mask,
            )
        cache = cache._replace(keys=tuple(new_keys), values=tuple(new_values))
        return self.norm(x), cache
