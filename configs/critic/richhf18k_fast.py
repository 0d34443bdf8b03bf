"""Ours, for speed: ViT-L/16 at 384 and T5-base with heatmap heads that stop at a quarter of the image side.

Command:   rahf prepare richhf18k --labels richhf_18k --images pickapic/*.parquet --out data/richhf18k
           rahf train configs/critic/richhf18k_fast.py
           rahf evaluate runs/richhf18k_fast --split test
Hardware:  one accelerator of 80 GB with --train.accumulate 4 (memory estimated, not measured)
Time:      2 hours on an A100 is an estimate, not measured: 2.67 TFLOP for each example (counted from the program;
           6.23 with the full heads) times 64 x 5,000 are 0.86 EFLOP, at an assumed 40% of its 312 TFLOP/s in bfloat16
Metrics:   docs/results.md

Annotators marked discs with a radius of 1/20 of the height, so a heatmap needs no finer grid than a quarter of the
side; the rest is bilinear, inside the network. Everything else about the network is richhf18k_vitl.py's, but that the
decoder sees the picture, too, as in the paper. The recipe (rate, length, averaged parameters) is ours and has not been
tuned on RichHF-18K.
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import AugmentConfig, OptimizerConfig, TrainConfig


def config() -> config_lib.Config:
    """As `richhf18k_vitl.py`, but for quarter heads, bfloat16, a decoder that sees the picture, and the recipe."""
    port = config_lib.load(str(pathlib.Path(__file__).with_name("richhf18k_vitl.py")))
    replace = dataclasses.replace
    return replace(
        port,
        workdir="runs/richhf18k_fast",
        data=replace(port.data, batch_size=64, eval_batch_size=64, max_target_tokens=64, augment=AugmentConfig()),
        model=replace(
            port.model,
            heatmap_head=replace(port.model.heatmap_head, kind="quarter"),
            decoder_sees="all",
            compute_dtype="bfloat16",
        ),
        optimizer=OptimizerConfig(learning_rate=5e-5, schedule="cosine", warmup_steps=500, ema_decay=0.999),
        train=TrainConfig(steps=5_000, eval_every=500, checkpoint_every=500),
    )
