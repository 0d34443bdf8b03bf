"""Stock `diffusers` pipelines with tiny random networks, built from configs: nothing is downloaded."""

import functools

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def tokenizer() -> CLIPTokenizer:
    """CLIP's, with letters only."""
    letters = [chr(c) for c in range(97, 123)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=12)


@functools.cache
def parts(channels: int = 4) -> dict:
    """Networks of a pipeline with `channels` into the denoiser (9 of an inpainting one)."""
    torch.manual_seed(0)
    blocks = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **blocks,
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=16, latent_channels=4, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks,
    )  # fmt: skip
    words = tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=12, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        )
    )  # fmt: skip
    for network in (unet, vae, text):
        network.requires_grad_(False).eval()
    return dict(unet=unet, vae=vae, text_encoder=text, tokenizer=words)


def pipeline(inpaint: bool = False, dtype: torch.dtype = torch.float32, prediction: str = "epsilon", **scheduler):
    """A Stable Diffusion pipeline of 16 x 16 pixels with a DDIM scheduler, in `dtype`."""
    kind = StableDiffusionInpaintPipeline if inpaint else StableDiffusionPipeline
    kind_of_scheduler = scheduler.pop("kind", DDIMScheduler)
    if kind_of_scheduler is DDIMScheduler:
        scheduler = dict(clip_sample=False, set_alpha_to_one=False) | scheduler
    made = kind_of_scheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
        prediction_type=prediction, **scheduler,
    )  # fmt: skip
    pipe = kind(
        **parts(9 if inpaint else 4), scheduler=made, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype=dtype)
