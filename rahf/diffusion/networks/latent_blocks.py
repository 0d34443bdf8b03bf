"""Blocks that the U-Net and the autoencoder of Stable Diffusion share.

Names and structure of the parameters are those of `diffusers`: ``down_blocks.0.resnets.1.conv1.weight`` there is
``down_blocks/0/resnets/1/conv1/kernel`` here. 1x1 convolutions are dense layers. Parameters are float32, norms compute
in float32, all else in a chosen dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.diffusion.networks.blocks import GroupNorm
from rahf.nn import layers
from rahf.nn.attention import attention

#: Probabilities of attention, float32 [B,heads,queries,keys] → those that are used instead.
Reweight = Callable[[Array], Array]
#: The same, told the grid first: rows and columns of the queries.
GridReweight = Callable[[tuple[int, int], Array], Array]

#: One zero on each side, also where the stride is 2: "SAME" would pad an even side at its end only.
AROUND = ((1, 1), (1, 1))


def dense(inputs: int, outputs: int, *, bias: bool = True, dtype: jnp.dtype) -> layers.Linear:
    """A dense layer, or 1x1 convolution."""
    return layers.Linear(inputs, outputs, bias=bias, std=inputs**-0.5, dtype=dtype)


class ResnetBlock2D(nnx.Module):
    """Two 3x3 convolutions with norms in front; the time embedding is added between them."""

    def __init__(
        self, inputs: int, outputs: int, temb_channels: int, groups: int, *, eps: float = 1e-5, dtype: jnp.dtype
    ):
        """Builds; `temb_channels` 0: without time embedding, as in the autoencoder."""
        self.norm1 = GroupNorm(inputs, groups, eps=eps, dtype=dtype)
        self.conv1 = layers.Conv3x3(inputs, outputs, dtype=dtype)
        if temb_channels:
            self.time_emb_proj = dense(temb_channels, outputs, dtype=dtype)
        self.norm2 = GroupNorm(outputs, groups, eps=eps, dtype=dtype)
        self.conv2 = layers.Conv3x3(outputs, outputs, dtype=dtype)
        if inputs != outputs:
            self.conv_shortcut = dense(inputs, outputs, dtype=dtype)
        self.same, self.timed = inputs == outputs, bool(temb_channels)

    def __call__(self, x: Float[Array, "b h w c"], temb: Float[Array, "b d"] | None = None) -> Float[Array, "b h w o"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.timed:
            y = y + layers.spread(self.time_emb_proj(jax.nn.silu(temb))[:, None, None].astype(jnp.float32), y)
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.same else self.conv_shortcut(x))


class Downsample2D(nnx.Module):
    """Halves the side by a 3x3 convolution with stride 2; an odd side is rounded up."""

    def __init__(self, width: int, *, padding: tuple = AROUND, dtype: jnp.dtype):
        self.conv = layers.Conv3x3(width, width, stride=2, padding=padding, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles the side by repetition, then a 3x3 convolution."""

    def __init__(self, width: int, *, dtype: jnp.dtype):
        self.conv = layers.Conv3x3(width, width, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 c"]:
        """Up to `size` (height, width), where the side was odd before it was halved; None: exactly twice."""
        x = doubled(x)
        return self.conv(x if size is None else x[:, : size[0], : size[1]])


def doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


class Attention(nnx.Module):
    """Multi-head attention of queries x to a context, x itself if there is none."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: int | None = None,
        qkv_bias: bool = False,
        dtype: jnp.dtype,
        implementation: str = "auto",
    ):
        context = width if context is None else context
        self.to_q = dense(width, width, bias=qkv_bias, dtype=dtype)
        self.to_k = dense(context, width, bias=qkv_bias, dtype=dtype)
        self.to_v = dense(context, width, bias=qkv_bias, dtype=dtype)
        self.to_out = layers.Numbered([dense(width, width, dtype=dtype)])
        self.heads, self.implementation = heads, implementation

    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m d"] | None = None, reweight: Reweight | None = None
    ) -> Float[Array, "b n c"]:
        context = x if context is None else context
        split = lambda a: a.reshape(*a.shape[:-1], self.heads, -1)  # noqa: E731
        query, key, value = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        if reweight is None:
            y = attention(query, key, value, implementation=self.implementation)
        else:
            y = reweighted_attention(query, key, value, reweight)
        return self.to_out[0](y.reshape(x.shape))


def reweighted_attention(
    query: Float[Array, "b q h d"], key: Float[Array, "b k h d"], value: Float[Array, "b k h d"], reweight: Reweight
) -> Float[Array, "b q h d"]:
    """Attention whose probabilities pass through a function, and so are written out."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    probabilities = reweight(jax.nn.softmax(logits, -1))
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value)


class GroupNormAttention(Attention):
    """One head over all positions of a feature map, residual: in the middle of the autoencoder."""

    def __init__(self, width: int, groups: int, *, dtype: jnp.dtype):
        super().__init__(width, 1, qkv_bias=True, dtype=dtype)
        self.group_norm = GroupNorm(width, groups, eps=1e-6, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        return x + super().__call__(self.group_norm(x).reshape(b, h * w, c)).reshape(x.shape)


class GEGLU(nnx.Module):
    """``a · gelu(b)`` of two halves of a projection (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype):
        self.proj = dense(inputs, 2 * outputs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        value, gate = jnp.split(self.proj(x), 2, -1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """A gated layer four times as wide, and back; number 1 is the dropout of `diffusers`, which has no parameters."""

    def __init__(self, width: int, *, dtype: jnp.dtype):
        inner = 4 * width
        self.net = layers.Numbered([GEGLU(width, inner, dtype=dtype), None, dense(inner, width, dtype=dtype)])

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
    """Attention to all positions, to the text, and a feed-forward layer; each residual with a norm in front."""

    def __init__(self, width: int, heads: int, context: int, *, dtype: jnp.dtype, implementation: str):
        options = dict(dtype=dtype, implementation=implementation)
        self.norm1 = layers.LayerNorm(width, eps=1e-5, dtype=dtype)
        self.attn1 = Attention(width, heads, **options)
        self.norm2 = layers.LayerNorm(width, eps=1e-5, dtype=dtype)
        self.attn2 = Attention(width, heads, context=context, **options)
        self.norm3 = layers.LayerNorm(width, eps=1e-5, dtype=dtype)
        self.ff = FeedForward(width, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m d"], reweight: Reweight | None = None
    ) -> Float[Array, "b n c"]:
        """`reweight` is of the attention to the text."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, reweight)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """A feature map as a sequence through transformer blocks that read the text; residual."""

    def __init__(
        self,
        width: int,
        heads: int,
        context: int,
        depth: int,
        groups: int,
        *,
        dtype: jnp.dtype,
        implementation: str = "auto",
    ):
        self.norm = GroupNorm(width, groups, eps=1e-6, dtype=dtype)
        self.proj_in = dense(width, width, dtype=dtype)
        block = lambda: BasicTransformerBlock(width, heads, context, dtype=dtype, implementation=implementation)  # noqa: E731
        self.transformer_blocks = layers.Numbered([block() for _ in range(depth)])
        self.proj_out = dense(width, width, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"], reweight: GridReweight | None = None
    ) -> Float[Array, "b h w c"]:
        """`reweight` is of the attention to the text, of all blocks."""
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x).reshape(b, h * w, c))
        of_grid = None if reweight is None else functools.partial(reweight, (h, w))
        for block in self.transformer_blocks:
            y = block(y, context, of_grid)
        return x + self.proj_out(y).reshape(x.shape)


class TimestepEmbedding(nnx.Module):
    """Two dense layers over `timestep_features`."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype):
        self.linear_1, self.linear_2 = dense(inputs, outputs, dtype=dtype), dense(outputs, outputs, dtype=dtype)

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


def timestep_features(
    t: Float[Array, " b"], width: int, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Array, "b d"]:
    """Sines and cosines of timesteps with wavelengths from 2π to 20000π, float32 [B,width].

    Args:
      t: [B], timesteps (or pixels), any number type.
      flip_sin_to_cos: cosines first.
      freq_shift: of the denominator of the frequencies' exponent, as in `diffusers`.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, -1)
