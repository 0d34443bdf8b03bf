"""The denoiser of earlier versions: a U-Net over pixels that reads the prompt (after Rombach et al. 2022, and small).

Squares of `patch` pixels may be the cells that it works on (Hoogeboom et al. 2023, "simple diffusion").
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.config import PixelDiffusionConfig
from rahf.core.errors import ConfigError
from rahf.diffusion import schedules
from rahf.diffusion.networks.blocks import GroupNorm, ResidualBlock, TextAttention, time_features
from rahf.diffusion.networks.patches import cells, pixels
from rahf.nn import layers, t5
from rahf.nn.execution import execution_of


class Prompt(NamedTuple):
    """An encoded prompt: its words (the first is the same for all prompts), and the mask of those that count."""

    words: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]


class TextToImage(nnx.Module):
    """Noisy picture, timestep and prompt → v, the noise or the clean picture, by `config.prediction_type`.

    The prompt goes through a T5 encoder (`config.t5`). A learned word precedes its words, for the empty prompt, too:
    a mask without words is the unconditional input of classifier-free guidance.
    """

    def __init__(self, config: PixelDiffusionConfig):
        dtype = jnp.dtype(config.compute_dtype)
        _check(config)
        text, condition = config.t5.width, 4 * config.block_out_channels[0]
        self.config, self.dtype, self.levels = config, dtype, len(config.block_out_channels)
        self.embedding = layers.parameter(config.t5.vocab_size, text, std=1.0)
        self.nothing = layers.parameter(1, 1, text, std=1.0)
        execution = execution_of(config)
        self.encoder = t5.Encoder(config.t5, dtype=dtype, execution=execution)
        linear = lambda i, o: layers.Linear(i, o, bias=True, std=i**-0.5, dtype=dtype)  # noqa: E731
        self.time1, self.time2, self.pooled = (
            linear(config.block_out_channels[0], condition),
            linear(condition, condition),
            linear(text, condition),
        )
        block = lambda i, o: ResidualBlock(i, o, condition, config.norm_num_groups, dtype=dtype)  # noqa: E731
        attention = lambda width: TextAttention(  # noqa: E731
            width,
            text,
            config.num_attention_heads,
            config.norm_num_groups,
            dtype=dtype,
            implementation=config.attention,
        )
        self.first = layers.Conv3x3(3 * config.patch_size**2, config.block_out_channels[0], dtype=dtype)
        width, skips = config.block_out_channels[0], [config.block_out_channels[0]]
        for level, outputs in enumerate(config.block_out_channels):
            for number in range(config.layers_per_block):
                setattr(self, f"down_{level}_{number}", block(width, outputs))
                width = outputs
                if level >= config.attention_from:
                    setattr(self, f"down_attention_{level}_{number}", attention(width))
                skips.append(width)
            if level + 1 < self.levels:
                setattr(self, f"shrink_{level}", linear(4 * width, width))
                skips.append(width)
        self.middle1, self.middle_attention, self.middle2 = block(width, width), attention(width), block(width, width)
        for level, outputs in reversed(list(enumerate(config.block_out_channels))):
            for number in range(config.layers_per_block + 1):
                setattr(self, f"up_{level}_{number}", block(width + skips.pop(), outputs))
                width = outputs
                if level >= config.attention_from:
                    setattr(self, f"up_attention_{level}_{number}", attention(width))
            if level:
                setattr(self, f"grow_{level}", linear(width, 4 * config.block_out_channels[level - 1]))
                width = config.block_out_channels[level - 1]
        self.last_norm = GroupNorm(width, config.norm_num_groups, dtype=dtype)
        self.last = layers.Conv3x3(width, 3 * config.patch_size**2, dtype=jnp.dtype("float32"), gain=0.0)

    def encode(self, text_ids: Int[Array, "b l"], text_mask: Bool[Array, "b l"]) -> Prompt:
        """Encodes prompts, once for all steps of a sampler."""
        b = text_ids.shape[0]
        x = self.embedding[...][text_ids].astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(self.nothing[...], (b, 1, x.shape[-1])).astype(self.dtype), x], 1)
        mask = jnp.concatenate([jnp.ones((b, 1), bool), text_mask], 1)
        return Prompt(self.encoder(x, mask), mask)

    def __call__(self, z: Float[Array, "b h w 3"], t: Int[Array, " b"], prompt: Prompt) -> Float[Array, "b h w 3"]:
        """The prediction that the network was trained for, float32, of noisy pictures (clean ones are in [-1,1])."""
        config, (words, mask) = self.config, prompt
        weights = mask.astype(jnp.float32)[..., None]
        pooled = (words.astype(jnp.float32) * weights).sum(1) / weights.sum(1)
        times = time_features(t.astype(jnp.float32) / config.num_train_timesteps, config.block_out_channels[0])
        condition = self.time2(jax.nn.silu(self.time1(times))) + self.pooled(pooled)
        x = self.first(cells(z, config.patch_size))
        skips = [x]
        for level in range(self.levels):
            for number in range(config.layers_per_block):
                x = self._block("down", level, number, x, condition, prompt)
                skips.append(x)
            if level + 1 < self.levels:
                x = getattr(self, f"shrink_{level}")(cells(x, 2))
                skips.append(x)
        x = self.middle2(self.middle_attention(self.middle1(x, condition), words, mask), condition)
        for level in reversed(range(self.levels)):
            for number in range(config.layers_per_block + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = self._block("up", level, number, x, condition, prompt)
            if level:
                x = pixels(getattr(self, f"grow_{level}")(x), 2)
        return pixels(self.last(jax.nn.silu(self.last_norm(x))), config.patch_size)

    def _block(self, way: str, level: int, number: int, x: Array, condition: Array, prompt: Prompt) -> Array:
        x = getattr(self, f"{way}_{level}_{number}")(x, condition)
        if level < self.config.attention_from:
            return x
        return getattr(self, f"{way}_attention_{level}_{number}")(x, *prompt)


def alphas_cumprod(config: PixelDiffusionConfig) -> Float[np.ndarray, " t"]:
    """``abar`` of each timestep that the configured network is trained with.

    A millionth of abar is always signal: without any, the noise does not tell the picture (`rahf.diffusion.schedules`).
    """
    return 1e-6 + (1 - 1e-6) * schedules.alphas_cumprod(config.beta_schedule, config.num_train_timesteps)


def _check(config: PixelDiffusionConfig) -> None:
    if config.patch_size < 1:
        raise ConfigError(f"model.patch_size: expected at least 1, found {config.patch_size}")
    levels = len(config.block_out_channels)
    coarsest = config.patch_size * 2 ** (levels - 1)
    if config.image_size % coarsest:
        raise ConfigError(
            f"model.image_size {config.image_size}: expected a multiple of {coarsest}, because model.patch_size is "
            f"{config.patch_size} and model.block_out_channels has {levels} levels; each but the first halves the side"
        )
    for width in config.block_out_channels[config.attention_from :]:
        if width % config.num_attention_heads:
            raise ConfigError(
                f"model.block_out_channels: {width} cannot be shared by model.num_attention_heads "
                f"{config.num_attention_heads}"
            )
    if config.block_out_channels[0] % 2:
        raise ConfigError(f"model.block_out_channels: the first must be even, found {config.block_out_channels[0]}")
