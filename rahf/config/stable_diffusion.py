"""Stable Diffusion: networks, schedulers and pipelines. Names of fields are those of `diffusers`.

`rahf import stable-diffusion` writes such a config from the folder of a published pipeline.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.critic import ClipTextConfig
from rahf.config.model import ImageModelConfig


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A conditional U-Net over latents (Rombach et al. 2022). Defaults: Stable Diffusion 1.5's."""

    in_channels: int = 4  # 9 for inpainting: latents, mask, latents of the masked picture
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of the levels; each but the first halves the side
    cross_attention: tuple[bool, ...] = (True, True, True, False)  # which levels have transformers
    layers_per_block: int = 2  # residual blocks per level on the way down; one more on the way up
    transformer_layers_per_block: tuple[int, ...] = (1, 1, 1, 1)  # of each level; the bottom has the last one's
    num_attention_heads: tuple[int, ...] = (8, 8, 8, 8)  # of each level; `attention_head_dim` in diffusers' files
    cross_attention_dim: int = 768  # width of the text's hidden states
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False  # True (2.x, XL): proj_in and proj_out in files are matrices, not 1x1 kernels
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_time_embed_dim: int = 0  # XL: width of the features of each size; 0: conditions are the text alone
    projection_class_embeddings_input_dim: int = 0  # XL: pooled text and six sizes together


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet (Zhang et al. 2023): a copy of a U-Net's way down, steered by a picture. Defaults: of SD 1.5."""

    unet: UNetConfig = UNetConfig()  # of the U-Net that it steers
    conditioning_channels: int = 3  # of the picture
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)  # each but the first halves the side
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Pictures to latents and back (Rombach et al. 2022). Defaults: Stable Diffusion's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # latents are multiplied by it; XL's 0.13025
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """A small autoencoder of convolutions in the layout of TAESD, which decodes many times as fast."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class PatchesConfig:
    """No autoencoder: squares of pixels are the cells of the latents (Hoogeboom et al. 2023); no parameters."""

    size: int = 4  # side of a square in pixels; a cell has 3 · size² channels
    scaling_factor: float = 1.0  # pixels in [-1,1] are multiplied by it


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """How noise was added in training, and which steps remove it. Defaults: DDIM as for Stable Diffusion 1."""

    kind: Literal["ddim", "ddpm", "euler", "dpmsolver++", "pndm"] = "ddim"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False  # ddim, pndm: the last step leads to a clean picture, not to the noise of timestep 0
    rescale_betas_zero_snr: bool = False  # the last timestep is pure noise (Lin et al. 2024)
    clip_sample: bool = False  # ddim, ddpm: clamp the clean estimate; for models of pixels
    clip_sample_range: float = 1.0
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"  # ddpm
    solver_order: int = 2  # dpmsolver++
    solver_type: Literal["midpoint", "heun"] = "midpoint"  # dpmsolver++
    lower_order_final: bool = True  # dpmsolver++: the last of fewer than 15 steps is of first order
    euler_at_final: bool = False  # dpmsolver++: the last step always is
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"  # euler, dpmsolver++: where the last step leads
    use_karras_sigmas: bool = False  # euler, dpmsolver++: steps spread as by Karras et al. 2022, equation 5


@dataclasses.dataclass(frozen=True)
class StableDiffusionConfig(ImageModelConfig):
    """A text-to-image or inpainting pipeline over latents, or over pixels. Defaults: Stable Diffusion 1.5's."""

    family: Literal["stable-diffusion"] = "stable-diffusion"
    unet: UNetConfig = UNetConfig()
    vae: AutoencoderKLConfig | None = AutoencoderKLConfig()
    vae_tiny: AutoencoderTinyConfig | None = None  # instead of `vae`
    patches: PatchesConfig | None = None  # instead of both: a diffusion of pixels
    text_encoder: ClipTextConfig = ClipTextConfig(width=768, depth=12, heads=12, mlp_width=3072)
    text_encoder_2: ClipTextConfig | None = None  # XL
    text_projection_dim: int = 0  # XL: width of the pooled text of the second tower
    pad_token_ids: tuple[int, ...] = (49407,)  # of each text tower's vocabulary
    force_zeros_for_empty_prompt: bool = False  # XL: no negative prompt means zeros, not an empty text
    scheduler: SchedulerConfig = SchedulerConfig()
    prompt_dropout: float = 0.1  # share of prompts left out in training on pictures, for classifier-free guidance
