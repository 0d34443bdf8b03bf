"""A generator to be criticised and steered: a small text-to-image diffusion from scratch on synthetic scenes.

Command:   rahf prepare synthetic --out data/demo --train 24000
           rahf train configs/diffusion/demo.py
Hardware:  2 CPU cores
Use:       rahf.diffusion.load("runs/demo_diffusion"); docs/using.md
Time and result: docs/benchmarks.md

Stable Diffusion's U-Net and text tower, small, over squares of pixels instead of an autoencoder's latents. It learns
the scenes as they are, damaged and mismatched ones, too: so there is something to criticise.
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import (
    ClipTextConfig,
    Config,
    OptimizerConfig,
    PatchesConfig,
    SchedulerConfig,
    StableDiffusionConfig,
    TrainConfig,
    UNetConfig,
)


def config() -> Config:
    """64-pixel pictures in cells of 4 x 4; the network gives the clean picture; averaged parameters."""
    demo = config_lib.load(str(pathlib.Path(__file__).parents[1] / "critic" / "demo.py"))
    width, pieces = 128, 1024
    return Config(
        workdir="runs/demo_diffusion",
        data=dataclasses.replace(demo.data, batch_size=32, tokenizer="prompts", max_prompt_tokens=24),
        model=StableDiffusionConfig(
            image_size=64,
            unet=UNetConfig(
                in_channels=48,
                out_channels=48,
                block_out_channels=(64, 96),
                cross_attention=(False, True),
                layers_per_block=1,
                transformer_layers_per_block=(1, 1),
                num_attention_heads=(4, 4),
                cross_attention_dim=width,
                norm_num_groups=8,
            ),
            vae=None,
            patches=PatchesConfig(size=4),
            text_encoder=ClipTextConfig(
                vocab_size=pieces, positions=24, width=width, depth=2, heads=4, mlp_width=512, eos_token_id=pieces - 1
            ),
            pad_token_ids=(pieces - 1,),
            # The clean picture is learnt fastest where cells are large.
            scheduler=SchedulerConfig(
                beta_schedule="squaredcos_cap_v2",
                prediction_type="sample",
                timestep_spacing="trailing",
                steps_offset=0,
                set_alpha_to_one=True,
                clip_sample=True,
            ),
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="cosine", warmup_steps=200, b2=0.99, ema_decay=0.997, weight_decay=0.01
        ),
        train=TrainConfig(
            steps=2500,
            log_every=50,
            eval_every=500,
            eval_examples=256,
            checkpoint_every=500,
            best_metric="loss/total",
            best_mode="min",
        ),
    )
