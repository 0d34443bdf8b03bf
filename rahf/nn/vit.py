"""Vision transformer (Dosovitskiy et al. 2021): pre-norm, learned or rotary positions.

Exact GELU and no layer scale as published. SigLIP's towers have another GELU, DINOv2's have layer scale, CLIP's another
activation and one more norm in front of the blocks. DINOv3's have rotary positions and register tokens.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rahf.config import ViTConfig
from rahf.core.errors import ConfigError
from rahf.nn import layers
from rahf.nn.attention import attention, missing_tokens
from rahf.nn.execution import Execution, remat_block, run_layers


def activate(x: Float[Array, "*b"], kind: str) -> Float[Array, "*b"]:
    """The activation of a feed-forward layer: "gelu", "gelu-tanh", "quick-gelu" (x · sigmoid(1.702 x)) or "silu"."""
    if kind == "silu":
        return jax.nn.silu(x)
    return x * jax.nn.sigmoid(1.702 * x) if kind == "quick-gelu" else jax.nn.gelu(x, approximate=kind == "gelu-tanh")


def prefix_tokens(config: ViTConfig) -> int:
    """Tokens in front of the patches: class token and registers."""
    return config.class_token + config.registers


def rotated(x: Float[Array, "b n h d"], theta: float, prefix: int) -> Float[Array, "b n h d"]:
    """Queries or keys with the places of their patches as rotations (Su et al. 2021; DINOv3, Siméoni et al. 2025).

    A patch at (y, x), both -1..1 at the borders of the image, turns the pairs (i, i + d/2) of its channels by
    2 π y θ^(-4i/d) for i < d/4, and by the same of x for the next d/4. The first `prefix` tokens have no place.

    Args:
      x: one row of tokens per image, the patches of a square last.
      theta: base of the frequencies.
      prefix: number of tokens in front of the patches.
    """
    tokens, width = x.shape[1], x.shape[-1]
    side = math.isqrt(tokens - prefix)
    centres = 2 * (jnp.arange(side) + 0.5) / side - 1
    places = jnp.stack(jnp.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2, 1)
    frequencies = theta ** -(jnp.arange(width // 4) * 4 / width)
    angles = (2 * math.pi * places * frequencies).reshape(-1, width // 2)
    angles = jnp.pad(jnp.tile(angles, 2), ((prefix, 0), (0, 0)))[:, None]
    first, second = jnp.split(x, 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return x * jnp.cos(angles).astype(x.dtype) + turned * jnp.sin(angles).astype(x.dtype)


class ViTBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype, execution: Execution = Execution()):
        d, std = config.width, config.width**-0.5
        options = dict(bias=True, dtype=dtype)
        self.norm1 = layers.LayerNorm(d, eps=config.layer_norm_eps, dtype=dtype)
        self.query = layers.Linear(d, d, std=std, **options)
        self.key = layers.Linear(d, d, std=std, **options)
        self.value = layers.Linear(d, d, std=std, **options)
        self.out = layers.Linear(d, d, std=std * (2 * config.depth) ** -0.5, **options)
        self.norm2 = layers.LayerNorm(d, eps=config.layer_norm_eps, dtype=dtype)
        self.wi = layers.Linear(d, config.mlp_width, std=std, **options)
        if config.gated_mlp:
            self.gate = layers.Linear(d, config.mlp_width, std=std, **options)
        self.wo = layers.Linear(config.mlp_width, d, std=config.mlp_width**-0.5 * (2 * config.depth) ** -0.5, **options)
        if config.layer_scale:  # starts near the identity (Touvron et al. 2021, CaiT)
            self.scale1, self.scale2 = layers.parameter(d, fill=1e-5), layers.parameter(d, fill=1e-5)
        self.config, self.execution = config, execution

    def __call__(
        self,
        x: Float[Array, "b n d"],
        key: layers.Key = None,
        mask: Bool[Array, "b n"] | Bool[Array, "#b 1 n n"] | None = None,
    ) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        heads = (b, n, self.config.heads, d // self.config.heads)
        y = self.norm1(x)
        query, keys, values = (linear(y).reshape(heads) for linear in (self.query, self.key, self.value))
        if self.config.rope_theta:
            query, keys = (rotated(x, self.config.rope_theta, prefix_tokens(self.config)) for x in (query, keys))
        y = attention(query, keys, values, mask=mask, implementation=self.execution.attention)
        y = self.out(y.reshape(b, n, d))
        if self.config.layer_scale:
            y = y * layers.spread(self.scale1[...], y)
        x = x + layers.dropout(y, self.config.dropout, layers.subkey(key, 0))
        y = self.norm2(x)
        if self.config.gated_mlp:
            y = self.wo(activate(self.gate(y), self.config.activation) * self.wi(y))
        else:
            y = self.wo(activate(self.wi(y), self.config.activation))
        if self.config.layer_scale:
            y = y * layers.spread(self.scale2[...], y)
        return x + layers.dropout(y, self.config.dropout, layers.subkey(key, 1))


class StemStage(nnx.Module):
    """Halves the side: 3x3 convolution with stride 2, norm, ReLU; then residual 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, blocks: int, *, dtype: jnp.dtype):
        self.conv = layers.Conv3x3(inputs, width, stride=2, dtype=dtype)
        self.norm = layers.LayerNorm(width, dtype=dtype)
        for number in range(blocks):
            setattr(self, f"block_{number}", layers.Conv3x3(width, width, dtype=dtype))
            setattr(self, f"block_norm_{number}", layers.LayerNorm(width, dtype=dtype))
        self.blocks = blocks

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        x = jax.nn.relu(self.norm(self.conv(x)))
        for number in range(self.blocks):
            y = getattr(self, f"block_norm_{number}")(getattr(self, f"block_{number}")(x))
            x = jax.nn.relu(x + y)
        return x


class ViT(nnx.Module):
    """Image → patch tokens.

    With `config.stem`, stride-2 3x3 convolutions (norm, ReLU) come before a correspondingly smaller patch embedding:
    small networks trained from scratch then learn much faster (Xiao et al. 2021, "Early convolutions help transformers
    see better"). `()` is the published network.
    """

    def __init__(self, config: ViTConfig, image_size: int, *, dtype: jnp.dtype, execution: Execution = Execution()):
        if image_size % config.patch_size:
            raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {config.patch_size}")
        if config.patch_size % 2 ** len(config.stem):
            raise ConfigError(f"a stem of {len(config.stem)} halvings does not divide patch_size {config.patch_size}")
        if config.width % config.heads:
            raise ConfigError(f"vit.width {config.width} is not a multiple of vit.heads {config.heads}")
        self.config, self.grid, self.dtype = config, image_size // config.patch_size, dtype
        self.execution = execution
        channels = 3
        for number, width in enumerate(config.stem):
            setattr(self, f"stem_{number}", StemStage(channels, width, config.stem_blocks, dtype=dtype))
            channels = width
        self.patch = config.patch_size // 2 ** len(config.stem)
        inputs = self.patch**2 * channels
        self.embed = layers.Linear(inputs, config.width, bias=True, std=inputs**-0.5, dtype=dtype)
        if config.rope_theta and config.width // config.heads % 4:
            raise ConfigError(f"vit.rope_theta: heads are {config.width // config.heads} wide, not a multiple of 4")
        if not config.rope_theta:
            tokens = self.grid**2 + prefix_tokens(config)
            self.position = layers.parameter(tokens, config.width, std=0.02)
        if config.registers:
            self.registers = layers.parameter(config.registers, config.width, std=0.02)
        if config.class_token:
            self.class_token = layers.parameter(config.width)
        if config.pre_norm:
            self.pre_norm = layers.LayerNorm(config.width, eps=config.layer_norm_eps, dtype=dtype)
        for number in range(config.depth):
            setattr(self, f"layer_{number}", ViTBlock(config, dtype=dtype, execution=execution))
        self.norm = layers.LayerNorm(config.width, eps=config.layer_norm_eps, dtype=dtype)

    def _behind(self, first: Float[Array, "m d"], x: Float[Array, "b n d"]) -> Float[Array, "b k d"]:
        """The tokens x behind tokens that are the same for every image."""
        # Cast last: see `layers.spread`.
        return jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape)).astype(x.dtype), x], 1)

    def __call__(self, image: Float[Array, "b s s 3"], key: layers.Key = None) -> Float[Array, "b n d"]:
        """Tokens of normalised images: class token and registers first if there are any, then patches in row order.

        Args:
          image: float [B,S,S,3], already normalised.
          key: for dropout; None: no dropout.

        Returns:
          [B,N,D], N = (S / patch)² + class token + registers, after the final norm.
        """
        x = image.astype(self.dtype)
        for number in range(len(self.config.stem)):
            x = remat_block(self.execution, getattr(self, f"stem_{number}"))(x)
        b, _, _, channels = x.shape
        x = x.reshape(b, self.grid, self.patch, self.grid, self.patch, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, self.grid**2, self.patch**2 * channels)
        x = self.embed(x)
        if self.config.registers:
            x = self._behind(self.registers[...], x)
        if self.config.class_token:
            x = self._behind(self.class_token[...][None], x)
        if not self.config.rope_theta:
            x = x + layers.spread(self.position[...], x)
        x = layers.dropout(x, self.config.dropout, layers.subkey(key, 0))
        if self.config.pre_norm:
            x = self.pre_norm(x)
        return self.norm(self._blocks(x, key))

    def _blocks(self, x: Float[Array, "b n d"], key: layers.Key) -> Float[Array, "b n d"]:
        """The tokens after all blocks."""
        config, (b, tokens, _), mask = self.config, x.shape, None
        more = missing_tokens(tokens, config.width // config.heads, self.dtype, self.execution.attention)
        if more and not config.rope_theta:  # rotations go by the number of tokens
            x = jnp.pad(x, ((0, 0), (0, more), (0, 0)))
            mask = jnp.broadcast_to(jnp.arange(tokens + more) < tokens, (b, tokens + more))
        blocks = [getattr(self, f"layer_{number}") for number in range(config.depth)]
        apply = lambda block, x, number: block(x, layers.subkey(key, 1 + number), mask)
        return run_layers(blocks, apply, x, self.execution, self.dtype)[:, :tokens]
