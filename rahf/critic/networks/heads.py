"""Heatmap and score heads on the fused image tokens (RAHF, section 4.1; sizes from re-implementations)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import HeatmapHeadConfig, ScoreHeadConfig
from rahf.core.errors import ConfigError
from rahf.nn import layers
from rahf.nn.execution import Execution, remat_block


class UpStage(nnx.Module):
    """Transposed convolution, norm, ReLU; then two convolutions of the same width, optionally residual.

    With a skip, the projection of a tower's map of the same side is added in front of the first norm.
    """

    def __init__(
        self, inputs: int, width: int, config: HeatmapHeadConfig, *, skip: int | None = None, dtype: jnp.dtype
    ):
        """`skip` is the number of channels of the tower's map; None: the stage has no skip."""
        self.up = layers.UpConv3x3(inputs, width, dtype=dtype)
        if skip is not None:
            self.skip = layers.Linear(skip, width, bias=True, std=skip**-0.5, dtype=dtype)
        self.norm_up = layers.channel_norm(config.norm, width, dtype)
        self.conv1 = layers.Conv3x3(width, width, dtype=dtype)
        self.norm1 = layers.channel_norm(config.norm, width, dtype)
        self.conv2 = layers.Conv3x3(width, width, dtype=dtype)
        self.norm2 = layers.channel_norm(config.norm, width, dtype)
        self.residual = config.residual

    def __call__(
        self, x: Float[Array, "b h w c"], skip: Float[Array, "b 2*h 2*w s"] | None = None
    ) -> Float[Array, "b 2*h 2*w o"]:
        x = self.up(x)
        x = jax.nn.relu(self.norm_up(x if skip is None else x + self.skip(skip)))
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return jax.nn.relu(x + y if self.residual else y)


def up_widths(config: HeatmapHeadConfig, image_size: int, grid: int) -> tuple[int, ...]:
    """Widths of the stages that a head has: all configured ones, or those that reach a quarter of the image side.

    The full head at patch 16 spends four fifths of its multiplications on its last two stages. They place edges more
    finely than annotators did, whose discs have a radius of 1/20 of the image height. Without these stages, at the same
    widths, a training step of ViT-L/16 at 384 with T5-base takes 2.36 times fewer multiplications.

    Raises:
      ConfigError: too few stages for a quarter of the image side.
    """
    if config.kind == "full":
        return config.up_widths
    stages = max(0, math.ceil(math.log2(image_size / (4 * grid))))
    if stages > len(config.up_widths):
        raise ConfigError(
            f"heatmap head: from a grid of {grid} to a quarter of the image side {image_size} it takes {stages} "
            f"stages, up_widths has only {len(config.up_widths)}; add widths, or use kind 'full'"
        )
    return config.up_widths[:stages]


class HeatmapHead(nnx.Module):
    """Token grid → one heatmap; every stage doubles the side, bilinear interpolation does the rest."""

    def __init__(
        self,
        inputs: int,
        image_size: int,
        config: HeatmapHeadConfig,
        *,
        grid: int | None = None,
        skips: tuple[int, ...] = (),
        dtype: jnp.dtype,
        execution: Execution = Execution(),
    ):
        """Builds the head.

        Args:
          grid: side of the token grid; None: that of patches of 16 pixels.
          skips: channels of a tower's maps that the stages see, the coarsest first.

        Raises:
          ConfigError: more skips than stages.
        """
        width = inputs
        self.stages = up_widths(config, image_size, image_size // 16 if grid is None else grid)
        for number, out in enumerate(config.conv_widths):
            setattr(self, f"conv_{number}", layers.Conv3x3(width, out, dtype=dtype))
            setattr(self, f"norm_{number}", layers.channel_norm(config.norm, out, dtype))
            width = out
        if len(skips) > len(self.stages):
            raise ConfigError(
                f"heatmap head: {len(self.stages)} stages for {len(skips)} finer maps of the tower; raise "
                "model.finest_skip, or give more up_widths"
            )
        for number, out in enumerate(self.stages):
            skip = skips[number] if number < len(skips) else None
            setattr(self, f"up_{number}", UpStage(width, out, config, skip=skip, dtype=dtype))
            width = out
        self.last = layers.Conv3x3(width, width, dtype=dtype)
        # Predictions start near the mean of real heatmaps: almost every pixel of a label is 0.
        self.out = layers.Conv3x3(width, 1, gain=0.1, fill=math.log(config.prior / (1.0 - config.prior)), dtype=dtype)
        self.config, self.image_size, self.execution = config, image_size, execution

    def _first(self, conv, norm, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        x = conv(x)
        return norm(jax.nn.relu(x)) if self.config.relu_before_norm else jax.nn.relu(norm(x))

    def __call__(
        self, x: Float[Array, "b h w d"], key: layers.Key = None, skips: tuple[Array, ...] = ()
    ) -> Float[Array, "b s s"]:
        """Logits of the heatmap, float32 [B,S,S] with S the image side; sigmoid gives [0,1]."""
        return self.enlarged(self.small(x, key, skips))

    def small(
        self, x: Float[Array, "b h w d"], key: layers.Key = None, skips: tuple[Array, ...] = ()
    ) -> Float[Array, "b r r"]:
        """Logits of the heatmap at the side of the last stage, float32; `skips` are a tower's maps, coarsest first."""
        x = layers.dropout(x, self.config.dropout, key)
        for number in range(len(self.config.conv_widths)):
            conv, norm = getattr(self, f"conv_{number}"), getattr(self, f"norm_{number}")
            x = remat_block(self.execution, functools.partial(self._first, conv, norm))(x)
        for number in range(len(self.stages)):
            skip = skips[number : number + 1]
            x = remat_block(self.execution, getattr(self, f"up_{number}"))(x, *skip)
        x = remat_block(self.execution, lambda x: self.out(jax.nn.relu(self.last(x))))(x)
        return x[..., 0].astype(jnp.float32)

    def enlarged(self, x: Float[Array, "b r r"]) -> Float[Array, "b s s"]:
        """Logits at the side of the image, interpolated bilinearly."""
        if x.shape[1] != self.image_size:
            x = jax.image.resize(x, (x.shape[0], self.image_size, self.image_size), "bilinear")
        return x


class ScoreHead(nnx.Module):
    """Token grid → one score: convolutions (norm, ReLU), flatten, dense layers (ReLU), one logit."""

    def __init__(
        self,
        inputs: int,
        grid: int,
        config: ScoreHeadConfig,
        *,
        beside: int = 0,
        dtype: jnp.dtype,
        execution: Execution = Execution(),
    ):
        """`beside` is the number of further features of an image that the dense layers see."""
        width = inputs
        for number, out in enumerate(config.conv_widths):
            conv = layers.Conv3x3(width, out, size=config.kernel_size, padding=config.padding, dtype=dtype)
            setattr(self, f"conv_{number}", conv)
            setattr(self, f"norm_{number}", layers.channel_norm(config.norm, out, dtype))
            width = out
        if config.padding == "VALID":
            grid -= (config.kernel_size - 1) * len(config.conv_widths)
            if grid < 1:
                raise ConfigError("score head: the token grid is too small for VALID padding; use SAME")
        if config.pool:
            if grid % config.pool:
                raise ConfigError(f"score head: pool {config.pool} does not divide the grid of {grid}")
            grid = config.pool
        width = width * grid * grid + beside
        for number, out in enumerate(config.dense_widths):
            std = (2.0 / width) ** 0.5
            dense = layers.Linear(width, out, bias=True, std=std, dtype=dtype)
            setattr(self, f"dense_{number}", dense)
            width = out
        self.out = layers.Linear(width, 1, bias=True, std=0.1 * width**-0.5, dtype=jnp.dtype("float32"))
        self.config, self.execution = config, execution

    def __call__(
        self, x: Float[Array, "b h w d"], key: layers.Key = None, beside: Float[Array, "b n"] | None = None
    ) -> Float[Array, " b"]:
        """Logit of the score, float32 [B]; sigmoid gives [0,1]."""
        x = layers.dropout(x, self.config.dropout, layers.subkey(key, 0))
        for number in range(len(self.config.conv_widths)):
            conv, norm = getattr(self, f"conv_{number}"), getattr(self, f"norm_{number}")
            x = remat_block(self.execution, lambda x, c=conv, n=norm: jax.nn.relu(n(c(x))))(x)
        b, side, _, c = x.shape
        if self.config.pool:
            pool = self.config.pool
            x = x.reshape(b, pool, side // pool, pool, side // pool, c).mean((2, 4))
        x = x.reshape(b, -1)
        if beside is not None:
            x = jnp.concatenate([x, beside.astype(x.dtype)], -1)
        for number in range(len(self.config.dense_widths)):
            x = jax.nn.relu(getattr(self, f"dense_{number}")(x))
            x = layers.dropout(x, self.config.dropout, layers.subkey(key, 1 + number))
        return self.out(x.astype(jnp.float32))[:, 0]
