"""Published sizes of Stable Diffusion, and a tiny random pipeline, without PyTorch."""

import dataclasses
import pathlib

import numpy as np

from rahf.config import AutoencoderKLConfig, ClipTextConfig, Config, DataConfig, StableDiffusionConfig, UNetConfig
from rahf.diffusion import untrained
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import functional
from rahf.training.model_folder import write_model

SD21_UNET = UNetConfig(cross_attention_dim=1024, num_attention_heads=(5, 10, 20, 20), use_linear_projection=True)
SDXL_UNET = UNetConfig(
    block_out_channels=(320, 640, 1280),
    cross_attention=(False, True, True),
    transformer_layers_per_block=(1, 2, 10),
    num_attention_heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)

#: 8 x 8 pixels, latents of 4 x 4.
TINY = StableDiffusionConfig(
    image_size=8,
    unet=UNetConfig(
        block_out_channels=(8, 8),
        cross_attention=(True, False),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        num_attention_heads=(2, 2),
        cross_attention_dim=8,
        norm_num_groups=4,
    ),
    vae=AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5),
    text_encoder=ClipTextConfig(vocab_size=56, positions=12, width=8, depth=1, heads=2, mlp_width=8, eos_token_id=55),
    pad_token_ids=(55,),
)


#: A U-Net and an autoencoder of one level: for gradients through a sampling, which compile several copies of them.
FLAT = dataclasses.replace(
    TINY,
    unet=dataclasses.replace(
        TINY.unet,
        block_out_channels=(8,),
        cross_attention=(False,),
        transformer_layers_per_block=(1,),
        num_attention_heads=(2,),
    ),
    vae=dataclasses.replace(TINY.vae, block_out_channels=(8,), mid_block_add_attention=False),
)

#: The same, with attention to the text.
ATTENDING = dataclasses.replace(FLAT, unet=dataclasses.replace(FLAT.unet, cross_attention=(True,)))


tokenizer = untrained.letters


def config(inpaints: bool = False) -> Config:
    """Of the tiny pipeline; one of inpainting has 9 channels."""
    unet = dataclasses.replace(TINY.unet, in_channels=9 if inpaints else 4)
    return Config(data=DataConfig(max_prompt_tokens=12), model=dataclasses.replace(TINY, unet=unet))


def pipeline(inpaints: bool = False, model: StableDiffusionConfig | None = None) -> Pipeline:
    """A tiny random pipeline, or one of another config."""
    made = config(inpaints) if model is None else Config(data=DataConfig(max_prompt_tokens=12), model=model)
    return Pipeline(made, functional.init(lambda: StableDiffusion(made.model), seed=0), tokenizer())


def save(folder: pathlib.Path, model: StableDiffusionConfig = TINY) -> pathlib.Path:
    """A tiny pipeline as a model directory."""
    made = Config(data=DataConfig(max_prompt_tokens=12), model=model)
    drawn = functional.init(lambda: StableDiffusion(made.model), seed=0)
    host = functional.unflatten({path: np.asarray(value) for path, value in functional.flatten(drawn).items()})
    write_model(folder, made, host, tokenizer(), {"license": "mit"})
    return folder
