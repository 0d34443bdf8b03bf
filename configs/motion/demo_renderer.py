"""A renderer of motion on drawn scenes: from a photograph and its exact motion to a later picture.

Command:   rahf prepare motion --synthetic 1000 --size 64x40 --out data/motion
           rahf train configs/motion/demo_renderer.py
Hardware:  2 CPU cores
Result:    not yet run
Use:       rahf animate photo.jpg --spectrum data/motion --renderer runs/motion_renderer --out photo.mp4
"""

from rahf.config import Config, DataConfig, MotionRendererConfig, OptimizerConfig, TrainConfig


def config() -> Config:
    """Three scales; before training it draws what splatting alone draws. The tower of `lite` stands in for VGG."""
    return Config(
        workdir="runs/motion_renderer",
        data=DataConfig(path="data/motion", batch_size=8, eval_batch_size=8),
        model=MotionRendererConfig(perceptual="lite"),
        optimizer=OptimizerConfig(learning_rate=5e-4, schedule="cosine", warmup_steps=50, ema_decay=0.99),
        train=TrainConfig(
            steps=1500,
            eval_every=250,
            eval_examples=64,
            checkpoint_every=250,
            best_metric="loss/total",
            best_mode="min",
        ),
    )
