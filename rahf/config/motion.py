"""The family of motion models: from a photograph to the spectral volume of its motion (Li et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.model import FamilyConfig
from rahf.config.stable_diffusion import AutoencoderKLConfig


@dataclasses.dataclass(frozen=True)
class MotionConfig(FamilyConfig):
    """An autoencoder of frequency slices, a latent diffusion model over them, and attention across frequencies.

    A run trains one stage; the next starts from it (`start.model`).
    """

    family: Literal["motion"] = "motion"
    # "autoencoder"; "diffusion": one frequency at a time, the autoencoder frozen; "frequency": only the attention
    # across frequencies, all else frozen.
    stage: Literal["autoencoder", "diffusion", "frequency"] = "autoencoder"
    # "slices", or "volume": all frequencies at once as channels, an ablation of the paper without a third stage.
    prediction: Literal["slices", "volume"] = "slices"
    width: int = 256  # of pictures and motion, as the data was prepared
    height: int = 160
    terms: int = 16  # K; the first ones of the data's
    # "adaptive": each frequency by its own scale, then the root (equation 4); "plain": all by one number, an ablation.
    normalisation: Literal["adaptive", "plain"] = "adaptive"
    vae: AutoencoderKLConfig = AutoencoderKLConfig(
        in_channels=4, out_channels=4, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8
    )
    block_out_channels: tuple[int, ...] = (64, 128, 128)  # of the denoiser; each level but the first halves the side
    layers_per_block: int = 1  # residual blocks per level on the way down; one more on the way up
    num_attention_heads: int = 4
    norm_num_groups: int = 8
    num_train_timesteps: int = 1000
    beta_start: float = 0.0015  # of a schedule whose roots grow linearly
    beta_end: float = 0.0195
    image_dropout: float = 0.1  # share of photographs left out in training, for classifier-free guidance
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32


@dataclasses.dataclass(frozen=True)
class MotionRendererConfig(FamilyConfig):
    """A network that draws frames from a photograph and its motion: features, splatting, decoder."""

    family: Literal["motion-renderer"] = "motion-renderer"
    block_out_channels: tuple[int, ...] = (16, 32, 64)  # of the scales; each but the first halves the side
    norm_num_groups: int = 4
    # "softmax": what moves more hides what moves less; "average": all count alike, an ablation.
    splat: Literal["softmax", "average"] = "softmax"
    gradient_weight: float = 0.2  # of differences of neighbours at four scales, beside the absolute error
    # A fixed network whose features are compared, too: torchvision's VGG as .safetensors or .pth, or a critic with an
    # EfficientNet-Lite tower, as the shipped "lite"; "": none.
    perceptual: str = ""
    perceptual_weight: float = 0.1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
