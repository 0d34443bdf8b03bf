"""The demo: a small network from scratch on synthetic scenes, on a laptop's CPU.

Command:   rahf demo            (or: rahf train configs/demo.py after rahf prepare synthetic --out data/demo)
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

from rahf.config import (
    AugmentConfig,
    Config,
    DataConfig,
    HeatmapHeadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScoreHeadConfig,
    T5Config,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """64-pixel pictures, 3 M parameters. A convolutional stem, because transformers alone learn slowly."""
    width = 128
    return Config(
        workdir="runs/demo",
        data=DataConfig(
            path="data/demo",
            batch_size=64,
            eval_batch_size=64,
            max_prompt_tokens=24,
            max_target_tokens=28,
            max_words=20,
            augment=AugmentConfig(crop_probability=0.0, photometric_probability=0.0, grey_probability=0.0),
        ),
        model=ModelConfig(
            image_size=64,
            vit=ViTConfig(patch_size=8, width=width, depth=3, heads=2, mlp_width=4 * width, stem=(32, 64)),
            t5=T5Config(
                vocab_size=1024,
                width=width,
                head_width=64,
                heads=2,
                mlp_width=4 * width,
                encoder_layers=4,
                decoder_layers=2,
                ff="relu",
            ),
            heatmap_head=HeatmapHeadConfig(conv_widths=(64,), up_widths=(32,)),
            score_head=ScoreHeadConfig(conv_widths=(64, 32), pool=4, dense_widths=(128,)),
        ),
        loss=LossConfig(heatmap_weight=3.0, score_weight=3.0, keyword_weight=1.0, heatmap_loss="bce"),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0),
        train=TrainConfig(
            steps=800, log_every=20, eval_every=200, eval_examples=256, checkpoint_every=200, best_metric="scores/mean/plcc"
        ),
    )
