"""A generator to be criticised and guided: a small text-to-image diffusion model from scratch on synthetic scenes.

Command:   rahf prepare synthetic --out data/demo --train 32000
           rahf train configs/diffusion/demo.py
Hardware:  2 CPU cores
Time:      half an hour at the 90 images/s of its last steps; beside other runs it took 67 minutes (2026-11-20)
Result:    loss .038 on 256 dev scenes; what its pictures are good for: docs/results.md
Use:       rahf.diffusion.load("runs/demo_diffusion"); docs/using.md

It learns the scenes as they are, damaged and mismatched ones, too: so there is something to criticise.
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import Config, OptimizerConfig, PixelDiffusionConfig, T5Config, TrainConfig


def config() -> Config:
    """64-pixel pictures in cells of 4 x 4; the network gives the clean picture; averaged parameters."""
    demo = config_lib.load(str(pathlib.Path(__file__).parents[1] / "critic" / "demo.py"))
    return Config(
        workdir="runs/demo_diffusion",
        data=dataclasses.replace(demo.data, batch_size=64),
        model=PixelDiffusionConfig(
            image_size=64,
            t5=T5Config(vocab_size=1024, width=128, head_width=32, heads=4, mlp_width=512, encoder_layers=2, ff="relu"),
            block_out_channels=(64, 128),
            patch_size=4,
            prediction_type="sample",
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
