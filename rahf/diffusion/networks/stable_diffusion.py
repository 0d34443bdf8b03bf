"""All networks of a Stable Diffusion pipeline as one module, so that its parameters are one tree.

Parts are called as their folders in the layout of `diffusers`: `unet`, `vae`, `text_encoder`, `text_encoder_2`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import StableDiffusionConfig
from rahf.core.errors import ConfigError
from rahf.diffusion.networks import autoencoder, patches
from rahf.diffusion.networks.latent_blocks import dense
from rahf.diffusion.networks.unet import Conditions, Observer, Residuals, UNet2DConditionModel
from rahf.nn.clip_text import TextTower


class StableDiffusion(nnx.Module):
    """U-Net, autoencoder and text towers."""

    def __init__(self, config: StableDiffusionConfig):
        """Builds the networks.

        Raises:
          ConfigError: parts that do not fit each other; names them.
        """
        _check(config)
        dtype = jnp.dtype(config.compute_dtype)
        self.config = config
        self.unet = UNet2DConditionModel(config.unet, dtype=dtype, attention=config.attention)
        if config.patches is not None:
            self.vae = patches.Patches(config.patches)
        elif config.vae_tiny is not None:
            self.vae = autoencoder.AutoencoderTiny(config.vae_tiny, dtype=dtype)
        else:
            self.vae = autoencoder.AutoencoderKL(config.vae, dtype=dtype)
        self.text_encoder = TextTower(config.text_encoder, dtype=dtype)
        if config.text_encoder_2 is not None:
            self.text_encoder_2 = TextTower(config.text_encoder_2, dtype=dtype)
            self.text_projection = dense(
                config.text_encoder_2.width, config.text_projection_dim, bias=False, dtype=dtype
            )

    def encode_prompt(self, ids: Sequence[Array], time_ids: Float[Array, "b 6"] | None = None) -> Conditions:
        """What the U-Net reads of prompts.

        Args:
          ids: int32 [B,L] for each text tower, padded to its 77 tokens. Padding is read, too, as in `diffusers`.
          time_ids: XL's sizes, see `Conditions`.
        """
        states = self.text_encoder.states(ids[0])
        if self.config.text_encoder_2 is None:
            return Conditions(states.last.astype(jnp.float32))
        second = self.text_encoder_2.states(ids[1])
        text = jnp.concatenate([states.penultimate, second.penultimate], -1).astype(jnp.float32)
        pooled = self.text_projection(second.end).astype(jnp.float32)
        return Conditions(text, pooled, time_ids)

    def conditions(
        self, ids: Sequence[Array], negative_ids: Sequence[Array] | None, size: tuple[int, int]
    ) -> tuple[Conditions, Conditions]:
        """What the U-Net reads of prompts and of negative prompts (None: zeros), for pictures of (height, width)."""
        time_ids = None
        if self.config.text_encoder_2 is not None:
            time_ids = jnp.tile(jnp.asarray([*size, 0, 0, *size], jnp.float32), (len(ids[0]), 1))
        prompt = self.encode_prompt(ids, time_ids)
        if negative_ids is None:
            zeros = jnp.zeros_like
            return prompt, Conditions(zeros(prompt.text), None if time_ids is None else zeros(prompt.pooled), time_ids)
        return prompt, self.encode_prompt(negative_ids, time_ids)

    def encode(self, pictures: Float[Array, "b h w 3"], noise: Array | None = None) -> Float[Array, "b h2 w2 c"]:
        """Pictures in [0,1] → scaled latents: their mean, or with standard normal `noise` a draw of them."""
        distribution = self.vae.encode(2.0 * pictures - 1.0)
        latents = distribution.mean if noise is None else distribution.mean + distribution.std * noise
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """Scaled latents → pictures, float32 in [0,1]."""
        return jnp.clip(self.vae.decode(latents / self.vae.config.scaling_factor) * 0.5 + 0.5, 0.0, 1.0)

    def __call__(
        self,
        latents: Array,
        timesteps: Array,
        conditions: Conditions,
        residuals: Residuals | None = None,
        observer: Observer | None = None,
    ) -> Array:
        """The U-Net's prediction, with the residuals of a ControlNet, before the eyes of an observer."""
        return self.unet(latents, timesteps, conditions, residuals, observer)


def vae_scale_factor(config: StableDiffusionConfig) -> int:
    """How many pixels wide a cell of the latents is."""
    if config.patches is not None:
        return config.patches.size
    if config.vae_tiny is not None:
        return 2 ** (len(config.vae_tiny.encoder_block_out_channels) - 1)
    return 2 ** (len(config.vae.block_out_channels) - 1)


def latent_channels(config: StableDiffusionConfig) -> int:
    """Channels of the latents that are denoised."""
    if config.patches is not None:
        return 3 * config.patches.size**2
    return (config.vae if config.vae_tiny is None else config.vae_tiny).latent_channels


def is_inpainting(config: StableDiffusionConfig) -> bool:
    """Whether the U-Net also reads a mask and the latents of the masked picture."""
    return config.unet.in_channels == 2 * latent_channels(config) + 1


def _check(config: StableDiffusionConfig) -> None:
    if config.vae is None and config.vae_tiny is None and config.patches is None:
        raise ConfigError("model.vae, model.vae_tiny, model.patches: expected one of them, found none")
    if config.patches is not None:
        patches.check(config.patches, config.image_size)
    channels, second = latent_channels(config), config.text_encoder_2
    if config.unet.in_channels not in (channels, 2 * channels + 1):
        raise ConfigError(
            f"model.unet.in_channels: expected {channels}, or {2 * channels + 1} for inpainting, as the autoencoder's "
            f"latents have {channels} channels; found {config.unet.in_channels}"
        )
    width = config.text_encoder.width + (second.width if second else 0)
    if config.unet.cross_attention_dim != width:
        raise ConfigError(
            f"model.unet.cross_attention_dim: expected {width}, the width of the text towers, found "
            f"{config.unet.cross_attention_dim}"
        )
    if bool(second) != bool(config.unet.addition_time_embed_dim):
        raise ConfigError("model.text_encoder_2 and model.unet.addition_time_embed_dim: expected both (XL) or neither")
    sizes = config.text_projection_dim + 6 * config.unet.addition_time_embed_dim
    if second and config.unet.projection_class_embeddings_input_dim != sizes:
        raise ConfigError(
            f"model.unet.projection_class_embeddings_input_dim: expected {sizes}, of the pooled text and six sizes, "
            f"found {config.unet.projection_class_embeddings_input_dim}"
        )
    if len(config.pad_token_ids) != 1 + bool(second):
        raise ConfigError(
            f"model.pad_token_ids: expected one per text tower, {1 + bool(second)}, found {config.pad_token_ids}"
        )


__all__ = ["Conditions", "StableDiffusion", "is_inpainting", "latent_channels", "vae_scale_factor"]
