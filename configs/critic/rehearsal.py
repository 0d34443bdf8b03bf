"""A small network from scratch on the rehearsal set: RichHF-18K's file formats over photographs with planted faults.

Command:   rahf prepare richhf18k --labels REHEARSAL --images REHEARSAL/pickapic --out data/rehearsal
           rahf train configs/critic/rehearsal.py
           rahf evaluate runs/rehearsal
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

from rahf.config import (
    AugmentConfig,
    Config,
    CriticConfig,
    DataConfig,
    HeatmapHeadConfig,
    LossConfig,
    OptimizerConfig,
    ScoreHeadConfig,
    T5Config,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """128-pixel pictures, small enough for a CPU; the 2,600 training pictures are far too few for more."""
    width = 128
    return Config(
        workdir="runs/rehearsal",
        data=DataConfig(
            path="data/rehearsal",
            batch_size=32,
            eval_batch_size=50,
            max_prompt_tokens=40,
            max_target_tokens=48,
            max_words=32,
            augment=AugmentConfig(),
        ),
        model=CriticConfig(
            image_size=128,
            vit=ViTConfig(
                patch_size=16, width=width, depth=1, heads=4, mlp_width=4 * width, stem=(32, 64, 128), stem_blocks=1
            ),
            t5=T5Config(
                vocab_size=4096,
                width=width,
                head_width=32,
                heads=4,
                mlp_width=4 * width,
                encoder_layers=2,
                decoder_layers=1,
                ff="relu",
                tie_embeddings=True,
                dropout=0.1,
            ),
            heatmap_head=HeatmapHeadConfig(conv_widths=(64, 64), up_widths=(32,)),
            score_head=ScoreHeadConfig(conv_widths=(64, 32), pool=4, dense_widths=(128,)),
        ),
        loss=LossConfig(
            heatmap_weight=100.0,
            score_weight=50.0,
            keyword_weight=6.0,
            suffix_weight=2.5,
            keyword_warmup_steps=400,
            heatmap_loss="bce",
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="cosine", warmup_steps=100, b2=0.98, weight_decay=0.05, ema_decay=0.998
        ),
        train=TrainConfig(
            steps=1000,
            log_every=50,
            eval_every=500,
            eval_examples=250,
            checkpoint_every=500,
            best_metric="scores/mean/plcc",
        ),
    )
