"""The autoencoder of spectral volumes, the first stage of a motion model, on drawn scenes.

Command:   rahf prepare motion --synthetic 1000 --size 64x40 --out data/motion
           rahf train configs/motion/demo_autoencoder.py
           rahf train configs/motion/demo_diffusion.py
           rahf train configs/motion/demo_frequency.py
Hardware:  1 CPU core, about 10 minutes
Result:    loss 0.054 and 0.059 on dev (two seeds), absolute error 0.026 and 0.028
Use:       rahf animate photo.jpg --model runs/motion_frequency --out photo.mp4
"""

from rahf.config import AutoencoderKLConfig, Config, DataConfig, MotionConfig, OptimizerConfig, TrainConfig


def config() -> Config:
    """Clips of 64 x 40; latents of 16 x 10."""
    return Config(
        workdir="runs/motion_autoencoder",
        data=DataConfig(path="data/motion", batch_size=4, eval_batch_size=16),
        model=MotionConfig(
            width=64,
            height=40,
            vae=AutoencoderKLConfig(
                in_channels=4,
                out_channels=4,
                block_out_channels=(16, 32, 32),
                layers_per_block=1,
                norm_num_groups=8,
            ),
            block_out_channels=(32, 64),
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3, schedule="cosine", warmup_steps=100, ema_decay=0.99),
        train=TrainConfig(
            steps=2500,
            eval_every=500,
            eval_examples=64,
            checkpoint_every=500,
            best_metric="loss/total",
            best_mode="min",
        ),
    )
