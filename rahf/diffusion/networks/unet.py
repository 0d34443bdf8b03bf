"""The U-Net of Stable Diffusion 1.x, 2.x, inpainting and XL (Rombach et al. 2022; Podell et al. 2023)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import UNetConfig
from rahf.core.errors import ConfigError
from rahf.diffusion.networks import latent_blocks as blocks
from rahf.diffusion.networks.blocks import GroupNorm
from rahf.nn import layers


class Conditions(NamedTuple):
    """What a U-Net is conditioned on besides the timestep.

    Attributes:
      text: [B,L,D], hidden states of the text towers.
      pooled: [B,P], pooled text of XL's second tower; None elsewhere.
      time_ids: float [B,6], XL's sizes in pixels: original height and width, top and left of the crop, target height
        and width; None elsewhere.
    """

    text: Float[Array, "b l d"]
    pooled: Float[Array, "b p"] | None = None
    time_ids: Float[Array, "b 6"] | None = None


class Residuals(NamedTuple):
    """What a ControlNet adds inside a U-Net.

    Attributes:
      down: of each skip connection of the way down, in its order: [B,h,w,c] of the skip's size.
      mid: [B,h,w,c], of the middle block's output.
    """

    down: tuple[Array, ...]
    mid: Array

    def scaled(self, scale: Any) -> Residuals:
        """All of them times a number, or times float [B,1,1,1]; their dtype stays."""
        return Residuals(*jax.tree.map(lambda x: (scale * x).astype(x.dtype), tuple(self)))


class Observer:
    """Sees what a U-Net computes in one call, and may change its attention to the text.

    A subclass overrides what it needs; arrays that it keeps belong to the trace of that call. The way of attention is
    computed without a fused kernel while `attends` is True.
    """

    attends = False

    def up(self, level: int, number: int, features: Float[Array, "b h w c"]) -> None:
        """Output of residual block `number` of a level on the way up; level 0 is the largest."""

    def attention(self, place: str, grid: tuple[int, int], probabilities: Float[Array, "b n q k"]) -> Array:
        """The probabilities to use instead of those of one attention to the text, float32 [B,heads,queries,tokens].

        Args:
          place: "down", "mid" or "up".
          grid: rows and columns of the queries.
          probabilities: over tokens, sum 1.
        """
        return probabilities


def _reweight(observer: Observer | None, place: str) -> blocks.GridReweight | None:
    if observer is None or not observer.attends:
        return None
    return functools.partial(observer.attention, place)


class DownBlock(nnx.Module):
    """Residual blocks, each perhaps with a transformer; then the side is halved."""

    def __init__(self, build: Builder, level: int, inputs: int, last: bool):
        config, outputs = build.config, build.config.block_out_channels[level]
        widths = [inputs, *[outputs] * (config.layers_per_block - 1)]
        self.resnets = layers.Numbered([build.resnet(width, outputs) for width in widths])
        if config.cross_attention[level]:
            self.attentions = layers.Numbered([build.transformer(level) for _ in widths])
        if not last:
            self.downsamplers = layers.Numbered([blocks.Downsample2D(outputs, dtype=build.dtype)])
        self.attends, self.last = config.cross_attention[level], last

    def __call__(
        self, x: Array, temb: Array, text: Array, observer: Observer | None = None
    ) -> tuple[Array, list[Array]]:
        skips = []
        for number, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attends:
                x = self.attentions[number](x, text, _reweight(observer, "down"))
            skips.append(x)
        if not self.last:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MiddleBlock(nnx.Module):
    """A residual block, a transformer, a residual block."""

    def __init__(self, build: Builder):
        width = build.config.block_out_channels[-1]
        self.resnets = layers.Numbered([build.resnet(width, width) for _ in range(2)])
        self.attentions = layers.Numbered([build.transformer(len(build.config.block_out_channels) - 1)])

    def __call__(self, x: Array, temb: Array, text: Array, observer: Observer | None = None) -> Array:
        x = self.attentions[0](self.resnets[0](x, temb), text, _reweight(observer, "mid"))
        return self.resnets[1](x, temb)


class UpBlock(nnx.Module):
    """Residual blocks over x and what the way down kept, each perhaps with a transformer; then the side is doubled."""

    def __init__(self, build: Builder, level: int, inputs: int, skips: list[int]):
        config, outputs = build.config, build.config.block_out_channels[level]
        widths = [inputs, *[outputs] * config.layers_per_block]
        self.resnets = layers.Numbered([build.resnet(width + skips.pop(), outputs) for width in widths])
        if config.cross_attention[level]:
            self.attentions = layers.Numbered([build.transformer(level) for _ in widths])
        if level:
            self.upsamplers = layers.Numbered([blocks.Upsample2D(outputs, dtype=build.dtype)])
        self.attends, self.level = config.cross_attention[level], level

    def __call__(
        self, x: Array, temb: Array, text: Array, skips: list[Array], observer: Observer | None = None
    ) -> Array:
        for number, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], -1), temb)
            if observer is not None:
                observer.up(self.level, number, x)
            if self.attends:
                x = self.attentions[number](x, text, _reweight(observer, "up"))
        return x if self.level == 0 else self.upsamplers[0](x, skips[-1].shape[1:3])


class Builder(NamedTuple):
    """Builds the blocks of one network."""

    config: UNetConfig
    dtype: jnp.dtype
    implementation: str

    def way_down(self, network: nnx.Module) -> None:
        """Gives a network all up to the middle block: the U-Net and its ControlNet have the same."""
        config, dtype, widths = self.config, self.dtype, self.config.block_out_channels
        temb_channels, levels, downs, before = 4 * widths[0], len(widths), [], widths[0]
        network.conv_in = layers.Conv3x3(config.in_channels, widths[0], dtype=dtype)
        network.time_embedding = blocks.TimestepEmbedding(widths[0], temb_channels, dtype=dtype)
        if config.addition_time_embed_dim:
            inputs = config.projection_class_embeddings_input_dim
            network.add_embedding = blocks.TimestepEmbedding(inputs, temb_channels, dtype=dtype)
        for level, width in enumerate(widths):
            downs.append(DownBlock(self, level, before, level + 1 == levels))
            before = width
        network.down_blocks, network.mid_block = layers.Numbered(downs), MiddleBlock(self)

    def skip_widths(self) -> list[int]:
        """Channels of the skip connections, in the order of the way down."""
        config, widths = self.config, self.config.block_out_channels
        skips = [widths[0]]
        for level, width in enumerate(widths):
            skips += [width] * (config.layers_per_block + (level + 1 < len(widths)))
        return skips

    def resnet(self, inputs: int, outputs: int) -> blocks.ResnetBlock2D:
        config = self.config
        temb_channels = 4 * config.block_out_channels[0]
        return blocks.ResnetBlock2D(
            inputs, outputs, temb_channels, config.norm_num_groups, eps=config.norm_eps, dtype=self.dtype
        )

    def transformer(self, level: int) -> blocks.Transformer2DModel:
        config = self.config
        return blocks.Transformer2DModel(
            config.block_out_channels[level],
            config.num_attention_heads[level],
            config.cross_attention_dim,
            config.transformer_layers_per_block[level],
            config.norm_num_groups,
            dtype=self.dtype,
            implementation=self.implementation,
        )


class UNet2DConditionModel(nnx.Module):
    """Noisy latents, timestep and conditions → what `SchedulerConfig.prediction_type` names."""

    def __init__(self, config: UNetConfig, *, dtype: jnp.dtype, attention: str = "auto"):
        """Builds the network.

        Raises:
          ConfigError: fields that do not fit each other; names them.
        """
        check(config)
        build, widths = Builder(config, dtype, attention), config.block_out_channels
        levels = len(widths)
        self.config, self.dtype = config, dtype
        build.way_down(self)
        skips, before = build.skip_widths(), widths[-1]
        ups = []
        for level in reversed(range(levels)):
            ups.append(UpBlock(build, level, before, skips))
            before = widths[level]
        self.up_blocks = layers.Numbered(ups)
        self.conv_norm_out = GroupNorm(before, config.norm_num_groups, eps=config.norm_eps, dtype=dtype)
        self.conv_out = layers.Conv3x3(before, config.out_channels, dtype=dtype)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Array,
        conditions: Conditions,
        residuals: Residuals | None = None,
        observer: Observer | None = None,
    ) -> Float[Array, "b h w o"]:
        """The prediction, float32 [B,h,w,4].

        Args:
          latents: [B,h,w,in_channels], scaled as the scheduler demands.
          timesteps: [B], whole or fractional.
          conditions: of the prompts.
          residuals: of a ControlNet, to be added to the skip connections and to the middle block's output.
          observer: sees the blocks' outputs and the attention to the text.
        """
        temb = time_embedding(self, timesteps, conditions)
        text = conditions.text.astype(self.dtype)
        x, skips = way_down(self, self.conv_in(latents), temb, text, observer)
        x = self.mid_block(x, temb, text, observer)
        if residuals is not None:
            skips = [skip + added for skip, added in zip(skips, residuals.down, strict=True)]
            x = x + residuals.mid
        for block in self.up_blocks:
            x = block(x, temb, text, skips, observer)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(jnp.float32)


def time_embedding(network: Any, timesteps: Array, conditions: Conditions) -> Float[Array, "b d"]:
    """The embedding of the timestep, with XL's of sizes and pooled text, by a U-Net or a ControlNet."""
    config = network.config
    options = config.flip_sin_to_cos, config.freq_shift
    temb = network.time_embedding(blocks.timestep_features(timesteps, config.block_out_channels[0], *options))
    if not config.addition_time_embed_dim:
        return temb
    time_ids = conditions.time_ids
    features = blocks.timestep_features(time_ids.reshape(-1), config.addition_time_embed_dim, *options)
    features = features.reshape(len(time_ids), -1)
    return temb + network.add_embedding(jnp.concatenate([conditions.pooled.astype(features.dtype), features], -1))


def way_down(
    network: Any, x: Array, temb: Array, text: Array, observer: Observer | None = None
) -> tuple[Array, list[Array]]:
    """Output of the last block on the way down, and what the skip connections carry, x first."""
    skips = [x]
    for block in network.down_blocks:
        x, of_block = block(x, temb, text, observer)
        skips += of_block
    return x, skips


def check(config: UNetConfig) -> None:
    """Raises ConfigError for fields that do not fit each other; names them."""
    levels = len(config.block_out_channels)
    for name in ("cross_attention", "transformer_layers_per_block", "num_attention_heads"):
        if len(getattr(config, name)) != levels:
            raise ConfigError(
                f"unet.{name}: expected {levels} values, one per level of block_out_channels, found "
                f"{getattr(config, name)}"
            )
    for level, (width, heads) in enumerate(zip(config.block_out_channels, config.num_attention_heads)):
        if width % config.norm_num_groups:
            raise ConfigError(
                f"unet.block_out_channels: {width} cannot be divided into norm_num_groups {config.norm_num_groups}"
            )
        if (config.cross_attention[level] or level + 1 == levels) and width % heads:
            raise ConfigError(f"unet.block_out_channels: {width} cannot be shared by num_attention_heads {heads}")
