"""The motion model: an autoencoder of frequency slices, and a denoiser of their latents that joins the frequencies.

Blocks are those of Stable Diffusion (`rahf.diffusion.networks`). The photograph, reduced to the latents' size, is
concatenated to the noisy latents; timestep and frequency are embedded and added (Li et al. 2024, section 4.2). Layers
of the third stage stand apart (`frequency`), so that everything else can be frozen by name. Their last projection
starts at zero: the network of stage 3 at its start is that of stage 2, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from rahf.config.motion import MotionConfig
from rahf.core.errors import ConfigError
from rahf.diffusion.networks import latent_blocks as blocks
from rahf.diffusion.networks.autoencoder import AutoencoderKL, LatentDistribution
from rahf.diffusion.networks.blocks import GroupNorm
from rahf.nn import layers
from rahf.nn.attention import attention

#: Applied after each level of the denoiser: (number of the place, features) → features.
Between = Callable[[int, Array], Array]


class FrequencyAttention(nnx.Module):
    """Every position attends to itself in all frequencies; residual, starts as the identity."""

    def __init__(self, width: int, heads: int, groups: int, *, dtype: jnp.dtype):
        self.norm = GroupNorm(width, groups, eps=1e-6, dtype=dtype)
        self.to_q = blocks.dense(width, width, bias=False, dtype=dtype)
        self.to_k = blocks.dense(width, width, bias=False, dtype=dtype)
        self.to_v = blocks.dense(width, width, bias=False, dtype=dtype)
        self.to_out = layers.Linear(width, width, bias=True, std=0.0, dtype=dtype)
        self.heads = heads

    def __call__(self, x: Float[Array, "bk h w c"], terms: int) -> Float[Array, "bk h w c"]:
        n, h, w, c = x.shape
        y = self.norm(x).reshape(n // terms, terms, h * w, c).swapaxes(1, 2).reshape(-1, terms, c)
        split = lambda a: a.reshape(*a.shape[:-1], self.heads, c // self.heads)  # noqa: E731
        y = attention(split(self.to_q(y)), split(self.to_k(y)), split(self.to_v(y)), implementation="xla")
        y = self.to_out(y.reshape(-1, terms, c))
        return x + y.reshape(n // terms, h * w, terms, c).swapaxes(1, 2).reshape(x.shape)


class MotionUNet(nnx.Module):
    """Noisy latents of one frequency (or, as channels, of all) → the noise in them."""

    def __init__(self, config: MotionConfig, channels: int, *, dtype: jnp.dtype):
        widths, groups, count = config.block_out_channels, config.norm_num_groups, config.layers_per_block
        temb = 4 * widths[0]
        resnet = lambda i, o: blocks.ResnetBlock2D(i, o, temb, groups, dtype=dtype)  # noqa: E731
        self.width = widths[0]
        self.conv_in = layers.Conv3x3(channels + 3, widths[0], dtype=dtype)
        self.time_embedding = blocks.TimestepEmbedding(widths[0], temb, dtype=dtype)
        self.frequency_embedding = blocks.TimestepEmbedding(widths[0], temb, dtype=dtype)
        self.down_blocks = layers.Numbered(
            layers.Numbered(resnet(widths[max(level - (number == 0), 0)], width) for number in range(count))
            for level, width in enumerate(widths)
        )
        self.downsamplers = layers.Numbered(blocks.Downsample2D(width, dtype=dtype) for width in widths[:-1])
        self.mid_blocks = layers.Numbered([resnet(widths[-1], widths[-1]) for _ in range(2)])
        self.mid_attention = blocks.GroupNormAttention(widths[-1], groups, dtype=dtype)
        skips = [widths[0]]
        for level, width in enumerate(widths):
            skips += [width] * count + [width] * (level + 1 < len(widths))
        ups, before = [], widths[-1]
        for width in reversed(widths):
            inputs = [before, *[width] * count]
            ups.append(layers.Numbered([resnet(i + skips.pop(), width) for i in inputs]))
            before = width
        self.up_blocks = layers.Numbered(ups)
        self.upsamplers = layers.Numbered(blocks.Upsample2D(width, dtype=dtype) for width in reversed(widths[1:]))
        self.conv_norm_out = GroupNorm(widths[0], groups, dtype=dtype)
        self.conv_out = layers.Conv3x3(widths[0], channels, dtype=dtype)

    def __call__(
        self,
        latents: Float[Array, "n h w c"],
        timesteps: Int[Array, " n"],
        frequencies: Int[Array, " n"],
        photographs: Float[Array, "n h w 3"],
        between: Between = lambda place, x: x,
    ) -> Float[Array, "n h w c"]:
        """The noise, float32; `photographs` in [-1,1], 0 where left out, `frequencies` the numbers of the terms."""
        temb = self.time_embedding(blocks.timestep_features(timesteps, self.width))
        temb = temb + self.frequency_embedding(blocks.timestep_features(frequencies, self.width))
        x = self.conv_in(jnp.concatenate([latents, photographs.astype(latents.dtype)], -1))
        skips, place = [x], 0
        for level, resnets in enumerate(self.down_blocks):
            for resnet in resnets:
                x = resnet(x, temb)
                skips.append(x)
            x, place = between(place, x), place + 1
            if level in self.downsamplers.numbers:
                x = self.downsamplers[level](x)
                skips.append(x)
        x = self.mid_blocks[1](self.mid_attention(self.mid_blocks[0](x, temb)), temb)
        x, place = between(place, x), place + 1
        for number, resnets in enumerate(self.up_blocks):
            for resnet in resnets:
                x = resnet(jnp.concatenate([x, skips.pop()], -1), temb)
            x, place = between(place, x), place + 1
            if number in self.upsamplers.numbers:
                x = self.upsamplers[number](x, skips[-1].shape[1:3])
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(jnp.float32)


class MotionModel(nnx.Module):
    """Autoencoder, denoiser and frequency attention; latents are scaled to a standard deviation of about 1."""

    def __init__(self, config: MotionConfig):
        """Builds.

        Raises:
          ConfigError: fields that do not fit each other; names them.
        """
        check(config)
        dtype, widths = jnp.dtype(config.compute_dtype), config.block_out_channels
        self.config, self.volume = config, config.prediction == "volume"
        self.vae = AutoencoderKL(config.vae, dtype=dtype)
        self.latent_scale = layers.parameter(1, fill=1.0)
        channels = config.vae.latent_channels * (config.terms if self.volume else 1)
        self.unet = MotionUNet(config, channels, dtype=dtype)
        if not self.volume:
            places = [*widths, widths[-1], *reversed(widths)]
            self.frequency = layers.Numbered(
                FrequencyAttention(width, config.num_attention_heads, config.norm_num_groups, dtype=dtype)
                for width in places
            )

    def encode(self, normalised: Float[Array, "n h w 4"]) -> LatentDistribution:
        """Normalised frequency slices → the distribution of their latents, not scaled."""
        return self.vae.encode(normalised)

    def decode(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 4"]:
        """Scaled latents → normalised frequency slices."""
        return self.vae.decode(latents / self.latent_scale[...])

    def condition(self, images: UInt8[Array, "b h w 3"], kept: Array | None = None) -> Float[Array, "b h2 w2 3"]:
        """Photographs at the size of the latents, in [-1,1]; zeros where `kept` (bool [B]) is False."""
        factor = 2 ** (len(self.config.vae.block_out_channels) - 1)
        size = -(-images.shape[1] // factor), -(-images.shape[2] // factor)
        pictures = images.astype(jnp.float32) / 127.5 - 1
        pictures = jax.image.resize(pictures, (images.shape[0], *size, 3), "linear")
        return pictures if kept is None else jnp.where(kept[:, None, None, None], pictures, 0.0)

    def denoise_slice(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Int[Array, " b"],
        frequencies: Int[Array, " b"],
        photographs: Float[Array, "b h w 3"],
    ) -> Float[Array, "b h w c"]:
        """The noise in one frequency of each clip: stage 2, without attention across frequencies."""
        return self.unet(latents, timesteps, frequencies, photographs)

    def denoise(
        self,
        latents: Float[Array, "b k h w c"],
        timesteps: Int[Array, " b"],
        photographs: Float[Array, "b h w 3"],
        joint: bool = True,
    ) -> Float[Array, "b k h w c"]:
        """The noise in all frequencies of each clip.

        Args:
          latents: scaled and noisy.
          timesteps: of all frequencies of a clip.
          photographs: of `condition`.
          joint: False: without attention across frequencies, as stage 2; no choice where they are channels.
        """
        b, k, h, w, c = latents.shape
        if self.volume:
            channels = jnp.moveaxis(latents, 1, 3).reshape(b, h, w, k * c)
            noise = self.unet(channels, timesteps, jnp.zeros(b, jnp.int32), photographs)
            return jnp.moveaxis(noise.reshape(b, h, w, k, c), 3, 1)
        between = (lambda place, x: self.frequency[place](x, k)) if joint else (lambda place, x: x)
        frequencies = jnp.tile(jnp.arange(k, dtype=jnp.int32), b)
        repeat = lambda values: jnp.repeat(values, k, 0)  # noqa: E731
        noise = self.unet(latents.reshape(b * k, h, w, c), repeat(timesteps), frequencies, repeat(photographs), between)
        return noise.reshape(latents.shape)


def check(config: MotionConfig) -> None:
    """Raises ConfigError for fields that do not fit each other."""
    if (config.vae.in_channels, config.vae.out_channels) != (4, 4):
        raise ConfigError("model.vae: a frequency has 4 channels; expected in_channels and out_channels 4")
    for name, widths in (("block_out_channels", config.block_out_channels), ("vae", config.vae.block_out_channels)):
        groups = config.norm_num_groups if name != "vae" else config.vae.norm_num_groups
        if any(width % groups for width in widths):
            raise ConfigError(f"model.{name}: {widths} cannot be divided into norm_num_groups {groups}")
    if any(width % config.num_attention_heads for width in config.block_out_channels):
        raise ConfigError(
            f"model.block_out_channels: {config.block_out_channels} cannot be shared by num_attention_heads "
            f"{config.num_attention_heads}"
        )
    factor = 2 ** (len(config.vae.block_out_channels) - 1)
    if config.width % factor or config.height % factor:
        raise ConfigError(f"model: {config.width} x {config.height} cannot be divided by {factor}, the vae's reduction")
    if config.prediction == "volume" and config.stage == "frequency":
        raise ConfigError(
            'model.stage "frequency": with prediction "volume" frequencies are channels; stop at "diffusion"'
        )
