"""The generator in pixels of earlier versions, whose runs are still read. Names of fields are those of `diffusers`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rahf.config.critic import T5Config
from rahf.config.model import ImageModelConfig


@dataclasses.dataclass(frozen=True)
class PixelDiffusionConfig(ImageModelConfig):
    """A U-Net that makes pictures from prompts, in pixels; a T5 encoder reads the prompt. No longer trained."""

    family: Literal["pixel-diffusion"] = "pixel-diffusion"
    t5: T5Config = T5Config()
    block_out_channels: tuple[int, ...] = (64, 128, 256)  # of the levels; each but the first halves the side
    layers_per_block: int = 1  # residual blocks per level on the way down; one more on the way up
    patch_size: int = 1  # side of the squares of pixels that are one cell of the first level: 2 costs a quarter
    attention_from: int = 1  # levels from this one on attend to pixels and words; the bottom always does
    num_attention_heads: int = 4
    norm_num_groups: int = 8
    num_train_timesteps: int = 1000
    beta_schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    # "sample", the clean picture, is learnt fastest where cells are large.
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    prompt_dropout: float = 0.1  # share of prompts left out in training, for classifier-free guidance
