"""A ControlNet beside a Stable Diffusion pipeline: the network with its parameters, and what it does in one sampling.

pipe.controlnet = rahf.diffusion.load_controlnet("models/gazefusion")
pipe("a red cat", control_image=target, controlnet_conditioning_scale=0.8)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import ControlNetConfig, StableDiffusionConfig, UNetConfig
from rahf.core import licenses
from rahf.core.errors import ArgumentError, CheckpointError
from rahf.core.tree import Params, flatten, unflatten
from rahf.diffusion.networks.controlnet import ControlNetModel, hint_scale_factor
from rahf.diffusion.networks.stable_diffusion import latent_channels, vae_scale_factor
from rahf.diffusion.networks.unet import Conditions, Residuals
from rahf.images.resize import resize
from rahf.nn import functional

#: Fields of a U-Net that have one value per level, of which only levels with transformers and the bottom count.
_PER_TRANSFORMER = ("transformer_layers_per_block", "num_attention_heads")


@dataclasses.dataclass(frozen=True)
class ControlNet:
    """A ControlNet with its parameters.

    Attributes:
      config: of the network.
      params: nested, of arrays.
      name: where it came from, for messages.
      license: of the weights; "unknown" where nothing states it.
    """

    config: ControlNetConfig
    params: Params
    name: str = "controlnet"
    license: str = licenses.UNKNOWN


@dataclasses.dataclass(frozen=True)
class Network:
    """A ControlNet without parameters: what a program is compiled for."""

    config: ControlNetConfig
    compute_dtype: str
    attention: str

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The static structure."""
        return functional.abstract(self.build)[0]

    def build(self) -> ControlNetModel:
        """Builds the network; called under `jax.eval_shape` and by `functional.init`."""
        return ControlNetModel(self.config, dtype=jnp.dtype(self.compute_dtype), attention=self.attention)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
    """What a ControlNet does in a sampling; another hint or scale compiles nothing.

    Attributes:
      params: of the network.
      hint: float32 [B,H,W,c] in [0,1].
      scale: of the residuals: float32 [], or [T], one for each timestep of training.
      network: static.
    """

    params: Any
    hint: Any
    scale: Any
    network: Network = dataclasses.field(metadata=dict(static=True))

    def residuals(self, latents: Float[Array, "n h w c"], timesteps: Array, conditions: Conditions) -> Residuals:
        """What is added inside the U-Net, scaled. A batch of n = k·B rows, such as those of prompts and of negative
        prompts, has the hints of its pictures k times: the unconditional branch sees the hint, too."""
        hint = jnp.asarray(self.hint)
        hint = jnp.tile(hint, (len(latents) // len(hint), 1, 1, 1))
        model = functional.merge(self.network.graphdef, self.params)
        scale = jnp.asarray(self.scale)
        scale = scale if scale.ndim == 0 else scale[timesteps][:, None, None, None]
        return model(latents[..., : self.network.config.unet.in_channels], timesteps, conditions, hint).scaled(scale)


def network(config: ControlNetConfig, base: StableDiffusionConfig) -> Network:
    """The network in the compute dtype of a pipeline."""
    return Network(config, base.compute_dtype, base.attention)


def of_base(base: StableDiffusionConfig) -> ControlNetConfig:
    """The standard ControlNet of a pipeline: its hint encoder halves the side as often as the autoencoder."""
    widths = ControlNetConfig().conditioning_embedding_out_channels
    halvings = vae_scale_factor(base).bit_length() - 1
    widths = (*widths, *[widths[-1]] * halvings)[: 1 + halvings]
    unet = dataclasses.replace(base.unet, in_channels=latent_channels(base))
    return ControlNetConfig(unet, conditioning_embedding_out_channels=widths)


def initial(base: StableDiffusionConfig, unet_params: Params, seed: int = 0) -> ControlNet:
    """A ControlNet before training (Zhang et al. 2023): the U-Net's way down and middle, copied; a random hint encoder
    whose last layer is zero; layers of zeros at all its outputs. It changes no picture yet.

    Args:
      base: of the pipeline.
      unet_params: ``pipe.params["unet"]``.
      seed: of the hint encoder.
    """
    config = of_base(base)
    of_config = network(config, base)
    params = functional.init(of_config.build, seed, loaded=copied(config, of_config, unet_params))
    return ControlNet(config, params, name="initial")


def copied(config: ControlNetConfig, network: Network, unet_params: Params) -> Params:
    """What a ControlNet takes from the U-Net before training: all but the hint encoder and the layers of zeros."""
    _, shapes = functional.abstract(network.build)
    wanted, params = flatten(shapes), {}
    for path, value in flatten(unet_params).items():
        if path in wanted:
            # A U-Net of inpainting reads a mask and a picture besides; the ControlNet reads the latents alone.
            value = value[:, :, : config.unet.in_channels] if path == "conv_in/kernel" else value
            params[path] = value
    return unflatten(params)


def check_base(controlnet: ControlNet, base: StableDiffusionConfig) -> None:
    """Refuses a ControlNet for another base.

    Raises:
      CheckpointError: names the first field of the U-Net that differs, or a hint that does not fit the latents.
    """
    expected = dataclasses.replace(
        base.unet, in_channels=latent_channels(base), out_channels=controlnet.config.unet.out_channels
    )
    config = controlnet.config
    for field in dataclasses.fields(UNetConfig):
        ours, theirs = (_that_counts(unet, field.name) for unet in (config.unet, expected))
        if ours != theirs:
            raise CheckpointError(
                f"{controlnet.name}: a ControlNet for another base: {field.name} is {ours}, the pipeline's U-Net has "
                f"{theirs}. Use the ControlNet that was trained with this pipeline"
            )
    factor, cell = hint_scale_factor(config), vae_scale_factor(base)
    if factor != cell:
        raise CheckpointError(
            f"{controlnet.name}: a ControlNet for another base: its hint encoder "
            f"(conditioning_embedding_out_channels {config.conditioning_embedding_out_channels}) makes one cell of "
            f"{factor} pixels, the pipeline's autoencoder of {cell}"
        )


def _that_counts(unet: UNetConfig, name: str) -> Any:
    value = getattr(unet, name)
    if name not in _PER_TRANSFORMER:
        return value
    last = len(unet.block_out_channels) - 1
    return tuple(v for level, v in enumerate(value) if level == last or unet.cross_attention[level])


def hints(value: Any, config: ControlNetConfig, size: tuple[int, int]) -> Float[np.ndarray, "b H W c"]:
    """Pictures or maps to steer by, float32 [B,H,W,c] in [0,1], at the size of the pictures that are drawn.

    Args:
      value: [B,H,W,c] or [H,W,c]; or maps [B,H,W] or [H,W], repeated to the channels. Float in [0,1], or uint8.
      size: height and width of the pictures that are drawn.

    Raises:
      ArgumentError: another shape or aspect, or values outside of [0,1].
    """
    array, channels = np.asarray(value), config.conditioning_channels
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != channels):
        array = np.repeat(array[..., None], channels, -1)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != channels or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ArgumentError(
            f"control_image: expected float [B,H,W,{channels}] or maps [B,H,W] in [0,1], or uint8, found {array.dtype} "
            f"{np.shape(value)}"
        )
    array = array.astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)
    if not (array.size and array.min() >= 0 and array.max() <= 1):  # NaN compares false, too
        raise ArgumentError("control_image: expected values in [0,1]; divide a density by its largest value")
    height, width = array.shape[1:3]
    if abs(height * size[1] / width - size[0]) >= 1:
        raise ArgumentError(
            f"control_image: its aspect is another one: {width} x {height}, the picture is {size[1]} x {size[0]}. "
            "Draw it for this picture, or give height and width of its aspect"
        )
    return array if (height, width) == tuple(size) else np.stack([resize(one, size) for one in array])


def scales(conditioning_scale: Any, steps: int, start: float = 0.0, end: float = 1.0) -> Float[np.ndarray, " n"]:
    """The factor of the residuals at each step, float32 [steps].

    Args:
      conditioning_scale: one for all steps, or one per step.
      start, end: shares of the steps from which on and until which the ControlNet acts, as in `diffusers`.

    Raises:
      ArgumentError: another number of scales, or values that make no sense.
    """
    values = np.asarray(conditioning_scale, np.float32)
    if values.shape not in ((), (steps,)) or not np.isfinite(values).all():
        raise ArgumentError(
            f"controlnet_conditioning_scale: expected a number, or {steps}, one per step, found {conditioning_scale!r}"
        )
    if not 0 <= start < end <= 1:
        raise ArgumentError(
            f"control_guidance_start, control_guidance_end: expected 0 <= start < end <= 1, found {start} and {end}"
        )
    number = np.arange(steps)
    acts = (number / steps >= start) & ((number + 1) / steps <= end)
    return np.where(acts, values, np.float32(0)).astype(np.float32)
