"""ControlNet (Zhang et al. 2023): a copy of a U-Net's way down that a picture steers, added to the U-Net by layers of
zeros.

The network of GazeFusion is this one, with the saliency map repeated to three channels as the picture. Its hint
encoder is called with the timestep's embedding and the text, too, but it has no layer that reads them: the published
variant computes what the standard one does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import ControlNetConfig
from rahf.core.errors import ConfigError
from rahf.diffusion.networks import unet as unet_lib
from rahf.diffusion.networks.latent_blocks import AROUND
from rahf.diffusion.networks.unet import Conditions, Residuals
from rahf.nn import layers


class ControlNetConditioningEmbedding(nnx.Module):
    """The hint encoder: 3x3 convolutions from pixels to the size of the latents. Starts as zero."""

    def __init__(self, config: ControlNetConfig, *, dtype: jnp.dtype):
        widths = config.conditioning_embedding_out_channels
        self.conv_in = layers.Conv3x3(config.conditioning_channels, widths[0], dtype=dtype)
        convolutions = []
        for before, after in zip(widths, widths[1:]):
            convolutions.append(layers.Conv3x3(before, before, dtype=dtype))
            convolutions.append(layers.Conv3x3(before, after, stride=2, padding=AROUND, dtype=dtype))
        self.blocks = layers.Numbered(convolutions)
        self.conv_out = layers.Conv3x3(widths[-1], config.unet.block_out_channels[0], dtype=dtype, gain=0.0)

    def __call__(self, hint: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        x = jax.nn.silu(self.conv_in(hint))
        for convolution in self.blocks:
            x = jax.nn.silu(convolution(x))
        return self.conv_out(x)


class ControlNetModel(nnx.Module):
    """Noisy latents, timestep, conditions and a hint → residuals of a U-Net, all zero at the start of training.

    Names and structure of the parameters are those of `diffusers`.
    """

    def __init__(self, config: ControlNetConfig, *, dtype: jnp.dtype, attention: str = "auto"):
        """Builds the network.

        Raises:
          ConfigError: fields that do not fit each other; names them.
        """
        unet_lib.check(config.unet)
        if not config.conditioning_embedding_out_channels or config.conditioning_channels < 1:
            raise ConfigError(
                "controlnet: expected conditioning_embedding_out_channels and conditioning_channels of at least one, "
                f"found {config.conditioning_embedding_out_channels} and {config.conditioning_channels}"
            )
        build = unet_lib.Builder(config.unet, dtype, attention)
        self.config, self.dtype = config.unet, dtype
        self.bgr = config.controlnet_conditioning_channel_order == "bgr"
        build.way_down(self)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(config, dtype=dtype)
        self.controlnet_down_blocks = layers.Numbered([_zero_dense(width, dtype) for width in build.skip_widths()])
        self.controlnet_mid_block = _zero_dense(config.unet.block_out_channels[-1], dtype)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Array,
        conditions: Conditions,
        hint: Float[Array, "b H W k"],
    ) -> Residuals:
        """The residuals, in the compute dtype.

        Args:
          latents, timesteps, conditions: as of `unet.UNet2DConditionModel`.
          hint: in [0,1]; its sides are those of the latents times `hint_scale_factor`.
        """
        temb = unet_lib.time_embedding(self, timesteps, conditions)
        text = conditions.text.astype(self.dtype)
        embedded = self.controlnet_cond_embedding(hint[..., ::-1] if self.bgr else hint)
        x, skips = unet_lib.way_down(self, self.conv_in(latents) + embedded, temb, text)
        x = self.mid_block(x, temb, text)
        down = tuple(layer(skip) for layer, skip in zip(self.controlnet_down_blocks, skips))
        return Residuals(down, self.controlnet_mid_block(x))


def hint_scale_factor(config: ControlNetConfig) -> int:
    """How many pixels of the hint wide a cell of the latents is."""
    return 2 ** (len(config.conditioning_embedding_out_channels) - 1)


def _zero_dense(width: int, dtype: jnp.dtype) -> layers.Linear:
    """A 1x1 convolution that starts as zero."""
    return layers.Linear(width, width, bias=True, std=0.0, dtype=dtype)
