"""Stable Diffusion with random parameters: to try commands, to measure speeds. Its pictures are noise."""

from __future__ import annotations

import functools
import os
import pathlib

import jax

from rahf.config import AutoencoderKLConfig, ClipTextConfig, Config, DataConfig, StableDiffusionConfig, UNetConfig
from rahf.core.version import __version__
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import functional
from rahf.text import ClipTokenizer
from rahf.text.clip_vocabulary import clip_vocabulary
from rahf.training.model_folder import check_free, write_model

#: 32 x 32 pixels; every kind of part is there.
TINY = StableDiffusionConfig(
    image_size=32,
    unet=UNetConfig(
        block_out_channels=(32,),
        cross_attention=(True,),
        layers_per_block=1,
        transformer_layers_per_block=(1,),
        num_attention_heads=(2,),
        cross_attention_dim=32,
        norm_num_groups=8,
    ),
    vae=AutoencoderKLConfig(
        block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False
    ),
    text_encoder=ClipTextConfig(vocab_size=56, width=32, depth=1, heads=2, mlp_width=64, eos_token_id=55),
    pad_token_ids=(55,),
)


@functools.cache
def letters(vocab_size: int = 56) -> ClipTokenizer:
    """A vocabulary in the layout of CLIP's that knows single letters only, and the exclamation mark.

    Args:
      vocab_size: pieces that no text has fill it up.

    Raises:
      TokenizerError: fewer than 56.
    """
    alphabet = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["!", *alphabet, *(f"{letter}</w>" for letter in ("!", *alphabet))]
    return ClipTokenizer(clip_vocabulary(pieces, [], vocab_size, "single letters"), "single letters")


def pipeline(model: StableDiffusionConfig = TINY, seed: int = 0) -> Pipeline:
    """A pipeline of random parameters, whose prompts may have letters only."""
    data = DataConfig(max_prompt_tokens=model.text_encoder.positions)
    params = functional.init(lambda: StableDiffusion(model), seed=seed)
    return Pipeline(Config(data=data, model=model), params, letters(model.text_encoder.vocab_size))


def save_untrained(folder: str | os.PathLike, model: StableDiffusionConfig = TINY, seed: int = 0) -> pathlib.Path:
    """Writes a model directory like those of `rahf import stable-diffusion`, with random parameters.

    Raises:
      PretrainedError: `folder` exists and is not empty.
    """
    folder, pipe = check_free(folder), pipeline(model, seed)
    record = {"license": "none: random parameters", "source": f"seed {seed}", "format": "random", "rahf": __version__}
    write_model(folder, pipe.config, jax.device_get(pipe.params), pipe.tokenizer, record)
    return folder
