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
    """64-pixel pictures, 2.4 M parameters: the paper's network, small.

    From scratch on a few ten thousand pictures a transformer alone learns little, so convolutions come first
    (`stem`), the stacks are shallow, and what teaches to see comes first: naming what the picture shows
    (`tag_head`), heatmaps and scores. The word loss, large from the start, would drown their gradient.
    """
    width = 128
    return Config(
        workdir="runs/demo",
        data=DataConfig(
            path="data/demo",
            batch_size=32,
            eval_batch_size=64,
            max_prompt_tokens=24,
            max_target_tokens=28,
            max_words=20,
            # New scenes are cheaper than changed ones.
            augment=AugmentConfig(crop_probability=0.0, photometric_probability=0.0, grey_probability=0.0),
        ),
        model=ModelConfig(
            image_size=64,
            vit=ViTConfig(
                patch_size=8, width=width, depth=1, heads=4, mlp_width=4 * width, stem=(32, 64, 128), stem_blocks=1
            ),
            t5=T5Config(
                vocab_size=1024,
                width=width,
                head_width=32,
                heads=4,
                mlp_width=4 * width,
                encoder_layers=3,
                decoder_layers=1,
                ff="relu",
                tie_embeddings=True,
            ),
            heatmap_head=HeatmapHeadConfig(conv_widths=(64, 64), up_widths=(32,)),
            score_head=ScoreHeadConfig(conv_widths=(64, 32), pool=4, dense_widths=(128,)),
            tag_head=True,
        ),
        loss=LossConfig(
            heatmap_weight=60.0,
            score_weight=150.0,
            keyword_weight=12.0,
            suffix_weight=2.5,
            keyword_warmup_steps=1000,
            tag_weight=300.0,
            tag_steps=1200,
            tag_rest=0.05,
            heatmap_loss="bce",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50, b2=0.98, clip_norm=1.0),
        train=TrainConfig(
            steps=2100,
            log_every=50,
            eval_every=700,
            eval_examples=256,
            checkpoint_every=700,
            best_metric="scores/mean/plcc",
        ),
    )
