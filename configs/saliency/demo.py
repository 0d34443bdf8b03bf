"""A saliency model from scratch on synthetic scenes with simulated viewers: nobody looked at anything.

Command:   rahf prepare synthetic --out data/looked --viewers 15 --train 4000
           rahf train configs/saliency/demo.py
           rahf evaluate runs/saliency-demo --split test
Hardware:  2 CPU cores
"""

from rahf.config import (
    AugmentConfig,
    Config,
    ConvNextConfig,
    DataConfig,
    OptimizerConfig,
    SaliencyConfig,
    TrainConfig,
)


def config() -> Config:
    """A ConvNeXt of three stages, 0.3 M parameters with its decoder, on scenes of 96 pixels."""
    return Config(
        workdir="runs/saliency-demo",
        data=DataConfig(
            path="data/looked",
            batch_size=32,
            eval_batch_size=64,
            # New scenes are cheaper than changed ones.
            augment=AugmentConfig(crop_probability=0.0, photometric_probability=0.0, grey_probability=0.0),
        ),
        model=SaliencyConfig(
            image_height=96,
            image_width=96,
            tower="convnext",
            convnext=ConvNextConfig(patch_size=4, widths=(24, 48, 96), depths=(1, 1, 2)),
            widths=(48, 32, 24),
            blocks=1,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=50, final_fraction=0.05, b2=0.99, ema_decay=0.99
        ),
        train=TrainConfig(
            steps=600, log_every=50, eval_every=0, checkpoint_every=200, best_metric="loss/total", best_mode="min"
        ),
    )
