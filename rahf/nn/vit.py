"""Vision transformer (Dosovitskiy et al. 2021): pre-norm, learned position embeddings.

Exact GELU and no layer scale as published. SigLIP's towers have another GELU, DINOv2's have layer scale, CLIP's another
activation and one more norm in front of the blocks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rahf.config import ViTConfig
from rahf.core.errors import ConfigError
from rahf.nn import layers
from rahf.nn.attention import attention
from rahf.nn.execution import Execution, remat_block, run_layers


def activate(x: Float[Array, "*b"], kind: str) -> Float[Array, "*b"]:
    """The activation of a feed-forward layer: "gelu", "gelu-tanh" or "quick-gelu" (x · sigmoid(1.702 x))."""
    return x * jax.nn.sigmoid(1.702 * x) if kind == "quick-gelu" else jax.nn.gelu(x, approximate=kind == "gelu-tanh")


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
        self.wo = layers.Linear(config.mlp_width, d, std=config.mlp_width**-0.5 * (2 * config.depth) ** -0.5, **options)
        if config.layer_scale:  # starts near the identity (Touvron et al. 2021, CaiT)
            self.scale1, self.scale2 = layers.parameter(d, fill=1e-5), layers.parameter(d, fill=1e-5)
        self.config, self.execution = config, execution

    def __call__(
        self, x: Float[Array, "b n d"], key: layers.Key = None, mask: Bool[Array, "#b 1 n n"] | None = None
    ) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        heads = (b, n, self.config.heads, d // self.config.heads)
        y = self.norm1(x)
        query, keys, values = (linear(y).reshape(heads) for linear in (self.query, self.key, self.value))
        y = attention(query, keys, values, mask=mask, implementation=self.execution.attention)
        y = self.out(y.reshape(b, n, d))
        if self.config.layer_scale:
            y = y * self.scale1[...].astype(y.dtype)
        x = x + layers.dropout(y, self.config.dropout, layers.subkey(key, 0))
        y = self.wo(activate(self.wi(self.norm2(x)), self.config.activation))
        if self.config.layer_scale:
            y = y * self.scale2[...].astype(y.dtype)
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
        tokens = self.grid**2 + config.class_token
        self.position = layers.parameter(tokens, config.width, std=0.02)
        if config.class_token:
            self.class_token = layers.parameter(config.width)
        if config.pre_norm:
            self.pre_norm = layers.LayerNorm(config.width, eps=config.layer_norm_eps, dtype=dtype)
        for number in range(config.depth):
            setattr(self, f"layer_{number}", ViTBlock(config, dtype=dtype, execution=execution))
        self.norm = layers.LayerNorm(config.width, eps=config.layer_norm_eps, dtype=dtype)

    def __call__(self, image: Float[Array, "b s s 3"], key: layers.Key = None) -> Float[Array, "b n d"]:
        """Tokens of normalised images: the class token first if there is one, then patches in row order.

        Args:
          image: float [B,S,S,3], already normalised.
          key: for dropout; None: no dropout.

        Returns:
          [B,N,D], N = (S / patch)² + class token, after the final norm.
        """
        x = image.astype(self.dtype)
        for number in range(len(self.config.stem)):
            x = remat_block(self.execution, getattr(self, f"stem_{number}"))(x)
        b, _, _, channels = x.shape
        x = x.reshape(b, self.grid, self.patch, self.grid, self.patch, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, self.grid**2, self.patch**2 * channels)
        x = self.embed(x)
        if self.config.class_token:
            first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (b, 1, x.shape[-1]))
            x = jnp.concatenate([first, x], 1)
        x = x + self.position[...].astype(x.dtype)
        x = layers.dropout(x, self.config.dropout, layers.subkey(key, 0))
        if self.config.pre_norm:
            x = self.pre_norm(x)
        blocks = [getattr(self, f"layer_{number}") for number in range(self.config.depth)]
        apply = lambda block, x, number: block(x, layers.subkey(key, 1 + number))
        return self.norm(run_layers(blocks, apply, x, self.execution, self.dtype))
