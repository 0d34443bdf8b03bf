"""Ours, for speed: ViT-L/16 at 384 and T5-base with heatmap heads that stop at a quarter of the image side.

Command:   rahf prepare richhf18k --labels richhf_18k --images pickapic/*.parquet --out data/richhf18k
           rahf train configs/richhf18k_fast.py
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

from rahf.config import (
    AugmentConfig,
    Config,
    DataConfig,
    HeatmapHeadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScoreHeadConfig,
    StartConfig,
    T5Config,
    TrainConfig,
    ViTConfig,
)


def config() -> Config:
    """ViT-L/16 at 384 pixels, T5-base, quarter heads, bfloat16."""
    return Config(
        workdir="runs/richhf18k_fast",
        data=DataConfig(
            path="data/richhf18k",
            batch_size=64,
            eval_batch_size=64,
            max_prompt_tokens=64,
            max_target_tokens=64,
            tokenizer="start",
            augment=AugmentConfig(),
        ),
        model=ModelConfig(
            image_size=384,
            vit=ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096, class_token=True, layer_norm_eps=1e-12),
            t5=T5Config(mlp_width=3072, ff="relu", tie_embeddings=True, dropout=0.1),
            heatmap_head=HeatmapHeadConfig(kind="quarter", norm="rms", residual=True, relu_before_norm=True),
            score_head=ScoreHeadConfig(
                conv_widths=(768, 384, 192, 96, 48, 12), kernel_size=3, dense_widths=(512, 128), norm="rms"
            ),
            decoder_sees="all",
            compute_dtype="bfloat16",
        ),
        loss=LossConfig(heatmap_weight=2.0, score_weight=4.0, keyword_weight=1.0),
        optimizer=OptimizerConfig(learning_rate=5e-5, schedule="cosine", warmup_steps=500, ema_decay=0.999),
        start=StartConfig(vision="google/vit-large-patch16-384", text="google-t5/t5-base"),
        train=TrainConfig(steps=5_000, eval_every=500, checkpoint_every=500),
    )
