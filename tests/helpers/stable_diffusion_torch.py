"""PyTorch's Stable Diffusion, tiny and random, of every published kind: built from configs, nothing is downloaded."""

import functools
import pathlib

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.helpers.parity import disturb

TINY_UNET = dict(
    block_out_channels=(16, 16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_type="UNetMidBlock2DCrossAttn",
)
_SD = dict(
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
)
UNETS = {
    "1.x": _SD | dict(attention_head_dim=4),
    "2.x": _SD | dict(attention_head_dim=(2, 4, 8), use_linear_projection=True),
    "xl": dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4, 8),
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
    ),
}
TINY_VAE = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
)

#: Those with the noise of Stable Diffusion, and the scheduler that each kind is published with.
BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
KINDS = ("1.x", "2.x", "inpainting", "xl")
_SIZES = dict(intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12)


#: Of the U-Nets of pipelines, which compile faster so; of 1.x and 2.x, and of XL.
TWO_LEVELS = (
    dict(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    dict(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
    ),
)


def tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's, of letters and the exclamation mark only."""
    letters = ["!", *(chr(c) for c in range(97, 123))]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12, pad_token=pad)


def _text(cls, pad: int, **fields):
    config = CLIPTextConfig(
        vocab_size=56, hidden_size=16, **_SIZES, bos_token_id=54, eos_token_id=55, pad_token_id=pad, **fields
    )
    return disturb(cls(config))


def _scheduler(kind: str):
    if kind == "2.x":
        v = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
        return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, **v)
    if kind == "xl":
        return EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")
    if kind == "inpainting":
        return DPMSolverMultistepScheduler(**BETAS)
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)


@functools.cache
def pipeline(kind: str):
    """A pipeline of 16 x 16 pixels, latents of 8 x 8."""
    torch.manual_seed(0)
    sizes = TINY_UNET | UNETS.get(kind, UNETS["1.x"]) | TWO_LEVELS[kind == "xl"]
    if kind in ("2.x", "xl"):
        sizes["attention_head_dim"] = (2, 4)
    unet = UNet2DConditionModel(**sizes, sample_size=8, in_channels=9 if kind == "inpainting" else 4)
    vae = AutoencoderKL(**TINY_VAE, sample_size=16, scaling_factor=0.5)
    parts = dict(unet=disturb(unet), vae=disturb(vae), scheduler=_scheduler(kind), tokenizer=tokenizer("<|endoftext|>"))
    parts["text_encoder"] = _text(CLIPTextModel, 55, hidden_act="gelu" if kind == "2.x" else "quick_gelu")
    if kind == "2.x":
        parts["tokenizer"] = tokenizer("!")
    if kind == "xl":
        parts["text_encoder_2"] = _text(CLIPTextModelWithProjection, 0, hidden_act="gelu", projection_dim=8)
        parts["tokenizer_2"] = tokenizer("!")
        pipe = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)
    else:
        cls = StableDiffusionInpaintPipeline if kind == "inpainting" else StableDiffusionPipeline
        pipe = cls(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(kind: str, folder: pathlib.Path, **options) -> pathlib.Path:
    """The pipeline in the layout of diffusers."""
    pipeline(kind).save_pretrained(folder, **options)
    return folder
