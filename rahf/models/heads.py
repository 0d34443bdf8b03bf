"""Heatmap and score heads on the fused image tokens (RAHF, section 4.1; sizes from re-implementations)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import HeatmapHeadConfig, ScoreHeadConfig
from rahf.models import layers


class UpStage(nnx.Module):
    """Transposed convolution, norm, ReLU; then two convolutions of the same width, optionally residual."""

    def __init__(self, inputs: int, width: int, config: HeatmapHeadConfig, *, dtype: jnp.dtype):
        make = dict(dtype=dtype)
        self.up = layers.UpConv3x3(inputs, width, **make)
        self.norm_up = layers.channel_norm(config.norm, width, dtype)
        self.conv1 = layers.Conv3x3(width, width, **make)
        self.norm1 = layers.channel_norm(config.norm, width, dtype)
        self.conv2 = layers.Conv3x3(width, width, **make)
        self.norm2 = layers.channel_norm(config.norm, width, dtype)
        self.residual = config.residual

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w o"]:
        x = jax.nn.relu(self.norm_up(self.up(x)))
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return jax.nn.relu(x + y if self.residual else y)


class HeatmapHead(nnx.Module):
    """Token grid → one heatmap; every stage doubles the side, the rest is bilinear."""

    def __init__(
        self, inputs: int, image_size: int, config: HeatmapHeadConfig, *, dtype: jnp.dtype
    ):
        make = dict(dtype=dtype)
        width = inputs
        for number, out in enumerate(config.conv_widths):
            setattr(self, f"conv_{number}", layers.Conv3x3(width, out, **make))
            setattr(self, f"norm_{number}", layers.channel_norm(config.norm, out, dtype))
            width = out
        for number, out in enumerate(config.up_widths):
            setattr(self, f"up_{number}", UpStage(width, out, config, **make))
            width = out
        self.last = layers.Conv3x3(width, width, **make)
        # Start near the mean of real heatmaps: almost every pixel of a label is 0.
        self.out = layers.Conv3x3(width, 1, gain=0.1, fill=math.log(config.prior / (1.0 - config.prior)), **make)
        self.config, self.image_size = config, image_size

    def __call__(self, x: Float[Array, "b h w d"], key: layers.Key = None) -> Float[Array, "b s s"]:
        """Logits of the heatmap, float32 [B,S,S] with S the image side; sigmoid gives [0,1]."""
        x = layers.dropout(x, self.config.dropout, key)
        for number in range(len(self.config.conv_widths)):
            x = getattr(self, f"conv_{number}")(x)
            norm = getattr(self, f"norm_{number}")
            x = norm(jax.nn.relu(x)) if self.config.relu_before_norm else jax.nn.relu(norm(x))
        for number in range(len(self.config.up_widths)):
            x = getattr(self, f"up_{number}")(x)
        x = self.out(jax.nn.relu(self.last(x)))[..., 0].astype(jnp.float32)
        if x.shape[1] != self.image_size:
            x = jax.image.resize(x, (x.shape[0], self.image_size, self.image_size), "bilinear")
        return x


class ScoreHead(nnx.Module):
    """Token grid → one score: convolutions (norm, ReLU), flatten, dense layers (ReLU), one logit."""

    def __init__(self, inputs: int, grid: int, config: ScoreHeadConfig, *, dtype: jnp.dtype):
        width = inputs
        for number, out in enumerate(config.conv_widths):
            conv = layers.Conv3x3(
                width, out, size=config.kernel_size, padding=config.padding, dtype=dtype
            )
            setattr(self, f"conv_{number}", conv)
            setattr(self, f"norm_{number}", layers.channel_norm(config.norm, out, dtype))
            width = out
        if config.padding == "VALID":
            grid -= (config.kernel_size - 1) * len(config.conv_widths)
            if grid < 1:
                raise ValueError("score head: the token grid is too small for VALID padding; use SAME")
        if config.pool:
            if grid % config.pool:
                raise ValueError(f"score head: pool {config.pool} does not divide the grid of {grid}")
            grid = config.pool
        width *= grid * grid
        for number, out in enumerate(config.dense_widths):
            std = (2.0 / width) ** 0.5
            dense = layers.Linear(width, out, bias=True, std=std, dtype=dtype)
            setattr(self, f"dense_{number}", dense)
            width = out
        self.out = layers.Linear(width, 1, bias=True, std=0.1 * width**-0.5, dtype=jnp.dtype("float32"))
        self.config = config

    def __call__(self, x: Float[Array, "b h w d"], key: layers.Key = None) -> Float[Array, " b"]:
        """Logit of the score, float32 [B]; sigmoid gives [0,1]."""
        x = layers.dropout(x, self.config.dropout, layers.subkey(key, 0))
        for number in range(len(self.config.conv_widths)):
            x = jax.nn.relu(getattr(self, f"norm_{number}")(getattr(self, f"conv_{number}")(x)))
        b, side, _, c = x.shape
        if self.config.pool:
            pool = self.config.pool
            x = x.reshape(b, pool, side // pool, pool, side // pool, c).mean((2, 4))
        x = x.reshape(b, -1)
        for number in range(len(self.config.dense_widths)):
            x = jax.nn.relu(getattr(self, f"dense_{number}")(x))
            x = layers.dropout(x, self.config.dropout, layers.subkey(key, 1 + number))
        return self.out(x.astype(jnp.float32))[:, 0]
