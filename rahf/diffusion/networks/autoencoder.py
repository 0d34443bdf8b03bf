"""Pictures to latents and back: the autoencoder of Stable Diffusion, and a tiny one in the layout of TAESD."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import AutoencoderKLConfig, AutoencoderTinyConfig
from rahf.diffusion.networks import latent_blocks as blocks
from rahf.diffusion.networks.blocks import GroupNorm
from rahf.nn import layers

_EPS = 1e-6  # of all norms here; the U-Net's residual blocks have 1e-5


class LatentDistribution(NamedTuple):
    """A Gaussian over the latents of each picture: `mean` and `std`, float32 [B,h,w,4], not yet scaled."""

    mean: Float[Array, "b h w c"]
    std: Float[Array, "b h w c"]


class _Level(nnx.Module):
    """Residual blocks, then a change of the side."""

    def __init__(self, inputs: int, outputs: int, count: int, groups: int, change: str, *, dtype: jnp.dtype):
        widths = [inputs, *[outputs] * (count - 1)]
        self.resnets = layers.Numbered(
            [blocks.ResnetBlock2D(width, outputs, 0, groups, eps=_EPS, dtype=dtype) for width in widths]
        )
        if change == "down":  # `diffusers` pads at the end only
            padding = ((0, 1), (0, 1))
            self.downsamplers = layers.Numbered([blocks.Downsample2D(outputs, padding=padding, dtype=dtype)])
        if change == "up":
            self.upsamplers = layers.Numbered([blocks.Upsample2D(outputs, dtype=dtype)])
        self.change = change

    def __call__(self, x: Array) -> Array:
        for resnet in self.resnets:
            x = resnet(x)
        if self.change == "down":
            return self.downsamplers[0](x)
        return self.upsamplers[0](x) if self.change == "up" else x


class _Middle(nnx.Module):
    def __init__(self, width: int, groups: int, attends: bool, *, dtype: jnp.dtype):
        resnet = lambda: blocks.ResnetBlock2D(width, width, 0, groups, eps=_EPS, dtype=dtype)  # noqa: E731
        self.resnets = layers.Numbered([resnet(), resnet()])
        if attends:
            self.attentions = layers.Numbered([blocks.GroupNormAttention(width, groups, dtype=dtype)])
        self.attends = attends

    def __call__(self, x: Array) -> Array:
        x = self.resnets[0](x)
        return self.resnets[1](self.attentions[0](x) if self.attends else x)


class Encoder(nnx.Module):
    """Pictures → mean and logarithm of the variance of latents, before `quant_conv`."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: jnp.dtype):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = layers.Conv3x3(config.in_channels, widths[0], dtype=dtype)
        self.down_blocks = layers.Numbered(
            _Level(
                widths[max(level - 1, 0)],
                width,
                config.layers_per_block,
                groups,
                "down" if level + 1 < len(widths) else "",
                dtype=dtype,
            )
            for level, width in enumerate(widths)
        )
        self.mid_block = _Middle(widths[-1], groups, config.mid_block_add_attention, dtype=dtype)
        self.conv_norm_out = GroupNorm(widths[-1], groups, eps=_EPS, dtype=dtype)
        self.conv_out = layers.Conv3x3(widths[-1], 2 * config.latent_channels, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents → pictures, after `post_quant_conv`."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: jnp.dtype):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = layers.Conv3x3(config.latent_channels, widths[0], dtype=dtype)
        self.mid_block = _Middle(widths[0], groups, config.mid_block_add_attention, dtype=dtype)
        self.up_blocks = layers.Numbered(
            _Level(
                widths[max(level - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                "up" if level + 1 < len(widths) else "",
                dtype=dtype,
            )
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups, eps=_EPS, dtype=dtype)
        self.conv_out = layers.Conv3x3(widths[-1], config.out_channels, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Stable Diffusion's autoencoder; latents are 1/8 of the picture's side with four levels."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: jnp.dtype):
        self.config, latent = config, config.latent_channels
        self.encoder, self.decoder = Encoder(config, dtype=dtype), Decoder(config, dtype=dtype)
        if config.use_quant_conv:
            self.quant_conv = blocks.dense(2 * latent, 2 * latent, dtype=dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = blocks.dense(latent, latent, dtype=dtype)

    def encode(self, pictures: Float[Array, "b h w 3"]) -> LatentDistribution:
        """Pictures in [-1,1] → the distribution of their latents."""
        x = self.encoder(pictures)
        x = (self.quant_conv(x) if self.config.use_quant_conv else x).astype(jnp.float32)
        mean, log_variance = jnp.split(x, 2, -1)
        return LatentDistribution(mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0)))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """Unscaled latents → pictures, float32, about [-1,1] and not clipped."""
        x = self.post_quant_conv(latents) if self.config.use_post_quant_conv else latents
        return self.decoder(x).astype(jnp.float32)


class _TinyBlock(nnx.Module):
    """Three 3x3 convolutions with ReLU, residual; odd numbers of `conv` are the activations."""

    def __init__(self, width: int, *, dtype: jnp.dtype):
        conv = lambda: layers.Conv3x3(width, width, dtype=dtype)  # noqa: E731
        self.conv = layers.Numbered([conv(), None, conv(), None, conv()])

    def __call__(self, x: Array) -> Array:
        y = jax.nn.relu(self.conv[2](jax.nn.relu(self.conv[0](x))))
        return jax.nn.relu(self.conv[4](y) + x)


class _TinyEncoder(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, *, dtype: jnp.dtype):
        steps, inputs = [], config.in_channels
        for level, (width, count) in enumerate(zip(config.encoder_block_out_channels, config.num_encoder_blocks)):
            options = dict(stride=2, padding=blocks.AROUND, bias=False) if level else {}
            steps += [layers.Conv3x3(width if level else inputs, width, dtype=dtype, **options)]
            steps += [_TinyBlock(width, dtype=dtype) for _ in range(count)]
        width = config.encoder_block_out_channels[-1]
        self.layers = layers.Numbered([*steps, layers.Conv3x3(width, config.latent_channels, dtype=dtype)])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class _TinyDecoder(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, *, dtype: jnp.dtype):
        widths, counts = config.decoder_block_out_channels, config.num_decoder_blocks
        steps: list = [layers.Conv3x3(config.latent_channels, widths[0], dtype=dtype), None]
        plan = ["conv", "relu"]
        for level, (width, count) in enumerate(zip(widths, counts)):
            last = level + 1 == len(widths)
            steps += [_TinyBlock(width, dtype=dtype) for _ in range(count)]
            plan += ["block"] * count
            if not last:
                steps.append(None)
                plan.append("double")
            steps.append(layers.Conv3x3(width, config.out_channels if last else width, bias=last, dtype=dtype))
            plan.append("conv")
        self.layers, self.plan = layers.Numbered(steps), tuple(plan)

    def __call__(self, x: Array) -> Array:
        for number, kind in enumerate(self.plan):
            if kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "double":
                x = blocks.doubled(x)
            else:
                x = self.layers[number](x)
        return x


class AutoencoderTiny(nnx.Module):
    """The tiny autoencoder; its latents stand for those of the large one."""

    def __init__(self, config: AutoencoderTinyConfig, *, dtype: jnp.dtype):
        self.config = config
        self.encoder, self.decoder = _TinyEncoder(config, dtype=dtype), _TinyDecoder(config, dtype=dtype)

    def encode(self, pictures: Float[Array, "b h w 3"]) -> LatentDistribution:
        """Pictures in [-1,1] → latents, without any spread."""
        mean = self.encoder((pictures + 1) / 2).astype(jnp.float32)
        return LatentDistribution(mean, jnp.zeros_like(mean))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """Unscaled latents → pictures, float32, about [-1,1] and not clipped."""
        return 2 * self.decoder(jnp.tanh(latents / 3) * 3).astype(jnp.float32) - 1
