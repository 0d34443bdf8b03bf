"""Building blocks of the denoiser. Parameters float32, compute in a chosen dtype, norms in float32."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rahf.nn import layers
from rahf.nn.attention import attention


class GroupNorm(nnx.Module):
    """Group normalization (Wu & He 2018) over space and channels of a group, statistics in float32."""

    def __init__(self, width: int, groups: int, *, eps: float = 1e-5, dtype: jnp.dtype):
        self.scale, self.bias = layers.parameter(width, fill=1.0), layers.parameter(width)
        self.groups, self.eps, self.dtype = math.gcd(groups, width), eps, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        parts = x.astype(jnp.float32).reshape(b, h, w, self.groups, c // self.groups)
        parts = parts - parts.mean((1, 2, 4), keepdims=True)
        parts = parts * jax.lax.rsqrt(jnp.square(parts).mean((1, 2, 4), keepdims=True) + self.eps)
        return (parts.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(self.dtype)


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions; time and prompt scale and shift the activations between them. Starts as the identity."""

    def __init__(self, inputs: int, outputs: int, condition: int, groups: int, *, dtype: jnp.dtype):
        self.norm1 = GroupNorm(inputs, groups, dtype=dtype)
        self.conv1 = layers.Conv3x3(inputs, outputs, dtype=dtype)
        self.modulation = layers.Linear(condition, 2 * outputs, bias=True, std=0.02, dtype=dtype)
        self.norm2 = GroupNorm(outputs, groups, dtype=dtype)
        self.conv2 = layers.Conv3x3(outputs, outputs, dtype=dtype, gain=0.0)
        if inputs != outputs:
            self.skip = layers.Linear(inputs, outputs, bias=True, std=inputs**-0.5, dtype=dtype)
        self.same = inputs == outputs

    def __call__(self, x: Float[Array, "b h w c"], condition: Float[Array, "b d"]) -> Float[Array, "b h w o"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        # In float32 until they are spread: their gradients are sums over all positions.
        modulation = self.modulation(jax.nn.silu(condition))[:, None, None].astype(jnp.float32)
        scale, shift = (layers.spread(part, y) for part in jnp.split(modulation, 2, -1))
        y = self.conv2(jax.nn.silu(self.norm2(y) * (1 + scale) + shift))
        return y + (x if self.same else self.skip(x))


class TextAttention(nnx.Module):
    """Pixels attend to all pixels and to the words of the prompt, in one softmax. Starts as the identity."""

    def __init__(self, width: int, text: int, heads: int, groups: int, *, dtype: jnp.dtype, implementation: str):
        options = dict(bias=False, dtype=dtype)
        self.norm = GroupNorm(width, groups, dtype=dtype)
        self.query = layers.Linear(width, width, std=width**-0.5, **options)
        self.key = layers.Linear(width, width, std=width**-0.5, **options)
        self.value = layers.Linear(width, width, std=width**-0.5, **options)
        self.text_key = layers.Linear(text, width, std=text**-0.5, **options)
        self.text_value = layers.Linear(text, width, std=text**-0.5, **options)
        self.out = layers.Linear(width, width, std=0.0, **options)
        self.heads, self.implementation = heads, implementation

    def __call__(
        self, x: Float[Array, "b h w c"], words: Float[Array, "b l d"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, c)
        split = lambda a: a.reshape(*a.shape[:-1], self.heads, c // self.heads)  # noqa: E731
        keys = jnp.concatenate([self.key(y), self.text_key(words)], 1)
        values = jnp.concatenate([self.value(y), self.text_value(words)], 1)
        key_mask = jnp.concatenate([jnp.ones((b, h * w), bool), mask], 1)
        query = split(self.query(y))
        attended = attention(query, split(keys), split(values), mask=key_mask, implementation=self.implementation)
        return x + self.out(attended.reshape(b, h * w, c)).reshape(x.shape)


def time_features(t: Float[Array, " b"], width: int) -> Float[Array, "b d"]:
    """Sines and cosines of 1000 · t for t in [0,1], wavelengths from 2π to 20000π (Vaswani et al. 2017)."""
    angles = 1000.0 * t[:, None] * jnp.exp(-math.log(10_000.0) * jnp.arange(width // 2) / (width // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
